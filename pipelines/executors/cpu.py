"""The fast CPU path, which defines correctness: turbo JPEG, one warp, one colour matrix, whole levels after each.

An image is sampled linearly between pixel centres and rounded to 8 bit, the colour matrix is applied and rounded again;
a label map takes the pixel that contains the sampling point (`geometry`), a soft mask is sampled like an image. Outside
the source are fill and label 0.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.executors.encoded import decode_jpeg_padded, decode_labels, fill_colour, has_soft_masks, jpeg_size
from pipelines.executors.frames import FrameExecutor
from pipelines.executors.geometry import pixel_centred, snap
from pipelines.types import ClipPixels, EncodedClip

NO_COLOUR = np.eye(3, 4, dtype=np.float32)


class CpuExecutor:
    """Executor over OpenCV and libjpeg-turbo; results are CPU tensors."""

    def __init__(self, *, threads: int = 1) -> None:
        self._scratch = Scratch()
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
        matrix = pixel_centred(snapped.matrices)[0]
        height, width = jpeg_size(clip, index)
        image = decode_jpeg_padded(clip, index, self._scratch.decoded(height * width * 4))
        warp_image(image, matrix, fill_colour(plan), self._scratch.warped(plan.size), image_out)
        apply_colour(image_out, plan.colours[index])
        if has_soft_masks(clip):
            warp_soft_mask(decode_labels(clip, index), matrix, labels_out)
        else:
            warp_labels(decode_labels(clip, index), matrix, snapped.half_steps[0], labels_out)


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


def warp_labels(
    labels: NDArray[np.uint8] | None,
    matrix: NDArray[np.float64],
    half_steps: NDArray[np.float64],
    out: NDArray[np.uint8],
) -> None:
    """Nearest warp of a label map (h, w) by a snapped, pixel-centred matrix into `out` (H, W); zeros for None.

    Exact: out[row, column] = labels at floor(matrix @ (column + 0.5, row + 0.5, 1)) of the matrix as the plan means it,
    0 outside. OpenCV 5 rounds coordinates computed in float32; half_steps (2,) keep it from meeting ties.
    """
    if labels is None:
        out[:] = 0
        return
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    size = out.shape[1], out.shape[0]
    shifted = np.column_stack([matrix[:, :2], matrix[:, 2] + half_steps])
    cv2.warpAffine(labels, shifted, size, dst=out, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def warp_soft_mask(levels: NDArray[np.uint8] | None, matrix: NDArray[np.float64], out: NDArray[np.uint8]) -> None:
    """Linear warp of a soft mask (h, w) by a snapped, pixel-centred matrix into `out` (H, W); zeros for None."""
    if levels is None:
        out[:] = 0
        return
    flags, size = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, (out.shape[1], out.shape[0])
    cv2.warpAffine(levels, matrix, size, dst=out, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Keep OpenCV from splitting single frames while we run many; its setting is the process's, so put it back."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
