"""What a recipe is asked, and what every recipe answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipelines.order.curriculum import Table
from pipelines.order.streams import Stream, StreamName
from pipelines.types import AreaRule, ClipPlan, Normalisation
from shards.reader import ShardSet


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """Everything a plan may depend on: which clip, of which video, at what point of the stage.

    key, number: name the clip's streams. dataset: position in the mix; video: row of shard_set's video table.
    gap_step: frames between annotated frames, see MixEntry. step of steps: where the stage stands, for curricula.
    object_id: the object to make a clip of, for recipes that list objects.
    """

    key: tuple[int, int]
    number: int
    dataset: int
    shard_set: ShardSet
    video: int
    gap_step: int
    step: int
    steps: int
    object_id: int | None = None

    def stream(self, name: StreamName, *, trial: int = 0) -> Stream:
        """The named stream of this clip, from its start."""
        return Stream(self.key, name, self.number, trial=trial)


class Recipe(Protocol):
    """Makes plans. All plans of one recipe have the same output size, those of one step the same clip length."""

    @property
    def num_frames(self) -> int:
        """Frames per clip, of the longest."""

    @property
    def clip_length(self) -> Table | None:
        """Frames per clip by progress; None: num_frames throughout."""

    @property
    def num_slots(self) -> int:
        """Objects per clip at most."""

    @property
    def min_frames(self) -> int:
        """Annotated frames a video needs to be sampled at all."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the output in pixels."""

    @property
    def soft_masks(self) -> bool:
        """Whether it makes clips of still images with soft masks, or else of videos with label maps."""

    @property
    def area_rule(self) -> AreaRule | None:
        """Which objects may become slots; None: every visible one."""

    @property
    def normalisation(self) -> Normalisation:
        """Of the batch's images."""

    @property
    def list_objects(self) -> Callable[[ShardSet, int], Sequence[int]] | None:
        """Ids of the objects of a video (its row) that clips go round, or None for clips that go round videos."""

    def plan(self, request: ClipRequest) -> ClipPlan:
        """The plan of one clip: the same for the same request, whatever was planned before."""
