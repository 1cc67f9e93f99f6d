"""The bytes of clips by one of three read plans, which change how they are read and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Literal, get_args

from pipelines.reading.video_pool import VideoPool
from pipelines.source import ClipSource
from pipelines.types import ClipPlan, EncodedClip
from shards.reader import DamagedFrameError, EncodedFrame, Extent, ShardSet
from shards.shard_files import Range
from shards.storage.requests import retries_so_far

PlanName = Literal["frame", "span", "resident"]
OnCorrupt = Literal["stop", "substitute"]
READ_PLANS: tuple[PlanName, ...] = get_args(PlanName)

NEIGHBOUR_GAP = 2048
"""Bytes between two frames that are next to each other in a shard, at most: padding, a header, a small side file."""
WHOLE_SPAN = 1 << 40
"""Larger than any gap in a shard."""
CHUNK_BYTES = 8 << 20
"""Of a video that is read whole, per request: stores answer several faster than a large one."""
MAX_SUBSTITUTES = 16
"""Videos tried in place of a damaged one before the run stops all the same."""


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """How clips are read.

    frame: each frame by a request of its own, next neighbours together. span: frames that lie at most max_gap bytes
    apart by one request, with what lies between them. resident: whole videos, kept in pool_bytes of memory.
    """

    name: PlanName = "frame"
    max_gap: int = WHOLE_SPAN
    pool_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        """ValueError for an unknown plan and for sizes that are none."""
        if self.name not in READ_PLANS:
            raise ValueError(f"unknown read plan {self.name!r}; there are: {', '.join(READ_PLANS)}")
        if min(self.max_gap, self.pool_bytes) < 0:
            raise ValueError(f"max_gap and pool_bytes must be at least 0, got {self.max_gap} and {self.pool_bytes}")

    @property
    def gap(self) -> int:
        """Bytes between two frames up to which they are read together, if the video is not read whole."""
        return NEIGHBOUR_GAP if self.name == "frame" else self.max_gap


@dataclass(frozen=True, slots=True)
class ReadCount:
    """requests: to the storage. bytes_read: by them. bytes_used: of images and masks in the clips.

    retries: requests that had to be made again, for a lost connection, a busy server or a damaged answer.
    """

    requests: int = 0
    bytes_read: int = 0
    bytes_used: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Substitute:
    """A clip that shows another video because bytes of its own are damaged. found: the message of the damage."""

    number: int
    found: str
    shown: str


@dataclass(frozen=True, slots=True)
class ReadClip:
    """A clip with its bytes, what reading them took, and what it stands in for, if anything."""

    clip: EncodedClip
    count: ReadCount
    substitute: Substitute | None = None


class ClipReader:
    """Reads the clips of a source; for any number of threads."""

    def __init__(self, source: ClipSource, reading: ReadPlan | None = None, on_corrupt: OnCorrupt = "stop") -> None:
        if on_corrupt not in get_args(OnCorrupt):
            raise ValueError(f"unknown on_corrupt {on_corrupt!r}; there are: {', '.join(get_args(OnCorrupt))}")
        self.source = source
        self.reading = reading or ReadPlan()
        self.on_corrupt = on_corrupt
        resident = self.reading.name == "resident"
        self._pool: VideoPool[list[bytes]] | None = VideoPool(self.reading.pool_bytes) if resident else None

    def read(self, plan: ClipPlan) -> ReadClip:
        """A plan with the bytes of its frames.

        Damaged bytes raise DamagedFrameError, or with on_corrupt = substitute make it a clip of another video
        (`ClipSource.substitutes`): the same one in every process, since it follows from the clip's number and the data.
        """
        retries = retries_so_far()
        try:
            read = self._read(plan)
        except DamagedFrameError as error:
            if self.on_corrupt == "stop":
                raise
            read = self._read_substitute(plan, error)
        return replace(read, count=replace(read.count, retries=retries_so_far() - retries))

    def _read_substitute(self, plan: ClipPlan, damage: DamagedFrameError) -> ReadClip:
        for other in islice(self.source.substitutes(plan.number), MAX_SUBSTITUTES):
            try:
                read = self._read(other)
            except DamagedFrameError:
                continue
            substitute = Substitute(plan.number, str(damage), self.source.describe(other))
            return ReadClip(read.clip, read.count, substitute)
        damage.add_note(f"the next videos in its place are damaged, too (at most {MAX_SUBSTITUTES} are tried)")
        raise damage

    def _read(self, plan: ClipPlan) -> ReadClip:
        shard_set = self.source.shard_set(plan)
        rows = sorted(set(plan.frames))
        extents = {row: shard_set.extent(row) for row in rows}
        whole = video_range(shard_set, plan.video) if self._pool is not None else None
        if whole is not None and self._pool is not None and whole[1] <= self._pool.limit_bytes:
            frames, requests, num_bytes = self._read_resident(shard_set, plan, whole, extents)
        else:
            frames, requests, num_bytes = _read_ranges(shard_set, extents, self.reading.gap)
        used = sum(extent.used_bytes for extent in extents.values())
        clip = EncodedClip(plan, tuple(frames[row] for row in plan.frames), shard_set.mask_codec)
        return ReadClip(clip, ReadCount(requests, num_bytes, used))

    def _read_resident(
        self, shard_set: ShardSet, plan: ClipPlan, whole: Range, extents: dict[int, Extent]
    ) -> tuple[dict[int, EncodedFrame], int, int]:
        assert self._pool is not None
        shard = next(iter(extents.values())).shard
        ranges = split_range(whole)
        load = partial(shard_set.read_ranges, shard, ranges)
        chunks, loaded = self._pool.get((plan.dataset, plan.video), whole[1], load)
        frames = {
            row: shard_set.unpack(row, cut_out(chunks, extent.start - whole[0], extent.num_bytes))
            for row, extent in extents.items()
        }
        return frames, len(ranges) if loaded else 0, sum(map(len, chunks)) if loaded else 0


def coalesce(ranges: Sequence[Range], max_gap: int) -> list[Range]:
    """The fewest ranges that cover `ranges` (ascending) without bridging a gap of more than max_gap bytes."""
    merged: list[Range] = []
    for start, num_bytes in ranges:
        if merged and start - sum(merged[-1]) <= max_gap:
            first, length = merged[-1]
            merged[-1] = first, max(length, start + num_bytes - first)
        else:
            merged.append((start, num_bytes))
    return merged


def video_range(shard_set: ShardSet, video: int) -> Range:
    """All frames of a video in its shard, as one range."""
    rows = shard_set.frame_rows(video)
    first, last = shard_set.extent(rows[0]), shard_set.extent(rows[-1])
    return first.start, last.start + last.num_bytes - first.start


def split_range(whole: Range) -> list[Range]:
    """A range in pieces of CHUNK_BYTES."""
    start, num_bytes = whole
    return [(start + at, min(CHUNK_BYTES, num_bytes - at)) for at in range(0, num_bytes, CHUNK_BYTES)]


def cut_out(chunks: Sequence[bytes], start: int, num_bytes: int) -> memoryview:
    """Bytes start .. start + num_bytes of what `split_range` split; joined whole, a video would be in memory twice."""
    number, inside = divmod(start, CHUNK_BYTES)
    found = memoryview(chunks[number])[inside : inside + num_bytes]
    while len(found) < num_bytes and (number := number + 1) < len(chunks):
        found = memoryview(b"".join((found, memoryview(chunks[number])[: num_bytes - len(found)])))
    return found


def _read_ranges(
    shard_set: ShardSet, extents: dict[int, Extent], max_gap: int
) -> tuple[dict[int, EncodedFrame], int, int]:
    """Frames by row, number of requests, bytes read. A video lies in one shard, so all extents do."""
    shard = next(iter(extents.values())).shard
    ranges = coalesce([(extent.start, extent.num_bytes) for extent in extents.values()], max_gap)
    found = dict(zip(ranges, shard_set.read_ranges(shard, ranges), strict=True))
    frames = {}
    for row, extent in extents.items():
        start, data = next((start, data) for (start, length), data in found.items() if extent.start < start + length)
        view = memoryview(data)[extent.start - start :]
        frames[row] = shard_set.unpack(row, view[: extent.num_bytes])
    return frames, len(ranges), sum(map(len, found.values()))
