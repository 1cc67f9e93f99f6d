"""How well an order of clips is shuffled, in numbers that stand beside a uniform shuffle of the same clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.order.streams import Stream, StreamName
from pipelines.source import ClipSource

LAGS = (1, 2, 4, 8, 16, 32, 64)
"""Distances in clips at which neighbours are compared."""

REFERENCE_KEY = (0, 0)
"""Names the uniform shuffle that a report compares with."""


@dataclass(frozen=True, slots=True)
class OrderQuality:
    """What a number of consecutive clips looks like to a trainer.

    distinct_per_batch: videos per batch, mean over whole batches; a full batch of different videos is best.
    repeat_distance: how many clips later the same video comes again, as (smallest, 5 % quantile, median); None where no
    video came twice. autocorrelation: lag in clips -> correlation of the places in storage, within the data set, of two
    clips that far apart (-1..1; 0: nothing about one follows from the other). Lags that leave fewer than two pairs are
    left out.
    """

    num_clips: int
    num_videos: int
    batch_size: int
    distinct_per_batch: float
    repeat_distance: tuple[float, float, float] | None
    autocorrelation: dict[int, float]

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def describe_order(
    videos: ArrayLike, batch_size: int, *, starts: Sequence[int] = (0,), lags: Sequence[int] = LAGS
) -> OrderQuality:
    """Quality of an order. videos (n,) integers: which video each clip shows, numbered as they lie in storage.

    starts: number of the first video of each data set, ascending. Data sets take turns in a fixed pattern, which would
    hide what is looked for, so places count from the mean place of the set's clips.
    Raises ValueError unless there is at least one whole batch.
    """
    order = np.asarray(videos, np.int64)
    if order.ndim != 1 or batch_size < 1 or len(order) < batch_size:
        raise ValueError(f"an order needs at least one batch of {batch_size} clips, got {order.size}")
    places = _places_within_sets(order, starts)
    return OrderQuality(
        num_clips=len(order),
        num_videos=len(np.unique(order)),
        batch_size=batch_size,
        distinct_per_batch=_distinct_per_batch(order, batch_size),
        repeat_distance=_repeat_distance(order),
        autocorrelation={lag: _correlation(places, lag) for lag in lags if len(order) - lag >= 2},
    )


def shuffled(videos: ArrayLike, key: tuple[int, int] = REFERENCE_KEY) -> NDArray[np.int64]:
    """The same clips in a uniformly random order, (n,): what an order is measured against."""
    order = np.asarray(videos, np.int64)
    # Stream of its own: no clip of any run has a pass of this number.
    return order[Stream(key, StreamName.VIDEOS, 2**63).permutation(len(order))]


def numbered(names: Sequence[str]) -> NDArray[np.int64]:
    """(n,) which video each clip shows. names: of the clips' videos; they are numbered by name, as shards have them."""
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def first_videos(source: ClipSource) -> list[int]:
    """Number of the first video of each data set of the mix: videos are numbered set after set, as stored."""
    return np.cumsum([0, *(entry.dataset.num_videos for entry in source.mix.entries[:-1])]).tolist()


def drawn_videos(source: ClipSource, first_clip: int, num_clips: int) -> NDArray[np.int64]:
    """(num_clips,) which video each clip shows, numbered as `first_videos` says."""
    starts = first_videos(source)
    picks = (source.mix.pick(source.key, number) for number in range(first_clip, first_clip + num_clips))
    return np.array([starts[pick.dataset] + pick.video for pick in picks], np.int64)


def _distinct_per_batch(order: NDArray[np.int64], batch_size: int) -> float:
    batches = np.sort(order[: len(order) // batch_size * batch_size].reshape(-1, batch_size), axis=1)
    return float(1 + np.count_nonzero(np.diff(batches, axis=1), axis=1).mean())


def _repeat_distance(order: NDArray[np.int64]) -> tuple[float, float, float] | None:
    by_video = np.argsort(order, kind="stable")  # clips of one video one after the other, each in order of time
    same = np.diff(order[by_video]) == 0
    distances = np.diff(by_video)[same]
    if not len(distances):
        return None
    low, median = np.quantile(distances, (0.05, 0.5))
    return float(distances.min()), float(low), float(median)


def _places_within_sets(order: NDArray[np.int64], starts: Sequence[int]) -> NDArray[np.float64]:
    sets = np.searchsorted(np.asarray(starts), order, side="right")
    sums, counts = np.bincount(sets, weights=order), np.bincount(sets)
    return order - (sums / np.maximum(counts, 1))[sets]


def _correlation(places: NDArray[np.float64], lag: int) -> float:
    before, after = places[:-lag], places[lag:]
    before, after = before - before.mean(), after - after.mean()
    size = float(np.sqrt((before**2).sum() * (after**2).sum()))
    return float((before * after).sum()) / size if size else 0.0
