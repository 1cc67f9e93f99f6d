"""What `dali` delivers on a device: frames per second, the CPU cores that takes, and the device's memory.

Each way of decoding JPEGs is measured twice, as the executor alone and with `assemble` behind it, one batch at a time
in one thread as the loader works.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipelines.assembly import assemble
from pipelines.executors.dali import JPEG_WAYS, DaliExecutor, JpegWay
from pipelines.types import EncodedClip

NUM_SLOTS = 2
WARM_UP = 2
"""Batches that do not count: they build the pipeline and let memory grow."""


@dataclass(frozen=True, slots=True)
class DeviceCost:
    """One way, from bytes on the CPU to pixels, or to a training batch, on the device.

    cores: CPU time of this process per second. memory_mib: what it took of the device beyond what was in use before;
    None on a CPU.
    """

    jpeg: str
    assembled: bool
    frames_per_second: float
    cores: float
    memory_mib: float | None


def time_on_device(
    clips: Sequence[EncodedClip], device: torch.device, *, batch: int, threads: int, rounds: int
) -> list[DeviceCost]:
    """Each way of decoding on `device`, batches of `batch` clips out of `clips` in turn, `rounds` times all of them.

    Raises ValueError for fewer clips than one batch has.
    """
    if len(clips) < batch:
        raise ValueError(f"needs at least one batch of {batch} clips, got {len(clips)} clips")
    batches = [list(clips[first : first + batch]) for first in range(0, len(clips) - batch + 1, batch)]
    found = []
    ways: list[JpegWay] = list(JPEG_WAYS) if device.type == "cuda" else ["mixed"]
    for jpeg in ways:
        for assembled in (False, True):
            before = _memory_in_use(device)
            executor = DaliExecutor(threads=threads, device=device, jpeg=jpeg)
            try:
                rate, cores = _rate(_maker(executor, device, assembled=assembled), batches, device, rounds)
                after = _memory_in_use(device)
            finally:
                executor.close()
            memory = None if before is None or after is None else (after - before) / 2**20
            found.append(DeviceCost(jpeg, assembled, rate, cores, memory))
            if device.type == "cuda":
                torch.cuda.empty_cache()  # what the next way takes shall be seen
    return found


def _maker(executor: DaliExecutor, device: torch.device, *, assembled: bool) -> Callable[[list[EncodedClip]], object]:
    def make(clips: list[EncodedClip]) -> object:
        pixels = executor(clips)
        if not assembled:
            return pixels
        return assemble(pixels, [clip.plan for clip in clips], num_slots=NUM_SLOTS, step=0, device=device)

    return make


def _rate(
    make: Callable[[list[EncodedClip]], object],
    batches: Sequence[list[EncodedClip]],
    device: torch.device,
    rounds: int,
) -> tuple[float, float]:
    """(frames per second, CPU cores busy)."""
    for _ in range(WARM_UP):
        make(batches[0])
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(rounds):
        for clips in batches:
            make(clips)
    _wait(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    frames = rounds * sum(len(clip.frames) for clips in batches for clip in clips)
    return frames / wall, cpu / wall


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory_in_use(device: torch.device) -> int | None:
    """Bytes, of whatever process or library: DALI does not allocate through torch."""
    if device.type != "cuda":
        return None
    _wait(device)
    free, whole = torch.cuda.mem_get_info(device)
    return int(whole - free)
