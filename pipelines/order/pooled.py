"""The order for storage where whole videos are read once and used several times: a few videos at a time, shuffled.

The clips of a global batch belong to a number of streams, the same for every number of processes. Each stream has its
own part of every data set's videos and works through it pool by pool: all clips of a pool's videos in random order,
then the next pool. A process that owns whole streams so keeps `videos` / processes videos in memory at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.order.streams import Stream, StreamName

_PARTS, _PASSES, _POOLS = 1, 2, 3
"""What a permutation is of: all videos into parts, a part for one pass, the clips of a pool."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """videos: of each data set in use at a time, over all streams; uses: clips of a video while it is; streams: of a
    global batch, each a contiguous part of it. To be read once, a video must stay within one process: let the number of
    processes divide `streams`.
    """

    videos: int
    uses: int
    streams: int

    def __post_init__(self) -> None:
        """ValueError for counts below 1 and for fewer videos than streams."""
        if min(self.videos, self.uses, self.streams) < 1:
            raise ValueError(f"videos, uses and streams of a pooled order must be at least 1, got {self}")
        if self.videos < self.streams:
            raise ValueError(f"a pooled order needs a video for each stream, got {self.videos} for {self.streams}")


class PooledOrder:
    """Which item the i-th clip of a stream is of, for data sets of any number of items.

    Raises ValueError if the streams do not divide the batch.
    """

    def __init__(self, pooled: Pooled, batch_size: int) -> None:
        if batch_size % pooled.streams:
            problem = f"batch_size {batch_size} does not divide among {pooled.streams} streams of the pooled order"
            raise ValueError(f"{problem}; give a number of streams that divides it")
        self.pooled = pooled
        self.batch_size = batch_size
        self._permutation = lru_cache(maxsize=16 * pooled.streams)(_permutation)

    def turn(self, number: int) -> tuple[int, int]:
        """(stream, how many clips of it come before) of clip `number`."""
        step, slot = divmod(number, self.batch_size)
        portion = self.batch_size // self.pooled.streams
        return slot // portion, step * portion + slot % portion

    def item(self, key: tuple[int, int], stream: int, dataset: int, index: int, count: int) -> tuple[int, int]:
        """(item 0 .. count - 1, pass) of the index-th clip that a stream has of a data set of `count` items."""
        streams, uses = self.pooled.streams, self.pooled.uses
        part = self._permutation(key, _trial(_PARTS, 0, dataset), 0, count)[stream::streams]
        per_pool = self.pooled.videos // streams
        stream_pass, rest = divmod(index, len(part) * uses)
        pool, turn = divmod(rest, per_pool * uses)
        first = pool * per_pool
        size = min(per_pool, len(part) - first)
        order = self._permutation(key, _trial(_PASSES, stream, dataset), stream_pass, len(part))
        turns = self._permutation(key, _trial(_POOLS, stream, dataset), stream_pass * len(part) + pool, size * uses)
        return int(part[order[first + turns[turn] % size]]), stream_pass


def _trial(kind: int, stream: int, dataset: int) -> int:
    """Sub-streams of the videos' stream; those of the full order have the data set alone as their trial."""
    return (kind << 48) + (stream << 24) + dataset


def _permutation(key: tuple[int, int], trial: int, number: int, count: int) -> NDArray[np.int64]:
    return Stream(key, StreamName.VIDEOS, number, trial=trial).permutation(count)
