"""Which data set and which video clip n comes from: mixing exact in every window, every video once per pass."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.order.pooled import Pooled, PooledOrder
from pipelines.order.streams import Stream, StreamName
from shards.errors import DataError
from shards.reader import ShardSet


@dataclass(frozen=True, slots=True)
class MixEntry:
    """One row of a data mix: a split of a shard set, how often its videos come per pass over the mix, and its gaps.

    gap_step: how many frames apart annotated frames lie; a max gap in frames is divided by it (YouTube-VOS: 5).
    clips_per_pass: how many clips of a pass over the mix are its, whatever it holds; None: `repeat` of each item.
    """

    dataset: ShardSet
    split: str
    repeat: int = 1
    gap_step: int = 1
    clips_per_pass: int | None = None

    def __post_init__(self) -> None:
        """ValueError for a number below 1."""
        for name in ("repeat", "gap_step", "clips_per_pass"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} of {self.dataset.name} must be at least 1, got {value}")


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
    pooled: the order of items in each stream of a global batch of batch_size clips (see pooled_order); None for a full
    shuffle, where every item of an entry comes once before any comes again.
    fingerprint: text that names the data and their proportions. selections: one per entry.
    Raises DataError if an entry has no eligible video, ValueError for an unknown split or no entry at all.
    """

    def __init__(
        self,
        entries: Sequence[MixEntry],
        *,
        min_frames: int,
        list_objects: ListObjects | None = None,
        pooled: Pooled | None = None,
        batch_size: int = 1,
    ) -> None:
        if not entries:
            raise ValueError("a data mix needs at least one entry")
        self.entries = tuple(entries)
        self.selections = tuple(select_videos(entry, min_frames, list_objects) for entry in entries)
        self.weights = tuple(
            entry.clips_per_pass or entry.repeat * len(selection.videos)
            for entry, selection in zip(self.entries, self.selections, strict=True)
        )
        self.fingerprint = json.dumps([_identity(entry) for entry in self.entries])
        self._streams = None if pooled is None else PooledOrder(pooled, batch_size)
        # Neighbouring clips share a pass; two passes of each entry are alive where one ends and the next begins.
        self._order = lru_cache(maxsize=4 * len(self.entries))(self._shuffle)

    def pick(self, key: tuple[int, int], number: int, *, skip: int = 0) -> Pick:
        """Data set and video of clip `number` in the order that belongs to `key`.

        skip: the item of so many clips of that data set later.
        """
        stream, turn = (0, number) if self._streams is None else self._streams.turn(number)
        dataset, index = share(turn, self.weights)
        selection = self.selections[dataset]
        index, count = index + skip, len(selection.videos)
        if self._streams is None:
            video_pass, position = divmod(index, count)
            item = self._order(key, dataset, video_pass)[position]
        else:
            item, video_pass = self._streams.item(key, stream, dataset, index, count)
        object_id = None if selection.objects is None else int(selection.objects[item])
        return Pick(dataset, int(selection.videos[item]), video_pass, object_id)

    def report(self) -> tuple[str, ...]:
        """One line per entry: videos in use, its share of the clips, and the videos left out with the reasons."""
        return tuple(self._report_line(position) for position in range(len(self.entries)))

    def _report_line(self, position: int) -> str:
        entry, selection = self.entries[position], self.selections[position]
        items = f"{len(selection.videos)} {'videos' if selection.objects is None else 'objects'}"
        times = f"x {entry.repeat}" if entry.clips_per_pass is None else f"in {entry.clips_per_pass} clips"
        use = f"{entry.dataset.name} {entry.split}: {items} {times}"
        portion = f"{self.weights[position]} of {sum(self.weights)} clips"
        left_out = f"left out {selection.reasons()}" if selection.excluded else "none left out"
        return f"{use} = {portion}; {left_out}"

    def _shuffle(self, key: tuple[int, int], dataset: int, video_pass: int) -> NDArray[np.int64]:
        stream = Stream(key, StreamName.VIDEOS, video_pass, trial=dataset)
        return stream.permutation(len(self.selections[dataset].videos))


def share(number: int, weights: Sequence[int]) -> tuple[int, int]:
    """(which part takes turn `number`, how many turns it had before), for integer weights > 0, with no state.

    The first part has had floor(m * weight / total) of the first m turns, so in every window of turns its count is less
    than one from the ideal; the turns it leaves are divided among the other parts in the same way.
    """
    left = sum(weights)
    for part, weight in enumerate(weights):
        before = number * weight // left
        if (number + 1) * weight // left > before:
            return part, before
        number -= before
        left -= weight
    raise AssertionError("the last part takes every turn that is left")


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


def _identity(entry: MixEntry) -> list[str | int]:
    """What names an entry; the last number only where it is set, so that other mixes keep their names."""
    names: list[str | int] = [entry.dataset.fingerprint, entry.split, entry.repeat]
    return names if entry.clips_per_pass is None else [*names, entry.clips_per_pass]


def _why_not(dataset: ShardSet, video: int, min_frames: int) -> str | None:
    annotated = int(np.count_nonzero(dataset.annotated(video)))
    if not annotated:
        return "no annotated frame"
    if annotated < min_frames:
        return f"fewer than {min_frames} annotated frames"
    return None if dataset.videos.object_ids(video) else "no object in any frame"
