"""Clips of video as STM-Cycle trains on them: corrected, and as each of its two published backends makes them.

The three differ in defaults only; every oddity of the published code is an option. docs/order.md lists them beside each
other, and what differs from the published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pipelines.augmentation import Crop, Matrix, crop_matrix, sees_any
from pipelines.order.curriculum import Table
from pipelines.order.sampling import annotated_frames
from pipelines.order.streams import Stream, StreamName
from pipelines.recipes.clip_length import length_at, set_clip_length
from pipelines.recipes.limits import Limits, check_choice, check_flags, set_checked, table_of
from pipelines.recipes.request import ClipRequest
from pipelines.types import IMAGENET, AreaRule, ClipPlan, Content, LabelRules, Normalisation, StmCycleSteps

LIMITS = {
    "num_frames": Limits(1, 1, whole=True),
    "num_slots": Limits(1, 1, 254, whole=True),
    "trials": Limits(1, 1, whole=True),
    "size": Limits(2, 1, whole=True),
    "largest_gap": Limits(1, 1, whole=True),
    "flip": Limits(1, 0, 1),
    "cut": Limits(1, 0, 0.45),
    "scale": Limits(2, 1e-3, 1e3, rising=True),
    "shear": Limits(1, 0, 80),
    "rotation": Limits(1, 0, 180),
    "corner_shear": Limits(2, 0, 0.9),
    "contrast": Limits(1, 0, 1),
    "brightness": Limits(1, 0, 255),
}
FLAGS = ("rotate_each_frame", "transpose_portrait", "nearest_images", "eroded_masks")
PASSES, INCREMENT_EVERY = 240, 5
GAPS = Table(tuple((k * INCREMENT_EVERY / PASSES, 50 + 5 * k) for k in range(PASSES // INCREMENT_EVERY)))
"""In frames of the video. By the gap_step of each data set this is 50, 55, .. 100 for DAVIS and 10, 11, .. 57 for
YouTube-VOS, in whose published units it grows by 1 every five passes."""
SCALAR = Normalisation((0.45,) * 3, (0.226,) * 3)
NORMALISATIONS = {"imagenet": IMAGENET, "scalar": SCALAR}
SLOT_RULES = ("visible", "all", "leading")
BLACK = (0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class StmCycle:
    """STM-Cycle's clips without the accidents of either backend. Probabilities and fractions are in 0..1.

    Source: Li et al., Delving into the Cyclic Mechanism in Semi-supervised Video Object Segmentation, NeurIPS 2020, and
    its released code.
    """

    num_frames: int = 3
    clip_length: Table | None = None
    """Frames of a clip by progress, each 2 .. num_frames; None: num_frames throughout."""
    num_slots: int = 5
    size: tuple[int, int] = (240, 427)
    """Height and width of the canvas in pixels. A frame is made as large as fits, its aspect kept; what it leaves of
    the canvas is black and void. One number means a square."""
    max_gap: Table = GAPS
    """In frames of the video. Neighbouring clip frames lie 1 to max_gap apart, always forward in time."""
    largest_gap: int = 100
    """In annotated frames, whatever max_gap says."""
    trials: int = 20
    """Choices of frames before a clip whose first frame shows no object is taken as it is."""
    flip: float = 0.5
    cut: float = 0.1
    """Largest fraction of the frame cut off at each side; the rest is resized back."""
    scale: tuple[float, float] = (0.95, 1.05)
    shear: float = 10.0
    """Degrees to either side."""
    rotation: float = 15.0
    """Degrees to either side."""
    rotate_each_frame: bool = False
    """Draw an angle for every frame, which looks like a shaking camera."""
    corner_shear: tuple[float, float] = (0.0, 0.0)
    """Largest x' = x + sx * y and y' = y + sy * x about the top left corner."""
    contrast: float = 0.03
    """Colours are multiplied by a factor within 1 - contrast .. 1 + contrast."""
    brightness: float = 5.0
    """Levels of 255 added, to either side."""
    transpose_portrait: bool = False
    """Swap the axes of frames that are higher than wide, objects lying on their side."""
    nearest_images: bool = False
    """Sample images as label maps are."""
    eroded_masks: bool = False
    """Leave pixels at the borders of labels without a label, as the published resize of masks does."""
    slots: Literal["visible", "all", "leading"] = "visible"
    """Which objects become slots. visible: those of the warped first frame, in random order. all: label k of the
    unwarped first frame is slot k, up to the highest, absent ones being empty slots; of more than num_slots, a random
    choice in order. leading: likewise, but the choice is among the labels before the first gap, if those are too
    many."""
    normalise: Literal["imagenet", "scalar"] = "imagenet"

    def __post_init__(self) -> None:
        """Bring values from YAML into their types; ValueError, naming the field, for values that make no clip."""
        set_checked(self, LIMITS)
        check_flags(self, FLAGS)
        check_choice("slots", self.slots, SLOT_RULES)
        check_choice("normalise", self.normalise, tuple(NORMALISATIONS))
        object.__setattr__(self, "max_gap", table_of("max_gap", self.max_gap, Limits(1, 1)))
        set_clip_length(self, shortest=2)

    @property
    def min_frames(self) -> int:
        """A clip has distinct frames."""
        return self.num_frames

    @property
    def soft_masks(self) -> bool:
        """Reads label maps."""
        return False

    @property
    def area_rule(self) -> AreaRule | None:
        """None: objects count however small."""
        return None

    @property
    def normalisation(self) -> Normalisation:
        """By the option."""
        return NORMALISATIONS[self.normalise]

    @property
    def list_objects(self) -> None:
        """None: clips go round videos."""
        return None

    @property
    def published(self) -> Literal["imgaug", "dali"] | None:
        """The backend whose steps these are; None if they were never published."""
        return None

    def plan(self, request: ClipRequest) -> ClipPlan:
        """The plan of one clip: that of the first trial whose first frame should show an object, or of the last."""
        numbers = self._draw_numbers(request)
        canvas = _Canvas.of(request, self.size, transpose=numbers.transpose, whole_part=self.published == "imgaug")
        matrices = _matrices(numbers, canvas)
        for trial in range(self.trials):
            frames = self._choose_frames(request, trial)
            objects = request.shard_set.objects(frames[0])
            boxes = objects.boxes if self.slots == "visible" else None
            if len(objects.ids) and (boxes is None or sees_any(matrices[0], self.size, boxes)):
                break
        return ClipPlan(
            number=request.number,
            dataset=request.dataset,
            video=request.video,
            frames=frames,
            object_ids=self._order_objects(request.stream(StreamName.OBJECTS, trial=trial), objects.ids.tolist()),
            size=self.size,
            matrices=matrices[:, :2].astype(np.float32),
            colours=np.tile(_colour_matrix(numbers), (len(frames), 1, 1)),
            fill=BLACK,
            damage_key=request.stream(StreamName.DAMAGE).key(),
            damage_iou=None,
            trial=trial,
            steps=numbers if self.published else None,
            labels=LabelRules(void_is_background=True, unanimous=self.eroded_masks, listed=self.slots != "visible"),
            nearest_images=self.nearest_images,
            content=canvas.content,
        )

    def _draw_numbers(self, request: ClipRequest) -> StmCycleSteps:
        videos = request.shard_set.videos
        height, width = int(videos.height[request.video]), int(videos.width[request.video])
        transpose = self.transpose_portrait and height > width
        sides = (width, height) if transpose else (height, width)
        stream, angles = request.stream(StreamName.CROP), request.stream(StreamName.AFFINE)
        flip = stream.happens(self.flip)
        top, right, bottom, left = (round(sides[axis] * stream.uniform(0, self.cut)) for axis in (0, 1, 0, 1))
        sheared = stream.uniform(-1, 1) * self.corner_shear[0], stream.uniform(-1, 1) * self.corner_shear[1]
        scale, shear = angles.uniform(*self.scale), angles.uniform(-self.shear, self.shear)
        length = length_at(self, request.step, request.steps)
        rotations = (self.rotation * (2 * angles.uniforms(length) - 1)).tolist()
        colour = request.stream(StreamName.COLOUR)
        return StmCycleSteps(
            backend=self.published or "imgaug",
            transpose=transpose,
            corner_shear=sheared,
            cut=(top, right, bottom, left),
            scale=scale,
            shear=shear,
            rotations=tuple(rotations if self.rotate_each_frame else rotations[:1] * length),
            contrast=colour.uniform(1 - self.contrast, 1 + self.contrast),
            brightness=colour.uniform(-self.brightness, self.brightness),
            flip=flip,
        )

    def _choose_frames(self, request: ClipRequest, trial: int) -> tuple[int, ...]:
        rows = annotated_frames(request.shard_set, request.video)
        reach = min(max(1, int(self.max_gap.at(request.step, request.steps)) // request.gap_step), self.largest_gap)
        stream = request.stream(StreamName.FRAMES, trial=trial)
        length = length_at(self, request.step, request.steps)
        return tuple(rows[choose_positions(stream, len(rows), reach, length)].tolist())

    def _order_objects(self, stream: Stream, ids: list[int]) -> tuple[int, ...]:
        if self.slots == "visible":
            return tuple(ids[position] for position in stream.permutation(len(ids)))
        candidates, limit = max(ids, default=0), self.num_slots
        if self.slots == "leading":
            leading = next(label for label in range(1, 256) if label not in ids) - 1
            candidates = leading if leading > limit else min(candidates, limit)
        chosen = stream.permutation(candidates)[:limit] + 1 if candidates > limit else np.arange(1, candidates + 1)
        return tuple(sorted(chosen.tolist()))


@dataclass(frozen=True, kw_only=True)
class StmCyclePaper(StmCycle):
    """The clips of the PIL and imgaug backend, by which the published ResNet-50 was trained."""

    transpose_portrait: bool = True
    eroded_masks: bool = True
    slots: Literal["visible", "all", "leading"] = "leading"

    @property
    def published(self) -> Literal["imgaug", "dali"] | None:
        """By imgaug."""
        return "imgaug"


@dataclass(frozen=True, kw_only=True)
class StmCycleDali(StmCycle):
    """The clips of the DALI backend, by which the published ResNet-18 was trained."""

    trials: int = 1
    cut: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    rotation: float = 10.0
    rotate_each_frame: bool = True
    corner_shear: tuple[float, float] = (0.04, 0.025)
    contrast: float = 0.0
    brightness: float = 0.0
    nearest_images: bool = True
    slots: Literal["visible", "all", "leading"] = "all"
    normalise: Literal["imagenet", "scalar"] = "scalar"

    @property
    def published(self) -> Literal["imgaug", "dali"] | None:
        """By DALI."""
        return "dali"


class _Canvas(NamedTuple):
    """A frame and where it goes. height, width: of the frame, its axes swapped if `turn` (3, 3) swaps them."""

    height: int
    width: int
    turn: Matrix
    content: Content

    @classmethod
    def of(cls, request: ClipRequest, size: tuple[int, int], *, transpose: bool, whole_part: bool) -> _Canvas:
        videos = request.shard_set.videos
        height, width = int(videos.height[request.video]), int(videos.width[request.video])
        if not transpose:
            return cls(height, width, np.eye(3), fit((height, width), size, whole_part=whole_part))
        swap = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
        return cls(width, height, swap, fit((width, height), size, whole_part=whole_part))


def fit(source: tuple[int, int], size: tuple[int, int], *, whole_part: bool) -> Content:
    """The largest middle part of a canvas of `size` with the aspect of `source`, both (height, width).

    whole_part: cut the sides off to whole pixels, as the imgaug backend does, else round them, as DALI does.
    """
    factor = min(size[0] / source[0], size[1] / source[1])
    height, width = (max(1, int(side * factor) if whole_part else int(side * factor + 0.5)) for side in source)
    return Content((size[0] - height) // 2, (size[1] - width) // 2, height, width)


def choose_positions(stream: Stream, count: int, max_gap: int, num_frames: int) -> list[int]:
    """Positions 0 .. count - 1 of a clip's frames, rising by 1 to max_gap, each as likely as its room allows.

    The first leaves room for the others. Takes num_frames words. ValueError if there are fewer frames than asked for.
    """
    if count < num_frames:
        raise ValueError(f"a clip of {num_frames} frames out of {count}")
    positions = [stream.integer(count - num_frames + 1)]
    for k in range(1, num_frames):
        last = min(positions[-1] + max_gap, count - num_frames + k)
        positions.append(positions[-1] + 1 + stream.integer(last - positions[-1]))
    return positions


def affine_matrix(scale: float, rotation: float, shear: float, size: tuple[int, int]) -> Matrix:
    """(3, 3): input -> output of imgaug's affine about the middle of a canvas of `size`; degrees, clockwise on screen.

    The shear turns the y axis alone: (0, 1) becomes (-sin, cos) of rotation + shear.
    Source: skimage's AffineTransform before 0.19, from which imgaug 0.4 has its matrix.
    """
    angle, tilted = np.radians(rotation), np.radians(rotation + shear)
    linear = scale * np.array([[np.cos(angle), -np.sin(tilted)], [np.sin(angle), np.cos(tilted)]])
    matrix, centre = np.eye(3), np.array([size[1] / 2, size[0] / 2])
    matrix[:2, :2], matrix[:2, 2] = linear, centre - linear @ centre
    return matrix


def corner_shear_matrix(shear_x: float, shear_y: float) -> Matrix:
    """(3, 3): output -> input of a forward map x' = x + shear_x * y, y' = y + shear_y * x about the top left corner."""
    return np.linalg.inv(np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1.0]]))


def _matrices(numbers: StmCycleSteps, canvas: _Canvas) -> Matrix:
    """(T, 3, 3): output -> content -> flip -> affine -> cut or corner shear -> axes -> source."""
    size, content = (canvas.height, canvas.width), canvas.content
    top, right, bottom, left = numbers.cut
    cut = Crop(top, left, canvas.height - top - bottom, canvas.width - left - right)
    whole = Crop(0, 0, canvas.height, canvas.width)
    flip = crop_matrix(whole, size, flip_width=canvas.width if numbers.flip else None)
    resize = np.array(
        [
            [canvas.width / content.width, 0, -content.left * canvas.width / content.width],
            [0, canvas.height / content.height, -content.top * canvas.height / content.height],
            [0, 0, 1],
        ]
    )
    before = canvas.turn @ corner_shear_matrix(*numbers.corner_shear) @ crop_matrix(cut, size)
    affines = [affine_matrix(numbers.scale, angle, numbers.shear, size) for angle in numbers.rotations]
    return np.stack([before @ np.linalg.inv(affine) @ flip @ resize for affine in affines])


def _colour_matrix(numbers: StmCycleSteps) -> np.ndarray:
    """(3, 4): the factor on every channel, then the levels added."""
    return np.column_stack([numbers.contrast * np.eye(3), np.full(3, numbers.brightness)]).astype(np.float32)
