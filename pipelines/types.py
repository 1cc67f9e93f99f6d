"""The nouns of the data path: the plan of a clip, the pixels made from it, the batch a trainer gets.

Coordinates are continuous: pixel (column 0, row 0) covers [0, 1) x [0, 1) and has its centre at (0.5, 0.5). Every
matrix maps output coordinates to source coordinates (x, y, 1), so composing two steps is a matrix product and no
executor needs to know how many steps there were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shards.masks import MaskCodec
from shards.reader import EncodedFrame

VOID = 255
"""Label of pixels nobody may be judged on; kept in slot maps, ignored by losses."""


ColourStep = tuple[Literal["brightness", "contrast", "saturation", "hue"], float]
"""One enhancement and its factor (1.0 changes nothing), named as in Pillow's ImageEnhance. Of hue: by what part of the
circle it turns; published steps may hold it, composed colours have it apart."""


@dataclass(frozen=True, slots=True, eq=False)
class ClipSteps:
    """The steps a plan's matrices were composed from, in order; only the paper executor reads them.

    flip: mirror the source image left to right. crop: (top, left, height, width) in whole pixels of the flipped image,
    resized to plan.size. clip_colours: steps shared by all frames, in the order applied. grayscale: all frames to luma.
    affines: (T, 2, 3) float64, output -> resized canvas, both of plan.size, continuous coordinates; plan.fill
    outside. frame_colours: T sequences of steps, one per frame, applied last.
    """

    flip: bool
    crop: tuple[int, int, int, int]
    clip_colours: tuple[ColourStep, ...]
    grayscale: bool
    affines: NDArray[np.float64]
    frame_colours: tuple[tuple[ColourStep, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class StillSteps:
    """The steps of a clip of a still image (RDE's stage 0), in the order they are applied.

    clip_scale: about the middle, on the image's own canvas. flip: mirror it. clip_colours, grayscale, frame_colours: as
    in ClipSteps. affines: (T, 2, 3) float64, output -> input on that canvas. resized: (height, width) of the image when
    its shorter side is as long as the output's. corners: T times (top, left) of the square cut from it. The plan's
    splines come last.
    """

    clip_scale: float
    flip: bool
    clip_colours: tuple[ColourStep, ...]
    grayscale: bool
    affines: NDArray[np.float64]
    resized: tuple[int, int]
    corners: tuple[tuple[int, int], ...]
    frame_colours: tuple[tuple[ColourStep, ...], ...]


@dataclass(frozen=True, slots=True)
class StmCycleSteps:
    """The steps of an STM-Cycle plan in the order of its backend, as `pipelines.recipes.stm_cycle` draws them.

    backend: whose order, interpolations and rounding. transpose: swap the axes of the frame. corner_shear: (x, y) about
    the top left corner. cut: (top, right, bottom, left) whole pixels taken off, the rest resized back. scale, shear
    (degrees): of the clip; rotations: T angles in degrees. contrast: factor; brightness: levels added; flip: mirror.
    """

    backend: Literal["imgaug", "dali"]
    transpose: bool
    corner_shear: tuple[float, float]
    cut: tuple[int, int, int, int]
    scale: float
    shear: float
    rotations: tuple[float, ...]
    contrast: float
    brightness: float
    flip: bool


@dataclass(frozen=True, slots=True)
class SquashSteps:
    """FRTM's one step: resize to plan.size whatever the aspect, images linearly, masks by torch's legacy nearest."""


@dataclass(frozen=True, slots=True)
class AreaRule:
    """Which objects may be chosen, by their areas in pixels of the warped masks of clip frames 0, 1 and 2.

    Those above `large` in frame 0, and those above `small` there that stay below `later` in frames 1 and 2.
    """

    large: int
    small: int
    later: int


PublishedSteps = ClipSteps | StillSteps | StmCycleSteps | SquashSteps


@dataclass(frozen=True, slots=True)
class LabelRules:
    """How the label maps of a plan are read and become slots; the defaults are RDE's.

    void_is_background: label 255 of the source is read as 0. unanimous: a pixel becomes void unless the four source
    pixels around its sampling point share a label, which is what cutting off linearly resized one-hot masks to 0 and 1
    leaves of them. listed: the plan's object_ids are the slots, in their order and whether they are seen or not; else
    its first ids that are seen.
    """

    void_is_background: bool = False
    unanimous: bool = False
    listed: bool = False


RDE_LABELS = LabelRules()


class Content(NamedTuple):
    """The rectangle of an output canvas that shows a frame, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What is subtracted from and divided by, per channel of RGB on the 0..1 scale."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of ImageNet's pictures, on which every backbone here was pretrained."""


@dataclass(frozen=True, slots=True, eq=False)
class ClipPlan:
    """Everything random about one clip, as numbers. T = frames of the clip.

    number: global clip number n; dataset: position in the data mix; video: row of that set's video table.
    frames: T rows of that set's frame table, in clip order (which may run backwards in time).
    object_ids: ids of the first clip frame in order of preference; the first ones found in the warped first frame
    become slots 1, 2, ... So the choice is uniform over the ids that are really there, with no retry.
    size: (height, width) of the output in pixels.
    matrices: (T, 2, 3) float32, output coordinates -> source coordinates.
    colours: (T, 3, 4) float32, rgb_out = colours[:, :3] @ rgb_in + colours[:, 3], on the 0..255 scale, then clipped to
    it.
    fill: rgb of pixels outside the source image, before the colour matrix, 0..255; label maps get 0 there.
    damage_key: key of the stream of the first-frame mask damage; damage_iou: IoU at which damage stops, None for no
    damage.
    trial: how many frame choices of the recipe were passed over because they showed no object (0 for the first).
    steps: what matrices and colours were composed from, for recipes that have a published step-by-step form.
    splines: per frame the control points of a thin-plate spline that bends the warped, coloured frame (see
    pipelines.spline), or None for a frame that stays as it is. Empty: no frame is bent.
    labels: how label maps are read. label_matrices: (T, 2, 3) float32 as `matrices`, where labels are not sampled at
    the same points as images. nearest_images: images take the pixel under the sampling point, as labels do.
    content: outside of it the output is black and void (after colours); None for the whole canvas.
    """

    number: int
    dataset: int
    video: int
    frames: tuple[int, ...]
    object_ids: tuple[int, ...]
    size: tuple[int, int]
    matrices: NDArray[np.float32]
    colours: NDArray[np.float32]
    fill: tuple[float, float, float]
    damage_key: tuple[int, int]
    damage_iou: float | None
    trial: int
    steps: PublishedSteps | None = None
    splines: tuple[NDArray[np.float64] | None, ...] = ()
    labels: LabelRules = RDE_LABELS
    label_matrices: NDArray[np.float32] | None = None
    nearest_images: bool = False
    content: Content | None = None


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """A plan with the bytes it needs: one EncodedFrame per clip frame, and the codec of their label maps."""

    plan: ClipPlan
    frames: tuple[EncodedFrame, ...]
    mask_codec: MaskCodec


@dataclass(frozen=True, slots=True)
class ClipPixels:
    """What an executor makes of B clips of T frames: warped, coloured, not yet normalised.

    images: (B, T, H, W, 3) uint8 RGB. labels: (B, T, H, W) uint8 with the data set's own object ids, 0 background, 255
    void.
    annotated: (B, T) bool, False where the frame has no label map (its labels are 0 then and mean nothing).
    soft: the labels are no ids but levels of one object's soft mask, 0 background to 255 object, warped linearly.
    bent: the splines of the plans have been applied already. All on the executor's device.
    """

    images: torch.Tensor
    labels: torch.Tensor
    annotated: torch.Tensor
    soft: bool = False
    bent: bool = False


class Executor(Protocol):
    """Turns encoded clips into pixels. Equal input gives equal output, whatever ran before or beside it."""

    def __call__(self, clips: list[EncodedClip]) -> ClipPixels:
        """Decode, warp and colour all frames of `clips` (all of one length and one output size).

        Raises DataError naming shard, video and frame for bytes that do not decode.
        """

    def close(self) -> None:
        """Release threads, pipelines and device memory."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one rank trains on in one step. B clips, T frames, K slots.

    images: (B, T, 3, H, W) float32, normalised by `normalisation`; a channels-last view of memory.
    masks: (B, T, H, W) uint8 slots: 0 background, 1..K objects, 255 void; unannotated frames are all void.
    num_objects: (B,) int64, 0..K: slots 1..num_objects are in use.
    first_masks: (B, K, H, W) float32 in {0, 1}: masks of clip frame 0 with the plan's damage applied, zeros for unused
    slots. Of soft masks: in 0..1.
    annotated: (B, T) bool. plans: the B plans, for naming any clip in a message.
    step: the training step this batch belongs to.
    clean_masks: (B, K, H, W) float32 in 0..1: soft masks of clip frame 0 without damage, of which `masks` only tells
    what is above one half. None for label maps: masks[:, 0] says it all.
    """

    step: int
    images: torch.Tensor
    masks: torch.Tensor
    num_objects: torch.Tensor
    first_masks: torch.Tensor
    annotated: torch.Tensor
    plans: tuple[ClipPlan, ...]
    clean_masks: torch.Tensor | None = None
    normalisation: Normalisation = IMAGENET
