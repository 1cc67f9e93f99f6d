"""Geometry and colour of a clip as numbers: steps drawn as published, composed to one matrix per frame.

Geometry: every step is a 3x3 float64 matrix from its output to its input, in continuous coordinates (see types.py), so
the first step of a recipe stands leftmost in the product: source = flip @ crop @ affine @ output.
Colour: brightness, contrast, saturation and greyscale all have the form rgb -> scale * rgb + grey * luma(rgb) + offset
with three numbers, and so have their compositions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.order.streams import Stream
from pipelines.types import ColourStep

Matrix = NDArray[np.float64]

LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601 weights of red, green and blue, as in Pillow's mode L. Their sum is 1, which `Tone.after` relies on."""

CROP_TRIES = 10
"""As in torchvision's RandomResizedCrop."""


class Jitter(NamedTuple):
    """How far colour factors stray from 1: uniform in [1 - amount, 1 + amount], the three ops in random order."""

    brightness: float
    contrast: float
    saturation: float


class Crop(NamedTuple):
    """A rectangle in whole pixels of the image it is cut from."""

    top: int
    left: int
    height: int
    width: int


def draw_crop(stream: Stream, height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]) -> Crop:
    """Random crop of an image: area fraction uniform, aspect (width / height) log-uniform, within the given ranges.

    After ten tries that do not fit: the largest centred crop whose aspect lies in the range.
    Source: torchvision RandomResizedCrop, which RDE uses.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(CROP_TRIES):
        wanted = height * width * stream.uniform(*area)
        ratio = math.exp(stream.uniform(low, high))
        crop_width, crop_height = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = stream.integer(height - crop_height + 1)
            return Crop(top, stream.integer(width - crop_width + 1), crop_height, crop_width)
    return centre_crop(height, width, aspect)


def centre_crop(height: int, width: int, aspect: tuple[float, float]) -> Crop:
    """The largest crop in the middle of an image with width / height in the range `aspect`."""
    crop_height, crop_width = height, width
    if width / height < aspect[0]:
        crop_height = round(width / aspect[0])
    elif width / height > aspect[1]:
        crop_width = round(height * aspect[1])
    return Crop((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def crop_matrix(crop: Crop, size: tuple[int, int], *, flip_width: int | None = None) -> Matrix:
    """(3, 3): output of `size` (height, width) -> the crop of the source it shows.

    flip_width: width of the source if it is mirrored left to right before the crop is cut, None if it is not.
    """
    scale_y, scale_x = crop.height / size[0], crop.width / size[1]
    if flip_width is None:
        return np.array([[scale_x, 0, crop.left], [0, scale_y, crop.top], [0, 0, 1]])
    return np.array([[-scale_x, 0, flip_width - crop.left], [0, scale_y, crop.top], [0, 0, 1]])


def affine_matrices(
    rotations: ArrayLike, shears: ArrayLike, size: tuple[int, int], *, scales: ArrayLike = 1.0
) -> Matrix:
    """(T, 3, 3): output -> input of a scaling, a rotation and a shear along x about the middle of a canvas of `size`.

    rotations, shears: (T,) degrees; scales: (T,) or one, above 1 the content grows. The content turns clockwise on the
    screen (y points down) for a positive angle, and a positive shear moves its lower part to the left.
    Source: the inverse matrix of torchvision's affine.
    """
    angle = np.radians(np.asarray(rotations, np.float64))
    tangent = np.tan(np.radians(np.asarray(shears, np.float64)))
    cosine, sine = np.cos(angle), np.sin(angle)
    matrices = np.zeros((len(angle), 3, 3))
    # Inverse of rotation @ [[1, -tan], [0, 1]]; its determinant is 1.
    matrices[:, 0, 0], matrices[:, 0, 1] = cosine - sine * tangent, sine + cosine * tangent
    matrices[:, 1, 0], matrices[:, 1, 1] = -sine, cosine
    matrices /= np.asarray(scales, np.float64).reshape(-1, 1, 1)
    centre = np.array([size[1] / 2, size[0] / 2])
    matrices[:, :2, 2] = centre - matrices[:, :2, :2] @ centre
    matrices[:, 2, 2] = 1
    return matrices


class Tone(NamedTuple):
    """A colour transform: rgb -> scale * rgb + grey * luma(rgb) + offset, on the 0..255 scale."""

    scale: float = 1.0
    grey: float = 0.0
    offset: float = 0.0

    def after(self, first: Tone) -> Tone:
        """This transform applied to the result of `first`, with no clipping in between."""
        return Tone(
            self.scale * first.scale,
            self.scale * first.grey + self.grey * (first.scale + first.grey),
            (self.scale + self.grey) * first.offset + self.offset,
        )

    def of_grey(self, level: float) -> float:
        """Luma of the result for a pixel whose luma is `level`."""
        return (self.scale + self.grey) * level + self.offset


GREYSCALE = Tone(0.0, 1.0, 0.0)


def apply_step(step: ColourStep, before: Tone, mean_grey: float) -> Tone:
    """`before` followed by one enhancement.

    Contrast pulls towards the luma that a pixel of luma `mean_grey` has after `before`. The published recipe pulls
    towards the mean luma of the image at that point, which no plan can know without decoding it.
    """
    name, factor = step
    if name == "brightness":
        return Tone(factor, 0.0, 0.0).after(before)
    if name == "saturation":
        return Tone(factor, 1.0 - factor, 0.0).after(before)
    return Tone(factor, 0.0, (1.0 - factor) * before.of_grey(mean_grey)).after(before)


def draw_jitter(stream: Stream, jitter: Jitter) -> tuple[ColourStep, ...]:
    """The three enhancements with their factors, in random order. Takes six words of the stream."""
    brightness, contrast, saturation = (stream.uniform(1 - amount, 1 + amount) for amount in jitter)
    steps: list[ColourStep] = [("brightness", brightness), ("contrast", contrast), ("saturation", saturation)]
    order = sorted(zip([stream.word() for _ in steps], range(3), strict=True))
    return tuple(steps[position] for _, position in order)


def compose_steps(steps: Sequence[ColourStep], before: Tone, mean_grey: float) -> Tone:
    """`before` followed by all `steps` in order."""
    for step in steps:
        before = apply_step(step, before, mean_grey)
    return before


class ClipColours(NamedTuple):
    """Colours of a clip. clip_steps, then greyscale if set, then frame_steps[t]; tones[t] is their composition."""

    clip_steps: tuple[ColourStep, ...]
    grayscale: bool
    frame_steps: tuple[tuple[ColourStep, ...], ...]
    tones: tuple[Tone, ...]


def draw_colours(
    stream: Stream,
    num_frames: int,
    *,
    clip_jitter: Jitter,
    grayscale: float,
    frame_jitter: Jitter,
    mean_grey: float,
) -> ClipColours:
    """A jitter for the clip, greyscale with the given probability, and a jitter for each of its frames."""
    clip_steps = draw_jitter(stream, clip_jitter)
    is_grey = stream.happens(grayscale)
    tone = compose_steps(clip_steps, Tone(), mean_grey)
    tone = GREYSCALE.after(tone) if is_grey else tone
    frame_steps = tuple(draw_jitter(stream, frame_jitter) for _ in range(num_frames))
    tones = tuple(compose_steps(steps, tone, mean_grey) for steps in frame_steps)
    return ClipColours(clip_steps, is_grey, frame_steps, tones)


def hue_matrix(turn: float) -> Matrix:
    """(3, 3): hues shifted by `turn` of the full circle (red towards yellow for a small positive one), greys kept.

    A rotation of RGB about the axis of greys: the linear map that comes nearest to the published shift, which goes
    through HSV and is not linear. docs/order.md says how near.
    """
    cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn) / math.sqrt(3)
    same, before, after = cosine + (1 - cosine) / 3, (1 - cosine) / 3 - sine, (1 - cosine) / 3 + sine
    return np.array([[same, before, after], [after, same, before], [before, after, same]])


def colour_matrices(tones: Sequence[Tone], *, hue: float = 0.0) -> NDArray[np.float32]:
    """(T, 3, 4) float32: a shift of hues by `hue` of the circle, then each tone, as a matrix for (r, g, b, 1)."""
    numbers = np.array(tones)  # (T, 3): scale, grey, offset
    matrices = np.empty((len(numbers), 3, 4))
    matrices[:, :, :3] = numbers[:, 0, None, None] * np.eye(3) + numbers[:, 1, None, None] * np.array(LUMA)
    if hue:
        matrices[:, :, :3] @= hue_matrix(hue)
    matrices[:, :, 3] = numbers[:, 2, None]
    return matrices.astype(np.float32)


def luma(rgb: Sequence[float]) -> float:
    """Grey level of a colour, 0..255."""
    return sum(weight * level for weight, level in zip(LUMA, rgb, strict=True))


def sees_any(matrix: Matrix, size: tuple[int, int], boxes: NDArray[np.integer]) -> bool:
    """Whether a canvas of `size` (height, width) shows a part of any box of the source.

    matrix (3, 3): output -> source. boxes (n, 4): y0, x0, y1, x1 in pixels, ends exclusive. Exact for boxes; the object
    inside one may still be missed.
    """
    if not len(boxes):
        return False
    height, width = size
    canvas = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    seen = (matrix @ canvas)[:2]  # (2, 4) corners of the canvas in the source
    corners = boxes.astype(np.float64)
    x, y = corners[:, [1, 3, 1, 3]], corners[:, [0, 0, 2, 2]]  # (n, 4) each
    inverse = np.linalg.inv(matrix)
    # Two parallelograms are apart exactly if they are apart along x or y in the frame of one of them.
    return bool(
        np.any(
            _overlap(x, seen[0].min(), seen[0].max())
            & _overlap(y, seen[1].min(), seen[1].max())
            & _overlap(inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2], 0, width)
            & _overlap(inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2], 0, height)
        )
    )


def _overlap(corners: NDArray[np.float64], low: float, high: float) -> NDArray[np.bool_]:
    return (corners.min(axis=1) < high) & (corners.max(axis=1) > low)
