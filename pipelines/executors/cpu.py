"""The fast CPU path, which defines correctness: turbo JPEG, one warp, one colour matrix, whole levels after each.

An image is sampled linearly between pixel centres and rounded to 8 bit, the colour matrix is applied and rounded again;
a label map takes the pixel that contains the sampling point (`geometry`), a soft mask is sampled like an image. Outside
the source are fill and label 0.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.executors.encoded import decode_jpeg_padded, decode_labels, fill_colour, has_soft_masks, jpeg_size
from pipelines.executors.frames import FrameExecutor
from pipelines.executors.geometry import NEIGHBOURS, SnappedMatrices, floor_matrix, pixel_centred, shifted, snap
from pipelines.types import VOID, ClipPixels, EncodedClip

NO_COLOUR = np.eye(3, 4, dtype=np.float32)

Step = Literal["image decode", "mask decode", "warp", "colour"]
RunStep = Callable[..., Any]
"""run(step, work, *arguments) -> work(*arguments); the output of a warp and the image of `colour` are arguments."""


class CpuExecutor:
    """Executor over OpenCV and libjpeg-turbo; results are CPU tensors."""

    def __init__(self, *, threads: int = 1, run: RunStep | None = None) -> None:
        self._scratch = Scratch()
        self._run = run or run_step
        self._frames = FrameExecutor(self._render, threads)

    def __call__(self, clips: list[EncodedClip]) -> ClipPixels:
        """See Executor."""
        with one_opencv_thread():
            return self._frames(clips)

    def close(self) -> None:
        """See Executor."""
        self._frames.close()

    def _render(
        self, clip: EncodedClip, index: int, image_out: NDArray[np.uint8], labels_out: NDArray[np.uint8]
    ) -> None:
        plan = clip.plan
        snapped = snap(plan.matrices[index][None], plan.size)
        height, width = jpeg_size(clip, index)
        image = self._run("image decode", decode_jpeg_padded, clip, index, self._scratch.decoded(height * width * 4))
        scratch = self._scratch.warped(plan.size)
        if plan.nearest_images:
            self._run("warp", warp_nearest, image, snapped, fill_colour(plan), scratch, image_out)
        else:
            matrix = pixel_centred(snapped.matrices)[0]
            self._run("warp", warp_image, image, matrix, fill_colour(plan), scratch, image_out)
        self._run("colour", apply_colour, image_out, plan.colours[index])
        labels = self._run("mask decode", decode_labels, clip, index)
        if has_soft_masks(clip):
            self._run("warp", warp_soft_mask, labels, pixel_centred(snapped.matrices)[0], labels_out)
            return
        if plan.label_matrices is not None:
            snapped = snap(plan.label_matrices[index][None], plan.size)
        warp = warp_unanimous if plan.labels.unanimous else warp_labels
        self._run("warp", warp, labels, snapped, labels_out)


class Scratch(threading.local):
    """Memory of one thread, kept between frames: fresh pages for each would cost half as much as decoding."""

    def __init__(self) -> None:
        self._decoded = np.empty(0, np.uint8)
        self._warped = np.empty((0, 0, 4), np.uint8)

    def decoded(self, count: int) -> NDArray[np.uint8]:
        """At least `count` bytes, flat."""
        if self._decoded.size < count:
            self._decoded = np.empty(count, np.uint8)
        return self._decoded

    def warped(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """(height, width, 4)."""
        if self._warped.shape[:2] != size:
            self._warped = np.empty((*size, 4), np.uint8)
        return self._warped


def warp_image(
    image: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    fill: tuple[int, int, int],
    scratch: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> None:
    """Linear warp of an (h, w, 4) image by a snapped, pixel-centred matrix (2, 3); its first 3 channels go to `out`.

    scratch (H, W, 4), out (H, W, 3). OpenCV 5 warps four channels in half the time of three, to the same pixels.
    """
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = out.shape[1], out.shape[0]
    cv2.warpAffine(
        image, matrix, size, dst=scratch, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(*fill, 0)
    )
    cv2.cvtColor(scratch, cv2.COLOR_RGBA2RGB, dst=out)


def apply_colour(image: NDArray[np.uint8], colour: NDArray[np.float32]) -> None:
    """Multiply the pixels of an (H, W, 3) image by a (3, 4) matrix in place, rounded and clipped to 0..255."""
    if not np.array_equal(colour, NO_COLOUR):
        cv2.transform(image, colour, dst=image)


def warp_nearest(
    image: NDArray[np.uint8],
    snapped: SnappedMatrices,
    fill: tuple[int, int, int],
    scratch: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> None:
    """`warp_image` that takes the pixel under the sampling point, the one `warp_labels` takes."""
    matrix, flags, border = floor_matrix(snapped), cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, cv2.BORDER_CONSTANT
    size = out.shape[1], out.shape[0]
    cv2.warpAffine(image, matrix, size, dst=scratch, flags=flags, borderMode=border, borderValue=(*fill, 0))
    cv2.cvtColor(scratch, cv2.COLOR_RGBA2RGB, dst=out)


def warp_labels(labels: NDArray[np.uint8] | None, snapped: SnappedMatrices, out: NDArray[np.uint8]) -> None:
    """Nearest warp of a label map (h, w) by the first of some snapped matrices into `out` (H, W); zeros for None.

    Exact: out[row, column] = labels at floor(matrix @ (column + 0.5, row + 0.5, 1)), 0 outside. OpenCV 5 rounds
    coordinates computed in float32; half a grid step keeps them from meeting ties.
    """
    if labels is None:
        out[:] = 0
        return
    flags, size = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, (out.shape[1], out.shape[0])
    matrix = floor_matrix(snapped)
    cv2.warpAffine(labels, matrix, size, dst=out, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def warp_unanimous(labels: NDArray[np.uint8] | None, snapped: SnappedMatrices, out: NDArray[np.uint8]) -> None:
    """`warp_labels` that gives void where the four source pixels that linear sampling would blend do not agree."""
    other = np.empty_like(out)
    for number, shift in enumerate(NEIGHBOURS):
        moved = SnappedMatrices(shifted(snapped.matrices, shift), snapped.half_steps)
        warp_labels(labels, moved, other if number else out)
        if number:
            out[out != other] = VOID


def warp_soft_mask(levels: NDArray[np.uint8] | None, matrix: NDArray[np.float64], out: NDArray[np.uint8]) -> None:
    """Linear warp of a soft mask (h, w) by a snapped, pixel-centred matrix into `out` (H, W); zeros for None."""
    if levels is None:
        out[:] = 0
        return
    flags, size = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, (out.shape[1], out.shape[0])
    cv2.warpAffine(levels, matrix, size, dst=out, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def run_step(_step: Step, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do one step of a frame. `pipelines.data_variants` has others in its place, which time steps or leave them out."""
    return work(*arguments)


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Keep OpenCV from splitting single frames while we run many; its setting is the process's, so put it back."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
