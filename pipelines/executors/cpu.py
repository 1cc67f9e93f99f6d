"""The fast CPU path, which defines correctness: turbo JPEG, one warp, one colour matrix, whole levels after each.

An image is sampled linearly between pixel centres and rounded to 8 bit, the colour matrix is applied and rounded again;
a label map takes the pixel that contains the sampling point (`geometry`), a soft mask is sampled like an image. Outside
the source are fill and label 0.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.executors.encoded import decode_jpeg_padded, decode_labels, fill_colour, has_soft_masks, jpeg_size
from pipelines.executors.frames import FrameExecutor
from pipelines.executors.geometry import NEIGHBOURS, SnappedMatrices, floor_matrices, pixel_centred, shifted, snap
from pipelines.types import VOID, ClipPixels, EncodedClip
from shards.reader import EncodedFrame

NO_COLOUR = np.eye(3, 4, dtype=np.float32)

Step = Literal["image decode", "mask decode", "warp", "colour"]
RunStep = Callable[..., Any]
"""run(step, work, *arguments) -> work(*arguments); the output of a warp and the image of `colour` are arguments."""


class CpuExecutor:
    """Executor over OpenCV and libjpeg-turbo; results are CPU tensors."""

    def __init__(self, *, threads: int = 1, run: RunStep | None = None) -> None:
        self._scratch = Scratch()
        self._run = run or run_step
        self._frames = FrameExecutor(threads)

    def __call__(self, clips: list[EncodedClip]) -> ClipPixels:
        """See Executor."""
        warps = {id(clip): ClipWarps.of(clip) for clip in clips}
        with one_opencv_thread():
            return self._frames(clips, lambda clip, *rest: self._render(warps[id(clip)], clip, *rest))

    def close(self) -> None:
        """See Executor."""
        self._frames.close()

    def _render(
        self,
        warps: ClipWarps,
        clip: EncodedClip,
        index: int,
        image_out: NDArray[np.uint8],
        labels_out: NDArray[np.uint8],
    ) -> None:
        plan, run = clip.plan, self._run
        image = self._decode(clip, index)
        scratch, warp = self._scratch.warped(plan.size), warp_nearest if plan.nearest_images else warp_image
        run("warp", warp, image, warps.images[index], fill_colour(plan), scratch, image_out)
        run("colour", apply_colour, image_out, plan.colours[index])
        labels = run("mask decode", decode_labels, clip, index)
        if has_soft_masks(clip):
            run("warp", warp_soft_mask, labels, warps.images[index], labels_out)
        elif plan.labels.unanimous:
            run("warp", warp_unanimous, labels, warps.labels[:, index], labels_out)
        else:
            run("warp", warp_labels, labels, warps.labels[0, index], labels_out)

    def _decode(self, clip: EncodedClip, index: int) -> NDArray[np.uint8]:
        """The frame's image, (h, w, 4). A still is decoded once for all frames of its clip."""
        scratch, frame = self._scratch, clip.frames[index]
        if scratch.shown is None or scratch.shown[0] is not frame:
            scratch.shown = None  # until the buffer holds all of it
            height, width = jpeg_size(clip, index)
            buffer = scratch.decoded(height * width * 4)
            scratch.shown = frame, self._run("image decode", decode_jpeg_padded, clip, index, buffer)
        return scratch.shown[1]


class ClipWarps(NamedTuple):
    """What OpenCV warps a clip's frames by. images (T, 2, 3); labels (1 or 4, T, 2, 3), one for each place to ask."""

    images: NDArray[np.float64]
    labels: NDArray[np.float64]

    @classmethod
    def of(cls, clip: EncodedClip) -> ClipWarps:
        """The plan's matrices, snapped. For all frames at once: array operations cost for one as much as for all."""
        plan = clip.plan
        snapped = snap(plan.matrices, plan.size)
        images = floor_matrices(snapped) if plan.nearest_images else pixel_centred(snapped.matrices)
        if plan.label_matrices is not None:
            snapped = snap(plan.label_matrices, plan.size)
        shifts = NEIGHBOURS if plan.labels.unanimous else ((0.0, 0.0),)
        moved = [SnappedMatrices(shifted(snapped.matrices, shift), snapped.half_steps) for shift in shifts]
        return cls(images, np.stack([floor_matrices(each) for each in moved]))


class Scratch(threading.local):
    """Memory of one thread, kept between frames: fresh pages for each would cost half as much as decoding.

    shown: the frame whose pixels lie in `decoded`, and those pixels.
    """

    def __init__(self) -> None:
        self.shown: tuple[EncodedFrame, NDArray[np.uint8]] | None = None
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
    """Linear warp of an (h, w, 4) image by a matrix (2, 3) of ClipWarps; its first 3 channels go to `out`.

    scratch (H, W, 4), out (H, W, 3). OpenCV 5 warps four channels in half the time of three, to the same pixels.
    """
    _warp_padded(image, matrix, fill, scratch, cv2.INTER_LINEAR)
    cv2.cvtColor(scratch, cv2.COLOR_RGBA2RGB, dst=out)


def warp_nearest(
    image: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    fill: tuple[int, int, int],
    scratch: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> None:
    """`warp_image` that takes the pixel under the sampling point, the one `warp_labels` takes."""
    _warp_padded(image, matrix, fill, scratch, cv2.INTER_NEAREST)
    cv2.cvtColor(scratch, cv2.COLOR_RGBA2RGB, dst=out)


def _warp_padded(
    image: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    fill: tuple[int, int, int],
    out: NDArray[np.uint8],
    interpolation: int,
) -> None:
    flags, size = interpolation | cv2.WARP_INVERSE_MAP, (out.shape[1], out.shape[0])
    cv2.warpAffine(image, matrix, size, dst=out, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(*fill, 0))


def apply_colour(image: NDArray[np.uint8], colour: NDArray[np.float32]) -> None:
    """Multiply the pixels of an (H, W, 3) image by a (3, 4) matrix in place, rounded and clipped to 0..255."""
    if not np.array_equal(colour, NO_COLOUR):
        cv2.transform(image, colour, dst=image)


def warp_labels(labels: NDArray[np.uint8] | None, matrix: NDArray[np.float64], out: NDArray[np.uint8]) -> None:
    """Nearest warp of a label map (h, w) by a matrix (2, 3) of ClipWarps.labels into `out` (H, W); zeros for None.

    Exact: out[row, column] = labels at floor(plan's matrix @ (column + 0.5, row + 0.5, 1)), 0 outside. OpenCV 5 rounds
    coordinates computed in float32; half a grid step in the matrix keeps them from meeting ties.
    """
    if labels is None:
        out[:] = 0
        return
    flags, size = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, (out.shape[1], out.shape[0])
    cv2.warpAffine(labels, matrix, size, dst=out, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def warp_unanimous(labels: NDArray[np.uint8] | None, matrices: NDArray[np.float64], out: NDArray[np.uint8]) -> None:
    """`warp_labels` by four matrices (4, 2, 3), void where the labels they find do not agree."""
    first, *others = matrices
    warp_labels(labels, first, out)
    other = np.empty_like(out)
    for matrix in others:
        warp_labels(labels, matrix, other)
        out[out != other] = VOID


def warp_soft_mask(levels: NDArray[np.uint8] | None, matrix: NDArray[np.float64], out: NDArray[np.uint8]) -> None:
    """Linear warp of a soft mask (h, w) by a matrix of ClipWarps.images into `out` (H, W); zeros for None."""
    if levels is None:
        out[:] = 0
        return
    flags, size = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, (out.shape[1], out.shape[0])
    cv2.warpAffine(levels, matrix, size, dst=out, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def run_step(_step: Step, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do one step of a frame. Whoever measures puts others here, which time steps or leave them out."""
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
