"""Samples of a first frame for fitting target models: the object cut out, moved and pasted onto the inpainted rest.

Here are the numbers, and what they mean as matrices and kernels; pipelines/first_frame/pixels.py applies them.
Coordinates are those of the published code: pixel centres at whole numbers. Source: FRTM, Robinson et al. 2020, and
MTMFI, whose augmenter is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np

from pipelines.order.streams import Stream

Hole = Literal["telea", "smooth", "grey"]

ROTATIONS = tuple(sign * angle for angle in (5.0, 10.0, 20.0, 30.0, 45.0) for sign in (1, -1))
MIRRORS = (False, False, False, False, True)
SCALES = (0.5, 0.7, 1.0, 1.5, 2.0, 2.5)
SKEWS = ((0.0, 0.0), (0.0, 0.0), (0.1, 0.1))
BLURS = (0, 0, 0, 2)
BLUR_ANGLES = (0.0, 45.0, 90.0, 135.0)
BACKGROUND_SCALES = (1.0, 1.0, 1.2)
BACKGROUND_BLURS = (0, 0, 1, 2, 5)

MAX_RADIUS = 3
"""Of a blur kernel, in pixels."""
SMALLEST_SIDE = 10.0
"""Pixels of an object's box that scaling keeps."""
JITTER = 0.125
"""Standard deviation of a centre within its cell, as a fraction of the cell."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class FirstFrameOptions:
    """How many samples, out of how many; the defaults are the published ones at inference (training: 15 samples).

    num_samples: with the frame as it is. num_made: candidates per round, of which those that show the object may be
    taken, at random. rounds: of candidates, before samples are filled up with the frame as it is. hole: what lies
    behind the object: Telea's inpainting on the CPU as published, a smooth fill on the device, or FRTM's grey.
    """

    num_samples: int = 5
    num_made: int = 19
    rounds: int = 5
    hole: Hole = "telea"

    def __post_init__(self) -> None:
        """Refuse what makes no samples."""
        if self.num_samples < 1 or self.num_made < 1 or self.rounds < 1:
            raise ValueError(f"num_samples, num_made and rounds must be at least 1: {self}")
        if self.hole not in get_args(Hole):
            raise ValueError(f"unknown hole {self.hole!r}; choose one of {', '.join(get_args(Hole))}")


class Variant(NamedTuple):
    """Numbers of one candidate. centre: of the object, as fractions of width and height; angles in degrees."""

    centre: tuple[float, float]
    rotation: float
    mirror: bool
    scale: float
    skew: tuple[float, float]
    blur: int
    blur_angle: float
    background_scale: float
    background_blur: int
    background_blur_angle: float


@dataclass(frozen=True, slots=True)
class FirstFramePlan:
    """Candidates in the order in which they are tried; seed: for the target models' random start, below 2**63."""

    variants: tuple[Variant, ...]
    seed: int


class Box(NamedTuple):
    """Extent of a mask in pixels; nothing where it is empty."""

    left: float
    top: float
    width: float
    height: float


def plan_first_frame(stream: Stream, size: tuple[int, int], options: FirstFrameOptions) -> FirstFramePlan:
    """The plan of one object in a frame of `size` = (height, width)."""
    seed = stream.word() >> 1
    centres = _draw_centres(stream, size, options.num_samples)
    variants = [variant for _ in range(options.rounds) for variant in _draw_round(stream, centres, options.num_made)]
    return FirstFramePlan(tuple(variants), seed)


def _draw_centres(stream: Stream, size: tuple[int, int], count: int) -> list[tuple[float, float]]:
    """`count` cells of a grid over the image, each jittered, in random order."""
    aspect = size[1] / size[0]
    rows = math.ceil(math.sqrt(count / aspect))
    columns = math.ceil(aspect * rows)
    centres = [
        (
            round((column + 0.5 + JITTER * _normal(stream)) / columns, 3),
            round((row + 0.5 + JITTER * _normal(stream)) / rows, 3),
        )
        for row in range(rows)
        for column in range(columns)
    ]
    return [centres[place] for place in stream.permutation(len(centres))[:count]]


def _draw_round(stream: Stream, centres: Sequence[tuple[float, float]], count: int) -> list[Variant]:
    """`count` candidates: every list of values spread over them, independently of the others."""
    columns = (
        _spread(stream, centres, count),
        _spread(stream, ROTATIONS, count),
        _spread(stream, MIRRORS, count),
        _spread(stream, SCALES, count),
        _spread(stream, SKEWS, count),
        _spread(stream, BLURS, count),
        _spread(stream, BLUR_ANGLES, count),
        _spread(stream, BACKGROUND_SCALES, count),
        _spread(stream, BACKGROUND_BLURS, count),
        _spread(stream, BLUR_ANGLES, count),
    )
    return [Variant(*values) for values in zip(*columns, strict=True)]


def _spread(stream: Stream, values: Sequence[Item], count: int) -> list[Item]:
    """The values repeated until there are at least `count`, shuffled, and cut."""
    repeated = list(values) * math.ceil(count / len(values))
    return [repeated[place] for place in stream.permutation(len(repeated))[:count]]


def _normal(stream: Stream) -> float:
    return NormalDist().inv_cdf(max(stream.uniform(), 2.0**-54))


def object_matrix(variant: Variant, box: Box, size: tuple[int, int]) -> np.ndarray:
    """(3, 3) float64, where a pixel of the frame goes; size = (height, width)."""
    height, width = size
    scale = variant.scale
    if scale * box.width > width or scale * box.height > height:
        scale = min(width / box.width, height / box.height)
    if scale * box.width < SMALLEST_SIDE or scale * box.height < SMALLEST_SIDE:
        scale = max(SMALLEST_SIDE / box.width, SMALLEST_SIDE / box.height)
    angle = math.radians(variant.rotation)
    cosine, sine = math.cos(angle), math.sin(angle)
    skew = np.array([[1, variant.skew[0], 0], [variant.skew[1], 1, 0], [0, 0, 1]])
    rotation = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    scaling = np.diag([-scale if variant.mirror else scale, scale, 1])
    to = _translation(variant.centre[0] * width, variant.centre[1] * height)
    matrix: np.ndarray = (
        to @ skew @ rotation @ scaling @ _translation(-box.left - box.width / 2, -box.top - box.height / 2)
    )
    return matrix


def background_matrix(variant: Variant, size: tuple[int, int]) -> np.ndarray:
    """(3, 3) float64: the frame scaled about its middle."""
    height, width = size
    scaling = np.diag([variant.background_scale, variant.background_scale, 1])
    matrix: np.ndarray = _translation(width / 2, height / 2) @ scaling @ _translation(-width / 2, -height / 2)
    return matrix


def _translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def blur_kernel(variance: int, angle: float) -> np.ndarray:
    """(7, 7) float64, sums to 1: a Gaussian of `variance` along `angle` (degrees) and 0.1 across, cut at its radius."""
    centre = np.zeros((2 * MAX_RADIUS + 1, 2 * MAX_RADIUS + 1))
    if variance == 0:
        centre[MAX_RADIUS, MAX_RADIUS] = 1
        return centre
    radius = int(variance / 2 + 0.5)
    radius += 1 - radius % 2
    turn = math.radians(angle)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    inverse = np.linalg.inv(rotation @ np.diag([variance, 0.1]) @ rotation.T)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    kernel = np.exp(-(inverse[0, 0] * x * x + 2 * inverse[0, 1] * x * y + inverse[1, 1] * y * y) / 2)
    inner = slice(MAX_RADIUS - radius, MAX_RADIUS + radius + 1)
    centre[inner, inner] = kernel / kernel.sum()
    return centre
