"""Clips of synthetic frames out of one still image, as in stage 0 of RDE. docs/order.md lists the deviations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.augmentation import (
    ClipColours,
    Crop,
    Jitter,
    Matrix,
    affine_matrices,
    colour_matrices,
    crop_matrix,
    draw_colours,
    luma,
)
from pipelines.order.curriculum import Table
from pipelines.order.sampling import annotated_frames
from pipelines.order.streams import Stream, StreamName
from pipelines.recipes.clip_length import length_at, set_clip_length
from pipelines.recipes.limits import Limits, set_checked
from pipelines.recipes.rde import IMAGENET_FILL
from pipelines.recipes.request import ClipRequest
from pipelines.spline import draw_points
from pipelines.types import IMAGENET, AreaRule, ClipPlan, ColourStep, Normalisation, StillSteps

LIMITS = {
    "num_frames": Limits(1, 1, whole=True),
    "size": Limits(2, 2, whole=True),
    "clip_scale": Limits(2, 1e-3, 1e3, rising=True),
    "flip": Limits(1, 0, 1),
    "grayscale": Limits(1, 0, 1),
    "hue": Limits(1, 0, 0.5),
    "rotation": Limits(1, 0, 180),
    "frame_scale": Limits(2, 1e-3, 1e3, rising=True),
    "shear": Limits(1, 0, 89),
    "spline": Limits(1, 0, 1),
    "spline_points": Limits(1, 4, whole=True),
    "spline_deviation": Limits(1, 0, 1),
    "damage_iou": Limits(2, 0, 1, rising=True),
    "clip_jitter": Limits(3, 0, 1),
    "frame_jitter": Limits(3, 0, 1),
    "fill": Limits(3, 0, 255),
}
STATIC_JITTER = Jitter(0.1, 0.05, 0.05)
OBJECT_ID = 1
"""Of what a soft mask shows."""


@dataclass(frozen=True, kw_only=True)
class RdeStatic:
    """Stage 0 of RDE; the defaults are the published values. Probabilities and fractions are in 0..1.

    Source: Li et al., Recurrent Dynamic Embedding for Video Object Segmentation, CVPR 2022, and its released code.
    """

    num_frames: int = 3
    clip_length: Table | None = None
    """Frames of a clip by progress, each 1 .. num_frames; None: num_frames throughout."""
    size: tuple[int, int] = (384, 384)
    """Height and width of the output in pixels, which must be equal: the shorter side of the image becomes as long. One
    number means a square."""
    clip_scale: tuple[float, float] = (0.8, 1.5)
    """Of the image in its own canvas, the same for all frames."""
    flip: float = 0.5
    clip_jitter: Jitter = STATIC_JITTER
    hue: float = 0.05
    """Largest shift of the clip's hues, as a fraction of the circle."""
    grayscale: float = 0.05
    rotation: float = 20.0
    """Degrees to either side, drawn per frame."""
    frame_scale: tuple[float, float] = (0.9, 1.1)
    shear: float = 10.0
    """Degrees to either side along x, drawn per frame."""
    frame_jitter: Jitter = STATIC_JITTER
    spline: float = 0.33
    """Probability that a frame is bent."""
    spline_points: int = 12
    spline_deviation: float = 0.02
    """How far control points move, as a standard deviation in each coordinate and a fraction of the side."""
    fill: tuple[float, float, float] = IMAGENET_FILL
    damage_iou: tuple[float, float] | None = (0.85, 1.0)
    """Range of the IoU at which damage of the first mask stops; None for no damage."""

    def __post_init__(self) -> None:
        """Bring values from YAML into their types; ValueError, naming the field, for values that make no clip."""
        set_checked(self, LIMITS, optional=("damage_iou",))
        object.__setattr__(self, "clip_jitter", Jitter(*self.clip_jitter))
        object.__setattr__(self, "frame_jitter", Jitter(*self.frame_jitter))
        set_clip_length(self, shortest=1)
        if self.size[0] != self.size[1]:
            raise ValueError(f"size must be a square, got {self.size}")
        if self.spline_points > self.size[0]:
            raise ValueError(f"spline_points must be at most size: no two in one row, got {self.spline_points}")

    @property
    def num_slots(self) -> int:
        """A still has one object."""
        return 1

    @property
    def min_frames(self) -> int:
        """A still is a video of one frame."""
        return 1

    @property
    def soft_masks(self) -> bool:
        """Reads soft masks."""
        return True

    @property
    def area_rule(self) -> AreaRule | None:
        """None: the object is taken as it is."""
        return None

    @property
    def normalisation(self) -> Normalisation:
        """That of ImageNet."""
        return IMAGENET

    @property
    def list_objects(self) -> None:
        """None: clips go round videos."""
        return None

    def plan(self, request: ClipRequest) -> ClipPlan:
        """The plan of one clip: several times the image, each seen through numbers of its own."""
        frame = int(annotated_frames(request.shard_set, request.video)[0])
        length = length_at(self, request.step, request.steps)
        damage, colour = request.stream(StreamName.DAMAGE), request.stream(StreamName.COLOUR)
        colours = draw_colours(
            colour,
            length,
            clip_jitter=self.clip_jitter,
            grayscale=self.grayscale,
            frame_jitter=self.frame_jitter,
            mean_grey=luma(self.fill),
        )
        hue = colour.uniform(-self.hue, self.hue)
        canvas = self._draw_canvas(request, length)
        return ClipPlan(
            number=request.number,
            dataset=request.dataset,
            video=request.video,
            frames=(frame,) * length,
            object_ids=(OBJECT_ID,),
            size=self.size,
            matrices=self._matrices(canvas)[:, :2].astype(np.float32),
            colours=colour_matrices(colours.tones, hue=hue),
            fill=self.fill,
            damage_key=damage.key(),
            damage_iou=None if self.damage_iou is None else damage.uniform(*self.damage_iou),
            trial=0,
            steps=_record(canvas, colours, hue, place=colour.integer(4)),
            splines=self._splines(request.stream(StreamName.SPLINE), length),
        )

    def _draw_canvas(self, request: ClipRequest, length: int) -> _Canvas:
        videos = request.shard_set.videos
        height, width = int(videos.height[request.video]), int(videos.width[request.video])
        resized = (self.size[0] * height // min(height, width), self.size[0] * width // min(height, width))
        stream = request.stream(StreamName.CROP)
        clip_scale, flip = stream.uniform(*self.clip_scale), stream.happens(self.flip)
        corners = [[stream.integer(side - self.size[0] + 1) for side in resized] for _ in range(length)]
        numbers = request.stream(StreamName.AFFINE).uniforms(3 * length).reshape(3, length)
        low, high = self.frame_scale
        affines = affine_matrices(
            self.rotation * (2 * numbers[0] - 1),
            self.shear * (2 * numbers[1] - 1),
            (height, width),
            scales=low + (high - low) * numbers[2],
        )
        return _Canvas((height, width), clip_scale, flip, affines, resized, tuple((top, left) for top, left in corners))

    def _matrices(self, canvas: _Canvas) -> Matrix:
        """(T, 3, 3): output -> crop -> resized image -> frame affine -> flip -> clip scale -> source."""
        height, width = canvas.size
        scaled = affine_matrices([0.0], [0.0], canvas.size, scales=canvas.clip_scale)[0]
        flipped = crop_matrix(Crop(0, 0, height, width), canvas.size, flip_width=width if canvas.flip else None)
        shrink = np.diag([width / canvas.resized[1], height / canvas.resized[0], 1.0])
        crops = np.stack([shrink @ np.array([[1.0, 0, left], [0, 1, top], [0, 0, 1]]) for top, left in canvas.corners])
        matrices: Matrix = scaled @ flipped @ canvas.affines @ crops
        return matrices

    def _splines(self, stream: Stream, length: int) -> tuple[NDArray[np.float64] | None, ...]:
        bent = [stream.happens(self.spline) for _ in range(length)]
        numbers = (self.spline_points, self.size[0], self.spline_deviation)
        return tuple(draw_points(stream, *numbers) if bends else None for bends in bent)


class _Canvas(NamedTuple):
    """The geometry of a clip as it was drawn; see StillSteps. size: (height, width) of the image."""

    size: tuple[int, int]
    clip_scale: float
    flip: bool
    affines: Matrix
    resized: tuple[int, int]
    corners: tuple[tuple[int, int], ...]


def _record(canvas: _Canvas, colours: ClipColours, hue: float, *, place: int) -> StillSteps:
    """The published steps; hue comes at `place` 0..3 among the clip's colours."""
    shift: ColourStep = ("hue", hue)
    return StillSteps(
        clip_scale=canvas.clip_scale,
        flip=canvas.flip,
        clip_colours=(*colours.clip_steps[:place], shift, *colours.clip_steps[place:]),
        grayscale=colours.grayscale,
        affines=canvas.affines[:, :2],
        resized=canvas.resized,
        corners=canvas.corners,
        frame_colours=colours.frame_steps,
    )
