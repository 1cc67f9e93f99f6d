"""The published augmentation of each recipe, one step after the other, each rounded to 8 bit.

Slow on purpose: it is there to reproduce old numbers and to be measured against. Which steps, in which order and with
which interpolation, is written in the module of each recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pipelines.executors import paper_rde, paper_squash, paper_still, paper_stm_cycle
from pipelines.executors.frames import FrameExecutor
from pipelines.types import ClipPixels, ClipSteps, EncodedClip, SquashSteps, StillSteps, StmCycleSteps

Render = Callable[[EncodedClip, int, NDArray[np.uint8], NDArray[np.uint8]], None]

RENDERERS: Mapping[type, Render] = {
    ClipSteps: paper_rde.render,
    StillSteps: paper_still.render,
    StmCycleSteps: paper_stm_cycle.render,
    SquashSteps: paper_squash.render,
}


class PaperExecutor:
    """Executor over Pillow, OpenCV and imgaug; results are CPU tensors. Needs plans with `steps`."""

    def __init__(self, *, threads: int = 1) -> None:
        self._frames = FrameExecutor(threads)

    def __call__(self, clips: list[EncodedClip]) -> ClipPixels:
        """See Executor. Raises ValueError for plans of a recipe that has no published steps."""
        pixels = self._frames(clips, _render)
        bent = any(isinstance(clip.plan.steps, StillSteps) for clip in clips)
        return ClipPixels(pixels.images, pixels.labels, pixels.annotated, pixels.soft, bent)

    def close(self) -> None:
        """See Executor."""
        self._frames.close()


def _render(clip: EncodedClip, index: int, image_out: NDArray[np.uint8], labels_out: NDArray[np.uint8]) -> None:
    if clip.plan.steps is None:
        raise ValueError(f"clip {clip.plan.number}: its recipe has no published steps; use the cpu or dali executor")
    RENDERERS[type(clip.plan.steps)](clip, index, image_out, labels_out)
