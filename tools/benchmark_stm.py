"""`benchmark.py stm-step` and `stm-correction`: what STM-Cycle's training step and its gradient correction cost."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

import torch

from models.stm import ARCHS
from trainers.benchmarks.stm_correction import CorrectionCost, CorrectionSize, time_corrections
from trainers.benchmarks.stm_step import LOOP, NUM_SLOTS, StmStepCost, StmStepSize, time_stm_steps
from trainers.running.distributed import Ranks, choose_device


def add_stm_step(parser: ArgumentParser) -> None:
    """Its arguments."""
    usual = StmStepSize()
    _add_network(parser, height=usual.size[0])
    parser.add_argument("--clips", type=int, default=usual.batch_size, help="per step (default: %(default)s)")
    parser.add_argument(
        "--objects",
        type=int,
        choices=range(1, NUM_SLOTS + 1),
        default=usual.num_objects,
        help="in every other clip; the rest have one (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=usual.threads,
        help="of the CPU; several are timed by wall (default: %(default)s)",
    )


def add_stm_correction(parser: ArgumentParser) -> None:
    """Its arguments."""
    usual = CorrectionSize()
    _add_network(parser, height=usual.size[0])
    parser.add_argument("--objects", type=int, default=usual.num_objects, help="in the video (default: %(default)s)")


def _add_network(parser: ArgumentParser, *, height: int) -> None:
    parser.add_argument("--arch", choices=ARCHS, default="resnet18", help="default: %(default)s")
    parser.add_argument("--width", type=float, default=0.25, help="1 is the paper's (default: %(default)s)")
    parser.add_argument(
        "--height", type=int, default=height, help="of the frames, 427:240 (default: %(default)s; published: 240)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")


def measure_stm_step(options: Namespace, _scratch: Path) -> tuple[dict[str, object], str]:
    """Numbers and table."""
    device = str(choose_device(options.device, Ranks()))
    network = (options.arch, options.width, _pixels(options), options.objects, device)
    size = StmStepSize(*network, batch_size=options.clips, threads=options.threads)
    torch.set_num_threads(size.threads)
    costs = time_stm_steps(size, rounds=options.rounds)
    return {"size": asdict(size), "steps": {name: asdict(cost) for name, cost in costs.items()}}, _table(size, costs)


def measure_stm_correction(options: Namespace, _scratch: Path) -> tuple[dict[str, object], str]:
    """Numbers and table."""
    device = str(choose_device(options.device, Ranks()))
    size = CorrectionSize(options.arch, options.width, _pixels(options), options.objects, device)
    costs = time_corrections(size)
    result: dict[str, object] = {"size": asdict(size), "rows": [asdict(cost) for cost in costs]}
    return result, _correction_table(size, costs)


def _pixels(options: Namespace) -> tuple[int, int]:
    return options.height, options.height * 427 // 240


def _correction_table(size: CorrectionSize, costs: list[CorrectionCost]) -> str:
    clock = "CPU time, one thread" if size.device == "cpu" else f"wall time on {size.device}"
    title = (
        f"STM-Cycle, {size.arch}, width {size.width}, {size.num_objects} objects in {size.num_frames} frames "
        f"{size.size[0]}x{size.size[1]}, fp32; {clock}"
    )
    names = {None: "no correction", 1: "10 iterations, one object at a time", 8: "10 iterations, 8 objects at a time"}
    rows = [f"{names[cost.objects_at_once]:<38}{cost.frames_per_second:>8.2f}{cost.memory_mb:>12.0f}" for cost in costs]
    return "\n".join([f"{title}\n", f"{'':<38}{'frames/s':>8}{'peak MB':>12}", *rows])


def _table(size: StmStepSize, costs: dict[str, StmStepCost]) -> str:
    place = f"on {size.device}" if size.device != "cpu" else f"{size.threads} threads"
    clock = f"wall time, {place}" if size.timed_by_wall else "CPU time, one thread"
    title = (
        f"STM-Cycle, {size.arch}, width {size.width}, {size.batch_size} clips of 3 frames "
        f"{size.size[0]}x{size.size[1]}, {size.num_objects} and 1 objects in turn, fp32; {clock}"
    )
    rows = [
        f"{name:<22}{cost.step_ms:>14.1f}{costs[LOOP].step_ms / cost.step_ms:>8.2f}"
        f"{cost.work.gflop:>10.1f}{cost.work.operations:>12}{cost.loss:>12.6f}"
        for name, cost in costs.items()
    ]
    heads = f"{'':<22}{'ms per step':>14}{'ratio':>8}{'GFLOP':>10}{'operations':>12}{'loss':>12}"
    return "\n".join([f"{title}\n", heads, *rows])
