"""The subcommand `targets` of tools/benchmark.py: MTMFI's target models beside the published loop."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from models.frozen_trunk import BLOCKS
from trainers.benchmarks.targets import TargetCosts, TargetSize, time_targets
from trainers.running.distributed import Ranks, choose_device


def add_targets(parser: ArgumentParser) -> None:
    """The arguments of the subcommand."""
    usual = TargetSize()
    parser.add_argument("--trunk", choices=sorted(BLOCKS), default=usual.trunk, help="whose channels: %(default)s")
    parser.add_argument("--height", type=int, default=usual.height, help="of frames (default: %(default)s)")
    parser.add_argument("--width", type=int, default=usual.width, help="of frames (default: %(default)s)")
    parser.add_argument("--objects", type=int, default=usual.objects, help="default: %(default)s")
    parser.add_argument("--remembered", type=int, default=usual.remembered, help="frames (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns that count (default: %(default)s)")


def measure_targets(options: Namespace, _scratch: Path) -> tuple[dict[str, object], str]:
    """The numbers, and a table of them."""
    size = TargetSize(options.trunk, options.height, options.width, options.objects, options.remembered)
    device = str(choose_device(options.device, Ranks()))
    costs = time_targets(size, rounds=options.rounds, device=device)
    return {"size": asdict(size), "device": device, **asdict(costs)}, targets_table(size, costs)


def targets_table(size: TargetSize, costs: TargetCosts) -> str:
    """Milliseconds of both versions."""
    scene = f"{size.objects} objects on {size.height}x{size.width}, channels of {size.trunk}"
    lines = [
        f"{scene}, {size.remembered} frames remembered",
        "",
        f"{'':<28}{'plain ms':>10}{'ours ms':>10}{'ratio':>8}",
    ]
    for timing in costs.timings:
        ratio = timing.plain / timing.ours
        lines.append(f"{timing.name:<28}{1e3 * timing.plain:>10.1f}{1e3 * timing.ours:>10.1f}{ratio:>8.2f}")
    lines += [
        f"{'memory, MB':<28}{costs.bytes_plain / 1e6:>10.1f}{costs.bytes_ours / 1e6:>10.1f}"
        f"{costs.bytes_plain / costs.bytes_ours:>8.2f}",
        f"scores differ by at most {100 * costs.largest_difference:.2f} % of the largest one",
    ]
    return "\n".join(lines)
