"""What the executors on the CPU share: all frames of all clips through one function, on a pool of threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.executors.encoded import has_soft_masks
from pipelines.types import ClipPixels, EncodedClip

Answer = TypeVar("Answer")

RenderFrame = Callable[[EncodedClip, int, NDArray[np.uint8], NDArray[np.uint8]], None]
"""render(clip, index, image_out (H, W, 3), labels_out (H, W)): writes every element of both."""


class FrameExecutor:
    """Renders clips frame by frame; `threads` frames at a time.

    Frames share nothing, so the pixels do not depend on the number of threads.
    """

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self._pool = ThreadPoolExecutor(threads, "executor") if threads > 1 else None

    def __call__(self, clips: list[EncodedClip], render: RenderFrame) -> ClipPixels:
        """See Executor."""
        (num_clips, num_frames, (height, width)), soft = clips_shape(clips), all_soft(clips)
        # One allocation by NumPy, which asks for huge pages where torch does not.
        both = np.empty(num_clips * num_frames * height * width * 4, np.uint8)
        pixels = both[: both.size // 4 * 3].reshape(num_clips, num_frames, height, width, 3)
        ids = both[both.size // 4 * 3 :].reshape(num_clips, num_frames, height, width)

        def render_at(place: tuple[int, int]) -> None:
            render(clips[place[0]], place[1], pixels[place], ids[place])

        places = [(clip, frame) for clip in range(num_clips) for frame in range(num_frames)]
        for _ in map(render_at, places) if self._pool is None else self._pool.map(render_at, places):
            pass
        return ClipPixels(torch.from_numpy(pixels), torch.from_numpy(ids), annotated_frames(clips), soft)

    def close(self) -> None:
        """Release the threads. A closed executor with threads cannot be called again."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def clips_shape(clips: list[EncodedClip]) -> tuple[int, int, tuple[int, int]]:
    """(clips, frames per clip, output (height, width)). Raises ValueError if there are none or if they differ."""
    if not clips:
        raise ValueError("no clips to execute")
    shapes = {(len(clip.frames), clip.plan.size) for clip in clips}
    if len(shapes) > 1:
        raise ValueError(f"clips of one batch must agree in (frames, size), got {sorted(shapes)}")
    num_frames, size = shapes.pop()
    return len(clips), num_frames, size


def all_soft(clips: list[EncodedClip]) -> bool:
    """Whether the masks of a batch are soft masks. Raises ValueError where some are and some are label maps."""
    soft = {has_soft_masks(clip) for clip in clips}
    if len(soft) > 1:
        raise ValueError("clips of one batch have either label maps or soft masks; give each kind a stage of its own")
    return soft.pop()


def agreed(clips: list[EncodedClip], rule: Callable[[EncodedClip], Answer]) -> Answer:
    """What `rule` says of all clips of a batch. Raises ValueError where they differ: clips of two recipes."""
    answers = {rule(clip) for clip in clips}
    if len(answers) > 1:
        raise ValueError("clips of one batch must come from one recipe")
    return answers.pop()


def annotated_frames(clips: list[EncodedClip]) -> torch.Tensor:
    """(B, T) bool, False where a frame has no label map; on the CPU."""
    return torch.tensor([[frame.mask is not None for frame in clip.frames] for clip in clips])
