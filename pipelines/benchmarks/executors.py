"""What a clip costs: executors beside each other on the same bytes, and where the time of the fast one goes.

All times are CPU time of this process, which other work on the machine disturbs least. The candidates take turns in
rounds, the median over rounds counts, and the first round is thrown away.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import sched_getaffinity
from pathlib import Path

import numpy as np

from pipelines.assembly import assemble
from pipelines.executors import make_executor
from pipelines.executors.cpu import ClipWarps, Scratch, apply_colour, one_opencv_thread, warp_image, warp_labels
from pipelines.executors.encoded import decode_jpeg_padded, decode_labels, fill_colour, jpeg_size
from pipelines.types import EncodedClip, Executor

BATCH = 4
"""Clips per call of an executor, as a GPU's share of a training batch."""


@dataclass(frozen=True, slots=True)
class ClipTiming:
    """CPU milliseconds per clip on one thread. num_frames: frames per clip; rounds: how often each was timed.

    executors: by name, bytes to pixels. stages: of the cpu executor, and `assembly` (slots, first-mask damage,
    normalisation), which follows any executor. `decode` is the JPEG floor: nothing on this core can be faster.
    """

    num_clips: int
    num_frames: int
    rounds: int
    executors: dict[str, float]
    stages: dict[str, float]


def time_clips(clips: Sequence[EncodedClip], names: Sequence[str] = ("cpu", "paper"), *, rounds: int = 5) -> ClipTiming:
    """Time the named executors and the stages of the cpu executor on the same clips (at least one).

    Sets no thread counts outside OpenCV: for comparable numbers call torch.set_num_threads(1) first.
    Raises ValueError for unknown names or no clips, DataError for clips that do not decode.
    """
    if not clips or rounds < 1:
        raise ValueError(f"needs at least one clip and one round, got {len(clips)} clips and {rounds} rounds")
    executors = {name: make_executor(name) for name in names}
    work: dict[str, Callable[[], None]] = {name: _batches(executor, clips) for name, executor in executors.items()}
    work |= {f"stage {name}": stage for name, stage in _stages(clips).items()}
    try:
        seconds = take_turns(work, rounds)
    finally:
        for executor in executors.values():
            executor.close()
    per_clip = {name: 1e3 * value / len(clips) for name, value in seconds.items()}
    return ClipTiming(
        num_clips=len(clips),
        num_frames=len(clips[0].frames),
        rounds=rounds,
        executors={name: per_clip[name] for name in executors},
        stages={name.removeprefix("stage "): value for name, value in per_clip.items() if name.startswith("stage ")},
    )


def take_turns(
    work: dict[str, Callable[[], None]], rounds: int, *, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Median seconds of each piece of work by `clock` over `rounds` rounds in turn, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, function in work.items():
            started = clock()
            function()
            seconds[name].append(clock() - started)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def describe_machine() -> dict[str, str | int]:
    """What a number was measured on: processor, cores this process may use, system."""
    names = {
        line.partition(":")[2].strip()
        for line in _read_text(Path("/proc/cpuinfo")).splitlines()
        if line.startswith("model name")
    }
    processor = ", ".join(sorted(names)) or platform.processor() or platform.machine()
    return {"processor": processor, "cores": len(sched_getaffinity(0)), "system": platform.platform()}


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _batches(executor: Executor, clips: Sequence[EncodedClip]) -> Callable[[], None]:
    def run_all() -> None:
        for first in range(0, len(clips), BATCH):
            executor(list(clips[first : first + BATCH]))

    return run_all


def _stages(clips: Sequence[EncodedClip]) -> dict[str, Callable[[], None]]:
    """The stages of the cpu executor as work of their own, each over all frames of all clips."""
    stages = _Stages(clips)
    return {
        "decode": stages.decode,
        "warp": stages.warp,
        "colour": stages.colour,
        "masks": stages.decode_and_warp_masks,
        "assembly": stages.assemble,
    }


class _Stages:
    """Inputs of every stage, made once, so that a stage's time is its own."""

    def __init__(self, clips: Sequence[EncodedClip]) -> None:
        self._places = [(clip, index) for clip in clips for index in range(len(clip.frames))]
        size = clips[0].plan.size
        self._sizes = [jpeg_size(*place) for place in self._places]
        self._scratch = Scratch()
        self._image = np.empty((*size, 3), np.uint8)
        self._labels = np.empty(size, np.uint8)
        # One decoded frame of a size stands for all: the warp's time hardly depends on the pixels.
        self._source = {
            size: decode_jpeg_padded(*place, np.empty(size[0] * size[1] * 4, np.uint8))
            for size, place in zip(self._sizes, self._places, strict=True)
        }
        warps = [ClipWarps.of(clip) for clip in clips]
        self._image_warps = [matrix for each in warps for matrix in each.images]
        self._label_warps = [matrix for each in warps for matrix in each.labels[0]]
        executor = make_executor("cpu")
        batches = [list(clips[first : first + BATCH]) for first in range(0, len(clips), BATCH)]
        self._pixels = [(executor(batch), [clip.plan for clip in batch]) for batch in batches]
        executor.close()

    def decode(self) -> None:
        for place, (height, width) in zip(self._places, self._sizes, strict=True):
            decode_jpeg_padded(*place, self._scratch.decoded(height * width * 4))

    def warp(self) -> None:
        with one_opencv_thread():
            for (clip, _), size, matrix in zip(self._places, self._sizes, self._image_warps, strict=True):
                scratch = self._scratch.warped(clip.plan.size)
                warp_image(self._source[size], matrix, fill_colour(clip.plan), scratch, self._image)

    def colour(self) -> None:
        with one_opencv_thread():
            for clip, index in self._places:
                apply_colour(self._image, clip.plan.colours[index])

    def decode_and_warp_masks(self) -> None:
        with one_opencv_thread():
            for place, matrix in zip(self._places, self._label_warps, strict=True):
                warp_labels(decode_labels(*place), matrix, self._labels)

    def assemble(self) -> None:
        for pixels, plans in self._pixels:
            assemble(pixels, plans, num_slots=2, step=0, device="cpu")
