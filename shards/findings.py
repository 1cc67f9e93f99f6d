"""Everything odd in the input, one line each in rejected.jsonl: what was refused, what was mended, what to look at."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shards.errors import DataError
from shards.storage.paths import Location, write_bytes

REJECTED = "rejected.jsonl"
# What is done about everything refused: a video that lacks a frame or a mask is not the video of the data set.
DROPPED = "video dropped"
# refused: its video is left out, or the build stopped (--on-bad). repaired: stored other than it came. warning: stored
# as it came, or passed over.
Severity = Literal["refused", "repaired", "warning"]
OnBad = Literal["stop", "skip"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found in the input.

    reason: a few fixed words to count by. path: relative to the source. video, frame: names in the source, "" where it
    does not apply. what_was_done: video dropped (whatever is refused), re-encoded, kept, ignored, ...
    """

    severity: Severity
    reason: str
    expected: str
    found: str
    remedy: str
    what_was_done: str
    path: str = ""
    video: str = ""
    frame: str = ""

    def at(self, path: str, video: str, frame: str = "") -> Finding:
        """The same finding with its place."""
        return dataclasses.replace(self, path=path, video=video, frame=frame)

    def error(self, source: Location) -> DataError:
        """The finding as an exception, for builds that stop at the first refused input of this source."""
        remedy = f"{self.remedy}; --on-bad skip goes on without it ({self.what_was_done})"
        return DataError(source / self.path, expected=self.expected, found=self.found, remedy=remedy)

    def encode(self) -> bytes:
        """One line of JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False).encode() + b"\n"


class RefusedError(Exception):
    """Raised where an input cannot be used; carries the finding, still without its place."""

    def __init__(self, reason: str, *, expected: str, found: str, remedy: str) -> None:
        super().__init__(reason)
        self.finding = Finding("refused", reason, expected, found, remedy, DROPPED)


class Findings:
    """Findings of one job in order; with `stop`, adding a refusal raises it as DataError instead."""

    def __init__(self, on_bad: OnBad, source: Location) -> None:
        self._source = source
        self._stop = on_bad == "stop"
        self.list: list[Finding] = []
        self.num_refused = 0

    def add(self, finding: Finding) -> None:
        """Keep a finding. Raises DataError for a refusal under `stop`."""
        if self._stop and finding.severity == "refused":
            raise finding.error(self._source)
        self.list.append(finding)
        self.num_refused += finding.severity == "refused"

    def extend(self, findings: Iterable[Finding]) -> None:
        """`add` each."""
        for finding in findings:
            self.add(finding)


def write_findings(root: Location, findings: Iterable[Finding]) -> str:
    """Write the findings of a set; SHA-256 of the file for its manifest."""
    data = b"".join(finding.encode() for finding in findings)
    write_bytes(root / REJECTED, data)
    return hashlib.sha256(data).hexdigest()


def read_findings(root: Location) -> list[Finding]:
    """Findings of a finished set, in the order of its shards."""
    with (root / REJECTED).open("rb") as file:
        return [Finding(**json.loads(line)) for line in file]
