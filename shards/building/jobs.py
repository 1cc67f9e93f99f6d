"""The jobs of a build, one shard each: what a job makes, and how a later run sees that it is finished."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from shards.building.convert import OrderedMap, ReadyVideo, convert_video
from shards.building.plan import BuildRequest
from shards.building.writer import write_shard
from shards.errors import DataError
from shards.findings import Finding, Findings, OnBad
from shards.index.derive import SCHEMAS, Batches
from shards.manifest import ShardFacts, encode_json
from shards.sources.types import Source, VideoSize
from shards.storage.paths import Location, file_size, replacing, write_bytes


class Progress(NamedTuple):
    """Work done: frames converted, their bytes in the shard, inputs refused."""

    frames: int
    bytes: int
    refused: int


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class DoneShard:
    """What a finished job leaves beside the tar.

    facts None: no video of it was usable and there is no tar. videos: names of those it was made for. stamp: of their
    files as they were (`SourceVideo.stamp`).
    """

    facts: ShardFacts | None
    findings: tuple[Finding, ...]
    videos: tuple[str, ...]
    stamp: str


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One shard to make: path of its tar, folder for what only the build needs, its videos."""

    path: Location
    work: Location
    videos: tuple[VideoSize, ...]

    @property
    def num_frames(self) -> int:
        """Frames of its videos in the source."""
        return sum(video.num_frames for video in self.videos)

    @property
    def side_file(self) -> Location:
        """Written last: a shard whose side file is there is finished."""
        return self.work / f"{self.path.stem}.json"

    def rows_file(self, table: str) -> Location:
        """Rows of the index that belong to the shard."""
        return self.work / f"{self.path.stem}.{table}.arrow"

    def is_made(self) -> bool:
        """Whether an earlier run finished it, for these videos, and its tar still has the size it had then."""
        if not self.side_file.is_file():
            return False
        done = self.read()
        names = tuple(video.name for video in self.videos)
        return names == done.videos and (done.facts is None or file_size(self.path) == done.facts.bytes)

    def is_current(self, source: Source, on_bad: OnBad) -> bool:
        """Whether it is made, of the files as they are now, and a build that stops at bad input would have made it."""
        if not self.is_made():
            return False
        done = self.read()
        if on_bad == "stop" and any(finding.severity == "refused" for finding in done.findings):
            return False
        stamp = hashlib.sha256()
        for video in self.videos:
            stamp.update(source.video(video.name).stamp())
        return stamp.hexdigest() == done.stamp

    def read(self) -> DoneShard:
        """What the finished job left."""
        fields = json.loads(self.side_file.read_bytes())
        facts = None if fields["facts"] is None else ShardFacts(**fields["facts"])
        findings = tuple(Finding(**finding) for finding in fields["findings"])
        return DoneShard(facts, findings, tuple(fields["videos"]), fields["stamp"])

    def read_rows(self) -> Batches:
        """Rows of the index that belong to the finished shard."""
        rows = {}
        for table in SCHEMAS:
            with pa.ipc.open_file(self.rows_file(table).read_bytes()) as reader:
                rows[table] = reader.get_batch(0)
        return rows


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every job of a build needs: the source, the arguments, how to map over frames, whom to tell.

    ahead: convert the next video while one is being written, for shards made on several cores; holds two in memory.
    """

    source: Source
    request: BuildRequest
    map_frames: OrderedMap
    report: Report
    ahead: bool = False

    def run(self, job: ShardJob) -> None:
        """Make the tar, its rows and, last, its side file. Raises DataError for refused input under `stop`."""
        findings = Findings(self.request.on_bad, self.source.root)
        stamp = hashlib.sha256()
        videos = self._converted(job.videos, findings, stamp)
        codec = self.request.target(self.source).codec
        written = write_shard(job.path, codec, _one_ahead(videos) if self.ahead else videos)
        facts = written.facts if written.facts.videos else None
        if facts is None:
            job.path.unlink()
        for table, batch in written.rows.items():
            with replacing(job.rows_file(table)) as file, pa.ipc.new_file(file, SCHEMAS[table]) as writer:
                writer.write_batch(batch)
        names = tuple(video.name for video in job.videos)
        done = DoneShard(facts, tuple(findings.list), names, stamp.hexdigest())
        write_bytes(job.side_file, encode_json(dataclasses.asdict(done)))

    def _converted(
        self, videos: tuple[VideoSize, ...], findings: Findings, stamp: hashlib._Hash
    ) -> Iterator[ReadyVideo]:
        for size in videos:
            video = self.source.video(size.name)
            if size.num_frames and not video.frames:
                raise _vanished(video.label, size)
            stamp.update(video.stamp())
            before = findings.num_refused
            ready = convert_video(video, self.request.target(self.source), findings, self.map_frames)
            refused = findings.num_refused - before
            self.report(Progress(size.num_frames, ready.num_bytes if ready else 0, refused))
            if ready is not None:
                yield ready


def _one_ahead(videos: Iterator[ReadyVideo]) -> Iterator[ReadyVideo]:
    """The same videos, each asked for while the one before is in use."""
    with ThreadPoolExecutor(1) as executor:
        coming = executor.submit(next, videos, None)
        while (video := coming.result()) is not None:
            coming = executor.submit(next, videos, None)
            yield video


def _vanished(label: str, size: VideoSize) -> DataError:
    """Not a finding: a source that goes away in mid-build must not become a set without its videos."""
    return DataError(
        label,
        expected=f"{size.num_frames} frames of video {size.name}, as when the build was planned",
        found="none",
        remedy="the source went away or changed: bring it back and run the same command again",
    )
