"""The jobs of a build, one shard each: what a job makes, and how a later run sees that it is finished."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from shards.convert import OrderedMap, ReadyVideo, convert_video
from shards.findings import Finding, Findings
from shards.index import SCHEMAS, Batches
from shards.manifest import ShardFacts, encode_json
from shards.plan import BuildRequest
from shards.sources.types import Source
from shards.storage import replacing, write_bytes
from shards.writer import write_shard


class Progress(NamedTuple):
    """Work done: frames converted, their bytes in the shard, inputs refused."""

    frames: int
    bytes: int
    refused: int


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class DoneShard:
    """What a finished job leaves beside the tar. facts None: no video of it was usable and there is no tar."""

    facts: ShardFacts | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One shard to make: path of its tar, folder for what only the build needs, names of its videos."""

    path: Path
    work: Path
    names: tuple[str, ...]

    @property
    def side_file(self) -> Path:
        """Written last: a shard whose side file is there is finished."""
        return self.work / f"{self.path.stem}.json"

    def rows_file(self, table: str) -> Path:
        """Rows of the index that belong to the shard."""
        return self.work / f"{self.path.stem}.{table}.arrow"

    def is_done(self) -> bool:
        """Whether an earlier run finished it and its tar still has the size it had then."""
        if not self.side_file.is_file():
            return False
        facts = self.read().facts
        return facts is None or (self.path.is_file() and self.path.stat().st_size == facts.bytes)

    def read(self) -> DoneShard:
        """What the finished job left."""
        fields = json.loads(self.side_file.read_bytes())
        facts = None if fields["facts"] is None else ShardFacts(**fields["facts"])
        return DoneShard(facts, tuple(Finding(**finding) for finding in fields["findings"]))

    def read_rows(self) -> Batches:
        """Rows of the index that belong to the finished shard."""
        rows = {}
        for table in SCHEMAS:
            with pa.ipc.open_file(self.rows_file(table)) as reader:
                rows[table] = reader.get_batch(0)
        return rows


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every job of a build needs: the source, the arguments, how to map over frames, whom to tell."""

    source: Source
    request: BuildRequest
    map_frames: OrderedMap
    report: Report

    def run(self, job: ShardJob) -> None:
        """Make the tar, its rows and, last, its side file. Raises DataError for refused input under `stop`."""
        findings = Findings(self.request.on_bad, self.request.sources[0])
        written = write_shard(job.path, self.request.mask_codec, self._converted(job.names, findings))
        facts = written.facts if written.facts.videos else None
        if facts is None:
            job.path.unlink()
        for table, batch in written.rows.items():
            with replacing(job.rows_file(table)) as file, pa.ipc.new_file(file, SCHEMAS[table]) as writer:
                writer.write_batch(batch)
        write_bytes(job.side_file, encode_json(dataclasses.asdict(DoneShard(facts, tuple(findings.list)))))

    def _converted(self, names: tuple[str, ...], findings: Findings) -> Iterator[ReadyVideo]:
        for name in names:
            video = self.source.video(name)
            before = len(findings.list)
            ready = convert_video(video, self.source.kind, self.request.mask_codec, findings, self.map_frames)
            if ready is not None:
                yield ready
            refused = sum(finding.severity == "refused" for finding in findings.list[before:])
            self.report(Progress(len(video.frames), ready.num_bytes if ready else 0, refused))
