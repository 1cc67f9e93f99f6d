"""Which clips belong to which steps and ranks of a run: any batch of any run can be named again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from pipelines.loader import share_of_batch
from pipelines.source import ClipSource
from pipelines.types import ClipPlan


@dataclass(frozen=True, slots=True)
class DrawnClip:
    """One clip as a run draws it.

    step: of the run. frames: positions in the video, from 0, in clip order. gaps: between neighbours, negative where
    the clip runs backwards. object_ids: of the first frame, in the order in which they are offered slots.
    """

    step: int
    rank: int
    clip: int
    dataset: str
    video: str
    frames: tuple[int, ...]
    gaps: tuple[int, ...]
    object_ids: tuple[int, ...]

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def name_clip(source: ClipSource, plan: ClipPlan, *, step: int = 0, rank: int = 0) -> DrawnClip:
    """A plan in the words of its data set."""
    shard_set = source.shard_set(plan)
    first = shard_set.frame_rows(plan.video).start
    frames = tuple(int(frame) - first for frame in plan.frames)
    gaps = tuple(after - before for before, after in pairwise(frames))
    name = shard_set.videos.original_names[plan.video]
    return DrawnClip(step, rank, plan.number, shard_set.name, name, frames, gaps, tuple(plan.object_ids))


def find_clips(sources: Sequence[ClipSource], steps: range, *, world_size: int = 1) -> Iterator[DrawnClip]:
    """The clips of `steps` of the whole run, in order, stage after stage, each with the rank that gets it.

    Raises ValueError for steps the run does not have and batches that do not divide by the world size.
    """
    total = sum(source.steps for source in sources)
    if not len(steps) or steps.start < 0 or steps.stop > total:
        raise ValueError(f"steps {steps.start}..{steps.stop - 1} are not in a run of {total} steps, 0..{total - 1}")
    before = 0
    for source in sources:
        share = len(share_of_batch(source.batch_size, 0, world_size))
        for step in range(max(steps.start, before), min(steps.stop, before + source.steps)):
            for position in range(source.batch_size):
                plan = source.plan((step - before) * source.batch_size + position)
                yield name_clip(source, plan, step=step, rank=position // share)
        before += source.steps
