"""What gradient correction costs when STM-Cycle follows objects: frames per second without and with it, and memory.

Times on a CPU are CPU time, on a GPU wall time between synchronisations. Every row is a process of its own, because a
resident set never shrinks.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.stm import Arch, Stm
from trainers.segmenters.stm import StmOptions, StmSegmenter
from trainers.segmenters.stm_correction import CorrectionOptions

PIECES = (None, 8, 1)
"""Objects at once of each row; None: no correction."""


@dataclass(frozen=True, slots=True)
class CorrectionSize:
    """What is followed: network, frames of (height, width) pixels, objects, frames of the video; on which device."""

    arch: Arch = "resnet18"
    width: float = 0.25
    size: tuple[int, int] = (240, 427)
    num_objects: int = 4
    num_frames: int = 11
    device: str = "cpu"


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
    model = Stm(arch=size.arch, width=size.width, generator=torch.Generator().manual_seed(0)).to(size.device)
    correction = None if at_once is None else CorrectionOptions(objects_at_once=at_once)
    segmenter = StmSegmenter(model, StmOptions(correction=correction))
    frames, masks = _video(size)
    before = _memory_mb(size.device, peak=False)
    segmenter.start(frames[0], masks)
    started = _now(size.device)
    for frame in frames[1:]:
        segmenter.step(frame)
    seconds = _now(size.device) - started
    grown = _memory_mb(size.device, peak=True) - before
    return CorrectionCost(at_once, (size.num_frames - 1) / seconds, grown)


def _video(size: CorrectionSize) -> tuple[list[Tensor], Tensor]:
    """Noise frames (1, 3, H, W), and upright bars as masks (1, O, H, W)."""
    generator = torch.Generator().manual_seed(1)
    height, width = size.size
    frames = [torch.randn(1, 3, height, width, generator=generator).to(size.device) for _ in range(size.num_frames)]
    masks = torch.zeros(1, size.num_objects, height, width)
    bar = width // (2 * size.num_objects + 1)
    for place in range(size.num_objects):
        masks[:, place, height // 4 : -height // 4, (2 * place + 1) * bar : (2 * place + 2) * bar] = 1
    return frames, masks.to(size.device)


def _memory_mb(device: str, *, peak: bool) -> float:
    if torch.device(device).type == "cuda":
        taken = torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
        return float(taken) / 1e6
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024 / 1e6


def _now(device: str) -> float:
    if torch.device(device).type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
