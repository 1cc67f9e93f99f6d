"""How a run reads its data: the config's `reading`, which changes no batch, and a stage's `pooled`, which does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer
from pydantic.dataclasses import dataclass

from pipelines.order.pooled import Pooled
from pipelines.reading.clip_reader import NEIGHBOUR_GAP, OnCorrupt, ReadPlan
from pipelines.reading.cost import choose_reading, known_speed, probe_source, span_gap
from pipelines.source import ClipSource
from shards.building.plan import parse_size
from shards.byte_cache import LEAST_BYTES, open_cache
from shards.shard_files import ShardOpener, open_shard_for_clips
from shards.speed import StorageSpeed
from shards.storage.paths import Location, locate
from trainers.choices import STRICT, Count, NotNegative, Number

logger = logging.getLogger(__name__)


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


def _location(value: Any) -> Location:
    if not isinstance(value, str | Path) and not hasattr(value, "url"):
        raise ValueError(f"{value!r} is no place; write a folder or a URL")
    return locate(value)


DataPath = Annotated[Any, BeforeValidator(_location), PlainSerializer(str, return_type=str)]
"""A folder as a Path, or a URL (s3://, http://, ...) as a RemotePath."""
Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class CacheOptions:
    """Local copies of what is read from URLs, kept between runs and shared by the processes of a machine."""

    folder: Path
    # Disk space it may take: bytes, or a text such as 200GB.
    size: Annotated[Size, Field(ge=LEAST_BYTES)]


@dataclass(frozen=True, config=STRICT)
class PooledOptions:
    """An order for storage where whole videos should be read once and used several times; part of what is trained."""

    # Videos of each data set in use at a time, over all streams.
    videos: Count
    # Clips of each while it is.
    uses: Count
    # Parts of the global batch that never share a video; let the number of processes divide them.
    streams: Count

    def __post_init__(self) -> None:
        """Refuse fewer videos than streams."""
        self.order()

    def order(self) -> Pooled:
        """The same for pipelines."""
        return Pooled(self.videos, self.uses, self.streams)


@dataclass(frozen=True, config=STRICT)
class ReadingOptions:
    """How bytes come from storage into each process."""

    # auto: by latency and bandwidth of the storage, see docs/reading.md.
    plan: Literal["auto", "frame", "span", "resident"] = "auto"
    # Requests under way at a time in each process.
    threads: Count = 16
    # Of each process, for the videos that the plan resident keeps: bytes, or a text such as 2GB.
    memory: Size = 10**9
    # Of the storage, where they are known; null: measured when a stage begins.
    latency_ms: NotNegative | None = None
    bandwidth_mb: Annotated[Number, Field(gt=0)] | None = None
    # Bytes that fail their checksum: stop, or show another video in place of the clip, count it and say which.
    on_corrupt: OnCorrupt = "stop"
    cache: CacheOptions | None = None

    def __post_init__(self) -> None:
        """Refuse one of the two numbers alone."""
        if (self.latency_ms is None) != (self.bandwidth_mb is None):
            raise ValueError("latency_ms and bandwidth_mb go together; give both or neither")

    def opener(self) -> ShardOpener:
        """What shards are opened with. Raises DataError for a cache folder that cannot be written."""
        return open_shard_for_clips if self.cache is None else open_cache(self.cache.folder, self.cache.size)

    def speed(self, source: ClipSource) -> StorageSpeed:
        """Of the storage: as given, or measured in about a second."""
        if self.latency_ms is None or self.bandwidth_mb is None:
            return probe_source(source)
        return known_speed(source, self.latency_ms / 1e3, self.bandwidth_mb * 1e6)

    def reading(self, source: ClipSource, positions: range) -> ReadPlan:
        """The read plan of a rank, which reads these positions of each global batch."""
        if self.plan in ("frame", "resident"):
            # A video that does not fit is read frame by frame: of its whole span, threads would hold hundreds of MB.
            return ReadPlan(self.plan, NEIGHBOUR_GAP, self.memory)
        speed = self.speed(source)
        if self.plan == "span":
            return ReadPlan("span", span_gap(speed))
        choice = choose_reading(source, speed, positions, threads=self.threads, pool_bytes=self.memory)
        logger.info("%s", choice.describe())
        return choice.reading
