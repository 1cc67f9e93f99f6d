"""Clips of video as RDE trains on them. docs/order.md lists what differs from the published code, and why."""

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
    draw_crop,
    luma,
    sees_any,
)
from pipelines.order.curriculum import Table
from pipelines.order.sampling import annotated_frames
from pipelines.order.streams import Stream, StreamName
from pipelines.recipes.clip_length import length_at, set_clip_length
from pipelines.recipes.limits import Limits, check_numbers, set_checked, table_of
from pipelines.recipes.request import ClipRequest
from pipelines.types import IMAGENET, AreaRule, ClipPlan, ClipSteps, Normalisation
from shards.masks import FrameObjects

LIMITS = {
    "num_frames": Limits(1, 1, whole=True),
    "num_slots": Limits(1, 1, 254, whole=True),
    "min_frames": Limits(1, 1, whole=True),
    "trials": Limits(1, 1, whole=True),
    "size": Limits(2, 1, whole=True),
    "reverse": Limits(1, 0, 1),
    "flip": Limits(1, 0, 1),
    "grayscale": Limits(1, 0, 1),
    "rotation": Limits(1, 0, 180),
    "shear": Limits(1, 0, 89),
    "crop_area": Limits(2, 1e-6, 1, rising=True),
    "crop_aspect": Limits(2, 1e-6, 1e6, rising=True),
    "damage_iou": Limits(2, 0, 1, rising=True),
    "clip_jitter": Limits(3, 0, 1),
    "frame_jitter": Limits(3, 0, 1),
    "fill": Limits(3, 0, 255),
}

AREA_LIMITS = Limits(3, 0, whole=True)

IMAGENET_FILL = (124.0, 116.0, 104.0)
"""The ImageNet mean as grey levels: what RDE shows where a warp leaves the image."""

RDE_GAPS = Table(((0.0, 5), (0.1, 10), (0.2, 15), (0.3, 20), (0.4, 25), (0.9, 5)))
BL30K_GAPS = Table((*RDE_GAPS.rows[:-1], (0.8, 5)))
BL30K_AREAS = AreaRule(large=900, small=100, later=400)
CLIP_JITTER = Jitter(0.1, 0.03, 0.03)
FRAME_JITTER = Jitter(0.01, 0.01, 0.01)


@dataclass(frozen=True, kw_only=True)
class RdeVideo:
    """Stages 2 and 3 of RDE; the defaults are the published values. Probabilities and fractions are in 0..1.

    Source: Li et al., Recurrent Dynamic Embedding for Video Object Segmentation, CVPR 2022, and its released code.
    """

    num_frames: int = 5
    clip_length: Table | None = None
    """Frames of a clip by progress, each 1 .. num_frames; None: num_frames throughout."""
    num_slots: int = 2
    min_frames: int = 3
    """Annotated frames below which a video is left out; a video shorter than the clip repeats frames."""
    size: tuple[int, int] = (384, 384)
    """Height and width of the output in pixels; one number means a square."""
    max_gap: Table = RDE_GAPS
    """In frames of the video. Neighbouring clip frames lie 1 to max_gap + 1 apart: the published code adds one."""
    reverse: float = 0.5
    """Probability that the clip runs backwards in time."""
    flip: float = 0.5
    crop_area: tuple[float, float] = (0.36, 1.0)
    """Fraction of the image that the crop keeps."""
    smallest_crop: Table | None = None
    """Smallest of these fractions by progress, in place of the first of crop_area; None: it never changes."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    clip_jitter: Jitter = CLIP_JITTER
    grayscale: float = 0.05
    rotation: float = 15.0
    """Degrees to either side, drawn per frame."""
    shear: float = 10.0
    """Degrees to either side along x, drawn per frame."""
    frame_jitter: Jitter = FRAME_JITTER
    fill: tuple[float, float, float] = IMAGENET_FILL
    damage_iou: tuple[float, float] | None = (0.85, 1.0)
    """Range of the IoU at which damage of the first mask stops; None for no damage."""
    trials: int = 5
    """Choices of frames and crop before a clip that shows no object is taken as it is."""
    area_rule: AreaRule | None = None
    """Which objects of the warped masks may be chosen (large, small, later); None: every visible one."""

    def __post_init__(self) -> None:
        """Bring values from YAML into their types; ValueError, naming the field, for values that make no clip."""
        set_checked(self, LIMITS, optional=("damage_iou",))
        object.__setattr__(self, "clip_jitter", Jitter(*self.clip_jitter))
        object.__setattr__(self, "frame_jitter", Jitter(*self.frame_jitter))
        object.__setattr__(self, "max_gap", table_of("max_gap", self.max_gap, Limits(1, 1)))
        if self.smallest_crop is not None:
            limits = Limits(1, LIMITS["crop_area"].low, self.crop_area[1])
            object.__setattr__(self, "smallest_crop", table_of("smallest_crop", self.smallest_crop, limits))
        if self.area_rule is not None:
            rule = self.area_rule
            numbers = (rule.large, rule.small, rule.later) if isinstance(rule, AreaRule) else rule
            object.__setattr__(self, "area_rule", AreaRule(*check_numbers("area_rule", numbers, AREA_LIMITS)))
            check_numbers("num_frames", self.num_frames, Limits(1, 3, whole=True))
        set_clip_length(self, shortest=1 if self.area_rule is None else 3)

    @property
    def soft_masks(self) -> bool:
        """Reads label maps."""
        return False

    @property
    def normalisation(self) -> Normalisation:
        """That of ImageNet."""
        return IMAGENET

    @property
    def list_objects(self) -> None:
        """None: clips go round videos."""
        return None

    def plan(self, request: ClipRequest) -> ClipPlan:
        """The plan of one clip: that of the first trial that should show an object, or of the last one."""
        for trial in range(self.trials):
            view = self._view(request, trial)
            if sees_any(view.matrices[0], self.size, self._boxes_to_see(view)):
                break
        order = request.stream(StreamName.OBJECTS, trial=trial).permutation(len(view.objects.ids))
        damage = request.stream(StreamName.DAMAGE)
        colours = self._draw_colours(request, trial)
        return ClipPlan(
            number=request.number,
            dataset=request.dataset,
            video=request.video,
            frames=view.frames,
            object_ids=tuple(view.objects.ids[order].tolist()),
            size=self.size,
            matrices=view.matrices[:, :2].astype(np.float32),
            colours=colour_matrices(colours.tones),
            fill=self.fill,
            damage_key=damage.key(),
            damage_iou=None if self.damage_iou is None else damage.uniform(*self.damage_iou),
            trial=trial,
            steps=_record(view, colours),
        )

    def _areas(self, request: ClipRequest) -> tuple[float, float]:
        """Range of the fraction of the image that a crop of this step keeps."""
        if self.smallest_crop is None:
            return self.crop_area
        return self.smallest_crop.at(request.step, request.steps), self.crop_area[1]

    def _view(self, request: ClipRequest, trial: int) -> _View:
        frames = self._choose_frames(request, trial)
        videos = request.shard_set.videos
        height, width = int(videos.height[request.video]), int(videos.width[request.video])
        stream, length = request.stream(StreamName.CROP, trial=trial), len(frames)
        flip_width = width if stream.happens(self.flip) else None
        crop = draw_crop(stream, height, width, self._areas(request), self.crop_aspect)
        angles = 2 * request.stream(StreamName.AFFINE, trial=trial).uniforms(2 * length) - 1
        rotations, shears = self.rotation * angles[:length], self.shear * angles[length:]
        affines = affine_matrices(rotations, shears, self.size)
        matrices = crop_matrix(crop, self.size, flip_width=flip_width) @ affines
        return _View(frames, request.shard_set.objects(frames[0]), crop, flip_width, affines, matrices)

    def _boxes_to_see(self, view: _View) -> NDArray[np.integer]:
        """Boxes of the objects that may be chosen, if the crop shows them whole."""
        if self.area_rule is None:
            return view.objects.boxes
        magnification = 1 / abs(np.linalg.det(view.matrices[0]))
        return view.objects.boxes[view.objects.areas * magnification > self.area_rule.small]

    def _draw_colours(self, request: ClipRequest, trial: int) -> ClipColours:
        return draw_colours(
            request.stream(StreamName.COLOUR, trial=trial),
            length_at(self, request.step, request.steps),
            clip_jitter=self.clip_jitter,
            grayscale=self.grayscale,
            frame_jitter=self.frame_jitter,
            mean_grey=luma(self.fill),
        )

    def _choose_frames(self, request: ClipRequest, trial: int) -> tuple[int, ...]:
        rows = annotated_frames(request.shard_set, request.video)
        # Gaps count annotated frames. A published gap below the step would be 0 and starts could leave the video.
        max_gap = max(1, int(self.max_gap.at(request.step, request.steps)) // request.gap_step)
        stream = request.stream(StreamName.FRAMES, trial=trial)
        positions = choose_positions(stream, len(rows), max_gap, length_at(self, request.step, request.steps))
        if stream.happens(self.reverse):
            positions = positions[::-1]
        return tuple(rows[positions].tolist())


@dataclass(frozen=True, kw_only=True)
class RdeBl30k(RdeVideo):
    """Stage 1 of RDE: as stages 2 and 3, but for wider crops, no tiny objects, and a curriculum that ends earlier."""

    crop_area: tuple[float, float] = (0.25, 1.0)
    max_gap: Table = BL30K_GAPS
    area_rule: AreaRule | None = BL30K_AREAS


class _View(NamedTuple):
    """What one trial shows. frames: rows of the frame table; objects: of the first of them; matrices: (T, 3, 3)."""

    frames: tuple[int, ...]
    objects: FrameObjects
    crop: Crop
    flip_width: int | None
    affines: Matrix
    matrices: Matrix


def _record(view: _View, colours: ClipColours) -> ClipSteps:
    return ClipSteps(
        flip=view.flip_width is not None,
        crop=view.crop,
        clip_colours=colours.clip_steps,
        grayscale=colours.grayscale,
        affines=view.affines[:, :2],
        frame_colours=colours.frame_steps,
    )


def choose_positions(stream: Stream, count: int, max_gap: int, num_frames: int) -> list[int]:
    """Positions 0 .. count - 1 of a clip's frames as RDE draws them, before a possible reversal.

    Each is 1 to t + 1 after the last, t = min(count, max_gap), but not beyond min(count - t // k, count - 1) for the
    k-th after the first: in short videos positions repeat or go backwards, as published. Takes num_frames words.
    """
    reach = min(count, max_gap)
    start = stream.integer(max(max_gap // 2 + 1, count - num_frames * reach + 1))
    # The published start leaves a video shorter than half the gap; there it stops at the last frame.
    positions = [min(start, count - 1)]
    for k in range(1, num_frames):
        following = positions[-1] + 1 + stream.integer(reach + 1)
        positions.append(min(following, count - reach // k, count - 1))
    return positions
