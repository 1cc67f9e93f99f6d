"""What gradient correction costs when STM-Cycle follows objects: frames per second without and with it, and memory.

Times on a CPU are CPU time, on a GPU wall time between synchronisations. Every row is a process of its own, because a
resident set never shrinks.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainers.benchmarks.stm_size import StmSize, clock_seconds, upright_bars
from trainers.segmenters.stm import StmOptions, StmSegmenter
from trainers.segmenters.stm_correction import CorrectionOptions

PIECES = (None, 8, 1)
"""Objects at once of each row; None: no correction."""


@dataclass(frozen=True, slots=True)
class CorrectionSize(StmSize):
    """num_frames: of the video, the given one included."""

    num_frames: int = 11


@dataclass(frozen=True, slots=True)
class CorrectionCost:
    """Frames a second, and megabytes: growth of the resident set; on a GPU the allocator's peak above its start.

    objects_at_once: None without correction.
    """

    objects_at_once: int | None
    frames_per_second: float
    memory_mb: float


def time_corrections(size: CorrectionSize) -> list[CorrectionCost]:
    """A row without correction, and with the published one, all objects at once and one by one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        return [pool.submit(correction_cost, size, at_once, torch.get_num_threads()).result() for at_once in PIECES]


def correction_cost(size: CorrectionSize, at_once: int | None, threads: int) -> CorrectionCost:
    """One row, in this process. The first given frame is not counted."""
    torch.set_num_threads(threads)
    correction = None if at_once is None else CorrectionOptions(objects_at_once=at_once)
    segmenter = StmSegmenter(size.make_model(), StmOptions(correction=correction))
    frames, masks = _video(size)
    before = _memory_mb(size.device, peak=False)
    segmenter.start(frames[0], masks)
    started = clock_seconds(size.device)
    for frame in frames[1:]:
        segmenter.step(frame)
    seconds = clock_seconds(size.device) - started
    grown = _memory_mb(size.device, peak=True) - before
    return CorrectionCost(at_once, (size.num_frames - 1) / seconds, grown)


def _video(size: CorrectionSize) -> tuple[list[Tensor], Tensor]:
    """Noise frames (1, 3, H, W), and upright bars as masks (1, O, H, W)."""
    generator = torch.Generator().manual_seed(1)
    frames = [torch.randn(1, 3, *size.size, generator=generator).to(size.device) for _ in range(size.num_frames)]
    slots = torch.arange(1, size.num_objects + 1)[:, None, None]
    return frames, (upright_bars(size.size, size.num_objects) == slots)[None].float().to(size.device)


def _memory_mb(device: str, *, peak: bool) -> float:
    if torch.device(device).type == "cuda":
        taken = torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
        return float(taken) / 1e6
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024 / 1e6
