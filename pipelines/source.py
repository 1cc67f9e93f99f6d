"""Clip n of a stage: the mix says which video, the recipe which frames and pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.order.pooled import Pooled
from pipelines.order.sampling import Mix, MixEntry, Pick
from pipelines.order.streams import stream_key
from pipelines.recipes import ClipRequest, Recipe
from pipelines.types import ClipPlan, EncodedClip
from shards.errors import DataError
from shards.masks import SOFT_CODECS
from shards.reader import ShardSet

SUBSTITUTE_REACH = 1000
"""Clips of a data set that are looked through for another video."""


class ClipSource:
    """All clips of a stage, numbered from 0; each is a pure function of (seed, data, recipe, its number).

    mix: the data sets in proportion. steps, batch_size: of the stage; clip n belongs to step n // batch_size, which is
    all that curricula see. batch_size counts the clips of all ranks together. pooled: see Mix.
    key: (seed, 64 bits of the mix).
    Raises DataError if a data set has no video to sample or masks the recipe cannot use, ValueError for bad numbers.
    """

    def __init__(
        self,
        mix: Sequence[MixEntry],
        recipe: Recipe,
        *,
        seed: int,
        steps: int,
        batch_size: int,
        pooled: Pooled | None = None,
    ) -> None:
        if steps < 1 or batch_size < 1:
            raise ValueError(f"a stage needs at least one step and one clip, got {steps} steps of {batch_size} clips")
        for entry in mix:
            _require_masks(entry.dataset, soft=recipe.soft_masks)
        self.mix = Mix(
            mix,
            min_frames=recipe.min_frames,
            list_objects=recipe.list_objects,
            pooled=pooled,
            batch_size=batch_size,
            steps=steps,
        )
        self.recipe = recipe
        self.steps = steps
        self.batch_size = batch_size
        self.key = stream_key(seed, self.mix.fingerprint)

    def plan(self, number: int) -> ClipPlan:
        """The plan of clip `number` >= 0."""
        if number < 0:
            raise ValueError(f"clips are numbered from 0, got {number}")
        return self._plan_of(number, self.mix.pick(self.key, number))

    def substitutes(self, number: int) -> Iterator[ClipPlan]:
        """Plans of clip `number` for when its video cannot be had: of the next other videos of the same data set.

        All numbers of the clip are drawn from its own streams, at its own point of the stage.
        """
        tried = {self.mix.pick(self.key, number).video}
        for skip in range(1, SUBSTITUTE_REACH):
            pick = self.mix.pick(self.key, number, skip=skip)
            if pick.video not in tried:
                tried.add(pick.video)
                yield self._plan_of(number, pick)

    def _plan_of(self, number: int, pick: Pick) -> ClipPlan:
        entry = self.mix.entries[pick.dataset]
        request = ClipRequest(
            key=self.key,
            number=number,
            dataset=pick.dataset,
            shard_set=entry.dataset,
            video=pick.video,
            gap_step=entry.gap_step,
            step=number // self.batch_size,
            steps=self.steps,
            object_id=pick.object_id,
        )
        return self.recipe.plan(request)

    def shard_set(self, plan: ClipPlan) -> ShardSet:
        """The set a plan's rows refer to."""
        return self.mix.entries[plan.dataset].dataset

    def read(self, plan: ClipPlan) -> EncodedClip:
        """A plan with the bytes of its frames. Raises DataError for bytes that fail their checksum."""
        shard_set = self.shard_set(plan)
        frames = {frame: shard_set.read(frame) for frame in dict.fromkeys(plan.frames)}
        return EncodedClip(plan, tuple(frames[frame] for frame in plan.frames), shard_set.mask_codec)

    def describe(self, plan: ClipPlan) -> str:
        """Where a clip comes from, for messages: `clip 12 (step 1): davis2017, video bear, frames 3 5 8 11 12`."""
        shard_set = self.shard_set(plan)
        first = shard_set.frame_rows(plan.video).start
        positions = " ".join(str(frame - first) for frame in plan.frames)
        name = shard_set.videos.original_names[plan.video]
        step = plan.number // self.batch_size
        return f"clip {plan.number} (step {step}): {shard_set.name}, video {name}, frames {positions}"


def _require_masks(dataset: ShardSet, *, soft: bool) -> None:
    if (dataset.mask_codec in SOFT_CODECS) != soft:
        words = ("label maps of video", "soft masks of still images")
        raise DataError(
            dataset.path,
            expected=f"{words[soft]}, which this recipe needs",
            found=f"{words[not soft]} (mask codec {dataset.mask_codec})",
            remedy="give the stage another recipe, or its recipe another shard set",
        )
