"""The fast CPU path, which defines correctness: turbo JPEG, one warp, one colour matrix, whole levels after each.

An image is sampled linearly between pixel centres and rounded to 8 bit, the colour matrix is applied and rounded again;
a label map takes the pixel that contains the sampling point (`geometry`). Outside the source are fill and label 0.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.executors.encoded import decode_jpeg, decode_labels, fill_colour, jpeg_size
from pipelines.executors.frames import FrameExecutor
from pipelines.executors.geometry import pixel_centred, snap
from pipelines.types import ClipPixels, EncodedClip

NO_COLOUR = np.eye(3, 4, dtype=np.float32)


class CpuExecutor:
    """Executor over OpenCV and libjpeg-turbo; results are CPU tensors."""

    def __init__(self, *, threads: int = 1) -> None:
        self._scratch = threading.local()
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
        image = decode_jpeg(clip, index, self._buffer(jpeg_size(clip, index)))
        warp_image(image, matrix, fill_colour(plan), image_out)
        apply_colour(image_out, plan.colours[index])
        warp_labels(decode_labels(clip, index), matrix, snapped.half_steps[0], labels_out)

    def _buffer(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """This thread's memory for a decoded image: fresh pages for each would cost half as much as decoding."""
        needed = size[0] * size[1] * 3
        buffer: NDArray[np.uint8] | None = getattr(self._scratch, "buffer", None)
        if buffer is None or buffer.size < needed:
            buffer = self._scratch.buffer = np.empty(needed, np.uint8)
        return buffer


def warp_image(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], fill: tuple[int, int, int], out: NDArray[np.uint8]
) -> None:
    """Linear warp of an (h, w, 3) image by a snapped, pixel-centred matrix (2, 3) into `out` (H, W, 3)."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = out.shape[1], out.shape[0]
    cv2.warpAffine(image, matrix, size, dst=out, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)


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


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Keep OpenCV from splitting single frames while we run many; its setting is the process's, so put it back."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
