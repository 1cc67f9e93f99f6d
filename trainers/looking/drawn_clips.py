"""Which clips belong to which steps and ranks of a run: any batch of any run can be named again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Any

import numpy as np

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


def first_other_step(first: Sequence[ClipSource], second: Sequence[ClipSource], steps: Iterable[int]) -> int | None:
    """The first of `steps` of two runs (of their stages' sources) that does not get the same clips; None if all do.

    The same clips: bytes of the same data, under plans that are equal in every number. A step that one of the runs does
    not have is another one.
    """
    for step in steps:
        batches = [_batch_at(sources, step) for sources in (first, second)]
        if batches[0] is None or batches[1] is None or len(batches[0]) != len(batches[1]):
            return step
        if not all(_equal_clips(*pair) for pair in zip(*batches, strict=True)):
            return step
    return None


def _batch_at(sources: Sequence[ClipSource], step: int) -> list[tuple[str, ClipPlan]] | None:
    """(fingerprint of its data, plan) of every clip of a step of the run; None beyond its end."""
    for source in sources:
        if step < source.steps:
            first = step * source.batch_size
            plans = [source.plan(first + position) for position in range(source.batch_size)]
            return [(source.shard_set(plan).fingerprint, plan) for plan in plans]
        step -= source.steps
    return None


def _equal_clips(first: tuple[str, ClipPlan], second: tuple[str, ClipPlan]) -> bool:
    pairs = ((getattr(first[1], field.name), getattr(second[1], field.name)) for field in fields(ClipPlan))
    return first[0] == second[0] and all(_equal(*pair) for pair in pairs)


def _equal(first: Any, second: Any) -> bool:
    """Equality that looks into arrays, wherever they lie."""
    if type(first) is not type(second):
        return False
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(_equal, first, second))
    if is_dataclass(first):
        return all(_equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))
    return bool(first == second)
