"""In which frames an object counts as visible, by its areas: the rules of FRTM for YouTube-VOS and DAVIS 2017.

Source: the metadata of Robinson et al., FRTM, CVPR 2020: facts about the videos of DAVIS, decided by hand there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.reader import ShardSet

MIN_AREA = 100
"""Pixels, in the source's own resolution."""
SHARE = 0.25
"""Of its largest area that an object of DAVIS must show."""
SHARES = {
    "bmx-bumps": 0.5,
    "boxing-fisheye": 0.2,
    "cat-girl": 0.2,
    "dog-gooses": 0.2,
    "tractor-sand": 0.1,
    "drone": 0.1,
}
"""disc-jockey was meant to have 0.5, but is misspelt in the published code and has SHARE."""
NEVER_HIDDEN = frozenset(
    (
        "bus",
        "car-turn",
        "drift-turn",
        "kid-football",
        "koala",
        "mallard-fly",
        "motocross-bumps",
        "motorbike",
        "rallye",
        "snowboard",
        "train",
        "upside-down",
    )
)
ALWAYS = range(1 << 31)
BY_HAND: dict[tuple[str, int | None], tuple[range, ...]] = {
    ("classic-car", None): (range(56),),
    ("drone", 1): (range(17), range(24, 60)),
    ("night-race", 1): (range(29),),
    ("night-race", 2): (ALWAYS,),
}
"""(video, object or None for all) -> frames in which it is visible, whatever its share."""


def is_davis(shard_set: ShardSet) -> bool:
    """Whether a set was built from DAVIS."""
    return shard_set.manifest.kind.startswith("davis")


def large_enough(areas: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(frames,): where an object of `areas` (frames,) pixels has MIN_AREA."""
    return np.asarray(areas >= MIN_AREA)


def davis_visibility(video: str, object_id: int, areas: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(frames,): where an object of a DAVIS video shows enough of itself; areas (frames,) pixels, frames in order."""
    ranges = BY_HAND.get((video, object_id), BY_HAND.get((video, None)))
    if ranges is not None:
        return np.array([any(frame in span for span in ranges) for frame in range(len(areas))])
    if video in NEVER_HIDDEN:
        return np.full(len(areas), bool(areas.max()))
    return np.asarray(areas / (areas.max() + 0.001) >= SHARES.get(video, SHARE))
