"""Which data set and which video clip n comes from: mixing exact in every window, every video once per pass."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.streams import Stream, StreamName
from shards.errors import DataError
from shards.reader import ShardSet


@dataclass(frozen=True, slots=True)
class MixEntry:
    """One row of a data mix: a split of a shard set, how often its videos come per pass over the mix, and its gaps.

    gap_step: how many frames apart annotated frames lie; a max gap in frames is divided by it (YouTube-VOS: 5).
    """

    dataset: ShardSet
    split: str
    repeat: int = 1
    gap_step: int = 1

    def __post_init__(self) -> None:
        """ValueError for a repeat or a step below 1."""
        for name, value in (("repeat", self.repeat), ("gap_step", self.gap_step)):
            if value < 1:
                raise ValueError(f"{name} of {self.dataset.name} must be at least 1, got {value}")


class Pick(NamedTuple):
    """Where a clip comes from: position in the mix, row of that set's video table, which pass over its videos."""

    dataset: int
    video: int
    video_pass: int


@dataclass(frozen=True, slots=True)
class Selection:
    """What sampling uses of one entry: videos (n,) rows ascending, and (reason, name) of every video it leaves out."""

    videos: NDArray[np.int64]
    excluded: tuple[tuple[str, str], ...]

    def reasons(self) -> str:
        """One phrase: how many videos are left out for which reason, with the first name of each."""
        counts = Counter(reason for reason, _ in self.excluded)
        first = dict(reversed(self.excluded))
        return "; ".join(f"{count} with {reason} (first: {first[reason]})" for reason, count in counts.items())


class Mix:
    """Data sets in exact proportion: an entry weighs repeat x eligible videos.

    A pass over the mix (the sum of the weights, in clips) so shows every video of an entry `repeat` times.
    fingerprint: text that names the data and their proportions. selections: one per entry.
    Raises DataError if an entry has no eligible video, ValueError for an unknown split or no entry at all.
    """

    def __init__(self, entries: Sequence[MixEntry], *, min_frames: int) -> None:
        if not entries:
            raise ValueError("a data mix needs at least one entry")
        self.entries = tuple(entries)
        self.selections = tuple(select_videos(entry, min_frames) for entry in entries)
        self.weights = tuple(
            entry.repeat * len(selection.videos) for entry, selection in zip(self.entries, self.selections, strict=True)
        )
        self.fingerprint = json.dumps([[e.dataset.fingerprint, e.split, e.repeat] for e in self.entries])
        # Neighbouring clips share a pass; two passes of each entry are alive where one ends and the next begins.
        self._order = lru_cache(maxsize=4 * len(self.entries))(self._shuffle)

    def pick(self, key: tuple[int, int], number: int, *, skip: int = 0) -> Pick:
        """Data set and video of clip `number` in the order that belongs to `key`.

        skip: the video of so many clips of that data set later.
        """
        dataset, index = share(number, self.weights)
        videos = self.selections[dataset].videos
        video_pass, position = divmod(index + skip, len(videos))
        return Pick(dataset, int(videos[self._order(key, dataset, video_pass)[position]]), video_pass)

    def report(self) -> tuple[str, ...]:
        """One line per entry: videos in use, its share of the clips, and the videos left out with the reasons."""
        return tuple(self._report_line(position) for position in range(len(self.entries)))

    def _report_line(self, position: int) -> str:
        entry, selection = self.entries[position], self.selections[position]
        use = f"{entry.dataset.name} {entry.split}: {len(selection.videos)} videos x {entry.repeat}"
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


def select_videos(entry: MixEntry, min_frames: int) -> Selection:
    """The videos of an entry a clip can come from: at least min_frames annotated frames, and an object in one of them.

    Raises DataError if there is none.
    """
    rows = entry.dataset.select(entry.split)
    reasons = [_why_not(entry.dataset, int(row), min_frames) for row in rows]
    names = entry.dataset.videos.original_names
    excluded = tuple((reason, names[int(row)]) for row, reason in zip(rows, reasons, strict=True) if reason)
    selection = Selection(
        np.array([row for row, why in zip(rows, reasons, strict=True) if not why], np.int64), excluded
    )
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


def _why_not(dataset: ShardSet, video: int, min_frames: int) -> str | None:
    annotated = int(np.count_nonzero(dataset.annotated(video)))
    if not annotated:
        return "no annotated frame"
    if annotated < min_frames:
        return f"fewer than {min_frames} annotated frames"
    return None if dataset.videos.object_ids(video) else "no object in any frame"
