"""Models that follow objects through a video, a frame at a time: one module per method."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from torch import Tensor


class Segmenter(Protocol):
    """A model that follows objects through a video. Frames (1, 3, H, W) float, as its method's `sight` makes them.

    Probabilities (1, 1+O, H, W) are those of background and objects, objects in the order in which they were given.
    """

    def start(self, image: Tensor, masks: Tensor) -> None:
        """Begin a video, forgetting the last: its first frame and the masks (1, O, H, W) of its objects, 0 or 1."""

    def step(self, image: Tensor, *, skipped: int = 0) -> Tensor:
        """Probabilities of the next frame, `skipped` frames after the last one shown."""

    def add(self, masks: Tensor, *, given_again: Tensor) -> Tensor:
        """Probabilities of the frame shown last, in which the objects of masks (1, N, H, W), 0 or 1, begin.

        given_again: masks (1, O, H, W) of the O older objects in the same label map, empty where it does not show them.
        The rules of YouTube-VOS are to ignore these, and all methods do but STM-Cycle as published.
        """


class SegmenterOptions(Protocol):
    """How a method segments: a dataclass of plain values, which go into the settings of a folder of results."""

    def memorised(self, num_frames: int, starts: Collection[int]) -> frozenset[int]:
        """Frames of a video that later ones depend on, and that must be shown; starts: those where objects begin."""
