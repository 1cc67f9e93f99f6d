"""Which data set and which video clip n comes from: mixing exact in every window, every video once per pass."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.order.curriculum import Table
from pipelines.order.pooled import Pooled, PooledOrder
from pipelines.order.streams import Stream, StreamName
from pipelines.order.turns import Phase, Turns
from shards.errors import DataError
from shards.reader import ShardSet


@dataclass(frozen=True, slots=True)
class MixEntry:
    """One row of a data mix: a split of a shard set, how often its videos come per pass over the mix, and its gaps.

    gap_step: how many frames apart annotated frames lie; a max gap in frames is divided by it (YouTube-VOS: 5).
    clips_per_pass: how many clips of a pass over the mix are its, whatever it holds; None: `repeat` of each item.
    Both may be tables of progress, with 0 where none of its clips come.
    """

    dataset: ShardSet
    split: str
    repeat: int | Table = 1
    gap_step: int = 1
    clips_per_pass: int | Table | None = None

    def __post_init__(self) -> None:
        """ValueError for a number below 1 and a table that is no table of counts."""
        if self.gap_step < 1:
            raise ValueError(f"gap_step of {self.dataset.name} must be at least 1, got {self.gap_step}")
        for name in ("repeat", "clips_per_pass"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, checked_count(f"{name} of {self.dataset.name}", value))

    def weight(self, num_items: int, step: int, steps: int) -> int:
        """Clips of a pass over the mix that are its, at a step of a stage."""
        if self.clips_per_pass is not None:
            return count_at(self.clips_per_pass, step, steps)
        return count_at(self.repeat, step, steps) * num_items

    def switches(self, steps: int) -> set[int]:
        """The steps from which its weight may be another one."""
        tables = [value for value in (self.repeat, self.clips_per_pass) if isinstance(value, Table)]
        return {step for table in tables for step, _ in table.switches(steps)}


def checked_count(name: str, value: int | Table) -> int | Table:
    """A count of at least 1, or a table of counts of at least 0; a table of one value is that value.

    Raises ValueError, naming the field.
    """
    counts = [count for _, count in value.rows] if isinstance(value, Table) else [value]
    if any(count != int(count) for count in counts):
        raise ValueError(f"{name} must be a whole number, got {next(c for c in counts if c != int(c))}")
    if max(counts) < 1 or min(counts) < 0:
        least = "at least 0, and above 0 somewhere" if isinstance(value, Table) else "at least 1"
        raise ValueError(f"{name} must be {least}, got {min(counts):g}")
    return int(counts[0]) if len(set(counts)) == 1 else value


def count_at(value: int | Table, step: int, steps: int) -> int:
    """A count, or what a table of counts says at a step of a stage of `steps` steps."""
    return int(value.at(step, steps)) if isinstance(value, Table) else value


class Pick(NamedTuple):
    """Where a clip comes from: position in the mix, row of that set's video table, which pass over its items.

    object_id: of the item, where items are objects.
    """

    dataset: int
    video: int
    video_pass: int
    object_id: int | None = None


ListObjects = Callable[[ShardSet, int], Sequence[int]]
"""Ids of the objects of a video (its row) that clips can be about."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What sampling uses of one entry: its items, and (reason, name) of every video it leaves out.

    videos (n,) rows ascending, one for each item: a video, or, with objects (n,), one object of it.
    """

    videos: NDArray[np.int64]
    excluded: tuple[tuple[str, str], ...]
    objects: NDArray[np.int64] | None = None

    def reasons(self) -> str:
        """One phrase: how many videos are left out for which reason, with the first name of each."""
        counts = Counter(reason for reason, _ in self.excluded)
        first = dict(reversed(self.excluded))
        return "; ".join(f"{count} with {reason} (first: {first[reason]})" for reason, count in counts.items())


class Mix:
    """Data sets in exact proportion: an entry weighs repeat x eligible items, or its clips_per_pass.

    A pass over the mix (the sum of the weights, in clips) so shows every item of an entry `repeat` times. An item is a
    video, or an object of a video where `list_objects` says which those are.
    Weights that are tables change at their step of a stage of `steps` steps of batch_size clips; each entry goes on in
    its own order then, from the item it was at.
    pooled: the order of items in each stream of a global batch of batch_size clips (see pooled_order); None for a full
    shuffle, where every item of an entry comes once before any comes again.
    fingerprint: text that names the data and their proportions. selections: one per entry. phases: the entries'
    weights, from which step each.
    Raises DataError if an entry has no eligible video, ValueError for an unknown split, no entry at all, a step at
    which all weights are 0, and an entry with fewer items than a pooled order has streams.
    """

    def __init__(
        self,
        entries: Sequence[MixEntry],
        *,
        min_frames: int,
        list_objects: ListObjects | None = None,
        pooled: Pooled | None = None,
        batch_size: int = 1,
        steps: int = 1,
    ) -> None:
        if not entries:
            raise ValueError("a data mix needs at least one entry")
        self.entries = tuple(entries)
        self.selections = tuple(select_videos(entry, min_frames, list_objects) for entry in entries)
        self.phases = self._find_phases(steps)
        self.fingerprint = json.dumps([_identity(entry) for entry in self.entries])
        self._streams = None if pooled is None else PooledOrder(pooled, batch_size)
        self._require_items(1 if pooled is None else pooled.streams)
        self._batch_size, portion = batch_size, batch_size if pooled is None else batch_size // pooled.streams
        self._turns = Turns([Phase(first * portion, weights) for first, weights in self.phases])
        # Neighbouring clips share a pass; two passes of each entry are alive where one ends and the next begins.
        self._order = lru_cache(maxsize=4 * len(self.entries))(self._shuffle)

    def pick(self, key: tuple[int, int], number: int, *, skip: int = 0) -> Pick:
        """Data set and video of clip `number` in the order that belongs to `key`.

        skip: the item of so many clips of that data set later.
        """
        stream, turn = (0, number) if self._streams is None else self._streams.turn(number)
        dataset, index = self._turns.take(turn)
        selection = self.selections[dataset]
        index, count = index + skip, len(selection.videos)
        if self._streams is None:
            video_pass, position = divmod(index, count)
            item = self._order(key, dataset, video_pass)[position]
        else:
            item, video_pass = self._streams.item(key, stream, dataset, index, count)
        object_id = None if selection.objects is None else int(selection.objects[item])
        return Pick(dataset, int(selection.videos[item]), video_pass, object_id)

    def counts(self, num_clips: int) -> tuple[int, ...]:
        """How many of the first `num_clips` clips are of each entry."""
        if self._streams is None:
            return self._turns.counts(num_clips)
        step, rest = divmod(num_clips, self._batch_size)
        streams = self._streams.pooled.streams
        portion = self._batch_size // streams
        turns = [step * portion + min(max(rest - stream * portion, 0), portion) for stream in range(streams)]
        return tuple(sum(counts) for counts in zip(*map(self._turns.counts, turns), strict=True))

    def passes(self, num_clips: int) -> float:
        """Passes over the mix that the first `num_clips` clips are, each by the weights of its own time."""
        firsts = [first * self._batch_size for first, _ in self.phases]
        ends = [min(end, num_clips) for end in (*firsts[1:], num_clips)]
        spans = zip(firsts, ends, self.phases, strict=True)
        return sum(max(0, end - first) / sum(phase.weights) for first, end, phase in spans)

    def report(self) -> tuple[str, ...]:
        """One line per entry: videos in use, its share of the clips, and the videos left out with the reasons."""
        return tuple(self._report_line(position) for position in range(len(self.entries)))

    def _require_items(self, streams: int) -> None:
        """Now rather than at the first clip of a stage that may be days away."""
        for entry, selection in zip(self.entries, self.selections, strict=True):
            count = len(selection.videos)
            if count < streams:
                problem = f"{_counted(count, selection)} cannot be divided among {streams} streams of the pooled order"
                raise ValueError(f"{entry.dataset.name} {entry.split}: {problem}; use at most {count} streams")

    def _find_phases(self, steps: int) -> tuple[Phase, ...]:
        phases: list[Phase] = []
        for step in sorted({0}.union(*(entry.switches(steps) for entry in self.entries))):
            pairs = zip(self.entries, self.selections, strict=True)
            weights = tuple(entry.weight(len(selection.videos), step, steps) for entry, selection in pairs)
            if not phases or weights != phases[-1].weights:
                phases.append(Phase(step, weights))
        return tuple(phases)

    def _report_line(self, position: int) -> str:
        entry, selection = self.entries[position], self.selections[position]
        use = f"{entry.dataset.name} {entry.split}: {_counted(len(selection.videos), selection)}"
        portions = []
        for first, weights in self.phases:
            weight, total = weights[position], sum(weights)
            times = f"x {weight // len(selection.videos)}" if entry.clips_per_pass is None else f"in {weight} clips"
            since = f"from step {first} " if first else ""
            portions.append(f"{since}{times} = {weight} of {total} clip{'s' * (total != 1)}")
        left_out = f"left out {selection.reasons()}" if selection.excluded else "none left out"
        return f"{use} {', '.join(portions)}; {left_out}"

    def _shuffle(self, key: tuple[int, int], dataset: int, video_pass: int) -> NDArray[np.int64]:
        stream = Stream(key, StreamName.VIDEOS, video_pass, trial=dataset)
        return stream.permutation(len(self.selections[dataset].videos))


def _counted(count: int, selection: Selection) -> str:
    return f"{count} {'video' if selection.objects is None else 'object'}{'s' * (count != 1)}"


def select_videos(entry: MixEntry, min_frames: int, list_objects: ListObjects | None = None) -> Selection:
    """The items of an entry a clip can come from: videos of at least min_frames annotated frames, and an object in one.

    list_objects: make each of these objects an item instead. Raises DataError if there is none.
    """
    rows = entry.dataset.select(entry.split)
    reasons = [_why_not(entry.dataset, int(row), min_frames) for row in rows]
    items: list[tuple[int, int]] = []
    for position, row in enumerate(rows.tolist()):
        if reasons[position] is None:
            objects = list_objects(entry.dataset, row) if list_objects else (0,)
            reasons[position] = None if len(objects) else "no object that is large enough"
            items += [(row, object_id) for object_id in objects]
    names = entry.dataset.videos.original_names
    excluded = tuple((reason, names[int(row)]) for row, reason in zip(rows, reasons, strict=True) if reason)
    videos, object_ids = np.array(items, np.int64).reshape(-1, 2).T
    selection = Selection(videos, excluded, object_ids if list_objects else None)
    if not len(selection.videos):
        raise DataError(
            entry.dataset.path,
            expected=f"a video in split {entry.split} with {min_frames} annotated frames and an object",
            found=f"{len(rows)} videos: {selection.reasons()}" if len(rows) else "no video in it",
            remedy="train on another split, or look at rejected.jsonl for what the build refused",
        )
    return selection


def annotated_frames(dataset: ShardSet, video: int) -> NDArray[np.int64]:
    """Rows of a video's frames that have a label map, in time order: the positions that clips are drawn from."""
    return dataset.frame_rows(video).start + np.flatnonzero(dataset.annotated(video))


def _identity(entry: MixEntry) -> list[Any]:
    """What names an entry; the last number only where it is set, so that other mixes keep their names."""
    counts = [entry.repeat] if entry.clips_per_pass is None else [entry.repeat, entry.clips_per_pass]
    plain = [list(count.rows) if isinstance(count, Table) else count for count in counts]
    return [entry.dataset.fingerprint, entry.split, *plain]


def _why_not(dataset: ShardSet, video: int, min_frames: int) -> str | None:
    annotated = int(np.count_nonzero(dataset.annotated(video)))
    if not annotated:
        return "no annotated frame"
    if annotated < min_frames:
        return f"fewer than {min_frames} annotated frames"
    return None if dataset.videos.object_ids(video) else "no object in any frame"
