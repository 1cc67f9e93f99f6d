"""`benchmark.py stm-step`: STM-Cycle's training step beside the clip-by-clip loop of the published code."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from models.stm import ARCHS
from trainers.distributed import Ranks, choose_device
from trainers.stm_step_benchmark import LOOP, NUM_SLOTS, StmStepCost, StmStepSize, time_stm_steps


def add_stm_step(parser: ArgumentParser) -> None:
    """Its arguments."""
    usual = StmStepSize()
    parser.add_argument("--arch", choices=ARCHS, default=usual.arch, help="default: %(default)s")
    parser.add_argument("--width", type=float, default=usual.width, help="1 is the paper's (default: %(default)s)")
    parser.add_argument(
        "--height", type=int, default=usual.size[0], help="of the frames, 16:9 (default: %(default)s; published: 240)"
    )
    parser.add_argument("--clips", type=int, default=usual.batch_size, help="per step (default: %(default)s)")
    parser.add_argument(
        "--objects",
        type=int,
        choices=range(1, NUM_SLOTS + 1),
        default=usual.num_objects,
        help="in every other clip; the rest have one (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")


def measure_stm_step(options: Namespace, _scratch: Path) -> tuple[dict[str, object], str]:
    """Numbers and table."""
    device = str(choose_device(options.device, Ranks()))
    pixels = (options.height, options.height * 427 // 240 // 2 * 2)
    size = StmStepSize(options.arch, options.width, pixels, options.clips, options.objects, device)
    costs = time_stm_steps(size, rounds=options.rounds)
    return {"size": asdict(size), "steps": {name: asdict(cost) for name, cost in costs.items()}}, _table(size, costs)


def _table(size: StmStepSize, costs: dict[str, StmStepCost]) -> str:
    clock = "CPU time, one thread" if size.device == "cpu" else f"wall time on {size.device}"
    title = (
        f"STM-Cycle, {size.arch}, width {size.width}, {size.batch_size} clips of 3 frames "
        f"{size.size[0]}x{size.size[1]}, {size.num_objects} and 1 objects in turn, fp32; {clock}"
    )
    rows = [
        f"{name:<22}{cost.step_ms:>14.1f}{costs[LOOP].step_ms / cost.step_ms:>8.2f}{cost.loss:>12.6f}"
        for name, cost in costs.items()
    ]
    return "\n".join([f"{title}\n", f"{'':<22}{'ms per step':>14}{'ratio':>8}{'loss':>12}", *rows])
