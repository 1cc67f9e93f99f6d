"""Training samples of FRTM and MTMFI: a reference frame of one object and two other frames of its video, squashed.

docs/order.md lists the rules and what differs from the published code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.order.curriculum import Table
from pipelines.order.sampling import annotated_frames
from pipelines.order.streams import StreamName
from pipelines.recipes.clip_length import length_at, set_clip_length
from pipelines.recipes.limits import Limits, check_choice, check_flags, set_checked
from pipelines.recipes.request import ClipRequest
from pipelines.recipes.visibility import davis_visibility, is_davis, large_enough
from pipelines.types import IMAGENET, AreaRule, ClipPlan, LabelRules, Normalisation, SquashSteps
from shards.reader import ShardSet

LIMITS = {
    "num_frames": Limits(1, 2, whole=True),
    "size": Limits(2, 1, whole=True),
    "min_frames": Limits(1, 1, whole=True),
}
VISIBILITY = ("by_data_set", "area", "davis")
NO_COLOUR = np.eye(3, 4, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Mtmfi:
    """The samples of FRTM, which MTMFI keeps; the defaults are the published values. No augmentation.

    Frame 0 of a clip is the reference, whose mask is given; the others come in no order and may lie before it. Slot 1
    is the one object, everything else background.
    Source: Robinson et al., Learning Fast and Robust Target Models for Video Object Segmentation, CVPR 2020, and its
    released code.
    """

    num_frames: int = 3
    """The reference and two targets."""
    # Out of repr, which names kept target models: they depend on the reference alone.
    clip_length: Table | None = field(default=None, repr=False)
    """Frames of a clip by progress, each 2 .. num_frames; None: num_frames throughout."""
    size: tuple[int, int] = (480, 854)
    """Height and width every frame is squashed to, in pixels; one number means a square."""
    min_frames: int = 4
    """Annotated frames below which a video is left out."""
    visibility: Literal["by_data_set", "area", "davis"] = "by_data_set"
    """In which frames an object may be the reference. area: 100 pixels of it; davis: also a share of its largest area;
    by_data_set: `davis` for sets of that kind, else `area`."""
    legacy_nearest: bool = True
    """Take label maps at the top left of each pixel, as published, up to half a source pixel off the image's points;
    else in its middle."""

    def __post_init__(self) -> None:
        """Bring values from YAML into their types; ValueError, naming the field, for values that make no clip."""
        set_checked(self, LIMITS)
        check_flags(self, ("legacy_nearest",))
        check_choice("visibility", self.visibility, VISIBILITY)
        set_clip_length(self, shortest=2)
        if self.min_frames < self.num_frames:
            raise ValueError(f"min_frames must be at least num_frames, got {self.min_frames} < {self.num_frames}")

    @property
    def num_slots(self) -> int:
        """A sample is about one object."""
        return 1

    @property
    def soft_masks(self) -> bool:
        """Reads label maps."""
        return False

    @property
    def area_rule(self) -> AreaRule | None:
        """None: visibility is decided before the frames are."""
        return None

    @property
    def normalisation(self) -> Normalisation:
        """That of ImageNet."""
        return IMAGENET

    @property
    def list_objects(self) -> Callable[[ShardSet, int], Sequence[int]] | None:
        """Clips go round the objects that are visible somewhere."""
        return self._list_objects

    def _list_objects(self, shard_set: ShardSet, video: int) -> list[int]:
        return sorted(self.visible_frames(shard_set, video))

    def plan(self, request: ClipRequest) -> ClipPlan:
        """The plan of one sample of request.object_id, or else of one of the video's objects; one without an object if
        the video never shows one that is large enough."""
        rows = annotated_frames(request.shard_set, request.video)
        visible = self.visible_frames(request.shard_set, request.video)
        object_id = request.object_id
        if object_id is None and visible:
            object_id = request.stream(StreamName.OBJECTS).choice(sorted(visible))
        stream, length = request.stream(StreamName.FRAMES), length_at(self, request.step, request.steps)
        reference = int(stream.choice(range(len(rows)) if object_id is None else visible[object_id].tolist()))
        others = [position for position in range(len(rows)) if position != reference]
        targets = [others[rank] for rank in stream.permutation(len(others))[: length - 1]]
        matrix, label_matrix = self._matrices(request)
        return ClipPlan(
            number=request.number,
            dataset=request.dataset,
            video=request.video,
            frames=tuple(rows[[reference, *targets]].tolist()),
            object_ids=() if object_id is None else (object_id,),
            size=self.size,
            matrices=np.tile(matrix, (length, 1, 1)),
            colours=np.tile(NO_COLOUR, (length, 1, 1)),
            fill=(0.0, 0.0, 0.0),
            damage_key=request.stream(StreamName.DAMAGE).key(),
            damage_iou=None,
            trial=0,
            steps=SquashSteps(),
            labels=LabelRules(void_is_background=True, listed=True),
            label_matrices=np.tile(label_matrix, (length, 1, 1)) if self.legacy_nearest else None,
        )

    def visible_frames(self, shard_set: ShardSet, video: int) -> dict[int, NDArray[np.int64]]:
        """Object id -> positions among the annotated frames, ascending, where it may be the reference; not empty."""
        areas = object_areas(shard_set, video)
        by_share = self.visibility == "davis" or (self.visibility == "by_data_set" and is_davis(shard_set))
        name = shard_set.videos.original_names[video]
        found = {}
        for object_id, of_object in areas.items():
            seen = large_enough(of_object)
            if by_share:
                seen &= davis_visibility(name, object_id, of_object)
            if seen.any():
                found[object_id] = np.flatnonzero(seen)
        return found

    def _matrices(self, request: ClipRequest) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(2, 3) each, output -> source: of images, and of label maps, whose pixel (0, 0) shows that of the source."""
        videos = request.shard_set.videos
        scale_x = int(videos.width[request.video]) / self.size[1]
        scale_y = int(videos.height[request.video]) / self.size[0]
        image = np.array([[scale_x, 0, 0], [0, scale_y, 0]], np.float32)
        labels = np.array([[scale_x, 0, -scale_x / 2], [0, scale_y, -scale_y / 2]], np.float32)
        return image, labels


def object_areas(shard_set: ShardSet, video: int) -> dict[int, NDArray[np.int64]]:
    """Object id -> (frames,) pixels it has in each annotated frame of a video."""
    rows = annotated_frames(shard_set, video)
    areas: dict[int, NDArray[np.int64]] = {}
    for position, row in enumerate(rows.tolist()):
        objects = shard_set.objects(row)
        for object_id, area in zip(objects.ids.tolist(), objects.areas.tolist(), strict=True):
            areas.setdefault(object_id, np.zeros(len(rows), np.int64))[position] = area
    return areas
