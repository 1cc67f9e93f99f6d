"""What every kind of source gives: videos in a fixed order, each with its files, listed only when it is their turn."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, Protocol

from shards.findings import Finding, RefusedError
from shards.object_facts import Given, ObjectFacts, encode_object_facts
from shards.sources.options import MaskReading, SourceOptions
from shards.storage.paths import Location, RemotePath, read_range

# No image or mask of any data set comes near; a damaged or malicious header must not fill the memory.
MAX_FILE_BYTES = 1 << 28

MEND_LINK = "restore the file, or correct the link"

# all: a mask for each frame, or for the first alone. some: sparse by design. none: there need not be any.
Expected = Literal["all", "some", "none"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read, or the part of a tar that is one.

    label: its path relative to the source, for messages. offset: in the tar at `path`; None: the file is `path` itself.
    changed: time of its last change or the like; another one means other bytes. fault: why it cannot be read, `a FIFO`.
    """

    path: Location
    label: str
    num_bytes: int
    offset: int | None = None
    changed: str = ""
    fault: str = ""

    @property
    def name(self) -> str:
        """File name with ending."""
        return PurePosixPath(self.label).name

    def read(self) -> bytes:
        """All its bytes. Raises RefusedError if it is absurdly large, no regular file, or cut off inside a tar."""
        if self.fault:
            raise RefusedError("no regular file", expected="a regular file", found=self.fault, remedy=MEND_LINK)
        if self.num_bytes > MAX_FILE_BYTES:
            raise RefusedError(
                "absurd size",
                expected=f"at most {MAX_FILE_BYTES} bytes",
                found=f"{self.num_bytes}",
                remedy="restore the file from the original package",
            )
        if self.offset is None:
            return self.path.read_bytes()
        data = self._read_range(self.offset)
        if len(data) != self.num_bytes:
            raise RefusedError(
                "cut off",
                expected=f"{self.num_bytes} bytes at byte {self.offset} of the tar",
                found=f"{len(data)}",
                remedy="download the tar again",
            )
        return data

    def _read_range(self, offset: int) -> bytes:
        if isinstance(self.path, RemotePath):
            return read_range(self.path, offset, self.num_bytes)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, self.num_bytes, offset)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """One frame. stem: its name without ending; mask None where the frame is not annotated."""

    stem: str
    image: SourceFile
    mask: SourceFile | None


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """One video, frames in time order.

    label, masks_label: its folders relative to the source. findings: about its file names. reading: what the values of
    its masks mean; `soft`: levels. expected: which frames have masks. still: one photo, not a video. objects: what the
    data set lists about objects, by id; {} where it lists nothing. given: which of their masks it gives.
    """

    name: str
    label: str
    masks_label: str
    splits: tuple[str, ...]
    frames: tuple[SourceFrame, ...]
    findings: tuple[Finding, ...]
    reading: MaskReading | Literal["soft"] = "ids"
    expected: Expected = "all"
    still: bool = False
    objects: Mapping[int, ObjectFacts] = field(default_factory=dict)
    given: Given = "all"

    def stamp(self) -> bytes:
        """What tells, without reading a file, whether it is still the same video: SHA-256, 32 bytes."""
        files = [file for frame in self.frames for file in (frame.image, frame.mask) if file is not None]
        seen = {
            "name": self.name,
            "splits": self.splits,
            "files": [(file.label, file.num_bytes, file.changed, file.fault) for file in files],
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "objects": encode_object_facts(self.objects),
        }
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).digest()


class VideoSize(NamedTuple):
    """All the plan has to know about a video: name, splits, frames, bytes of its images and masks."""

    name: str
    splits: tuple[str, ...]
    num_frames: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """Where a source is and what of it is wanted. splits: None for every split there is.

    scratch: local folder for indexes of tars, which later runs use again. jobs: cores for making them. new: False where
    the set is finished already and nothing has to be proven about the source.
    """

    paths: tuple[Location, ...]
    splits: tuple[str, ...] | None
    resolution: str
    options: SourceOptions = field(default_factory=SourceOptions)
    scratch: Path | None = None
    jobs: int = 1
    new: bool = True

    def one_folder(self, kind: str) -> Location:
        """The only path. Raises ValueError if there are several."""
        if len(self.paths) != 1:
            raise ValueError(f"{kind} takes one source folder, not {len(self.paths)}")
        return self.paths[0]


class Source(Protocol):
    """A data set in its original layout. Instances are pickled into worker processes: keep them small."""

    @property
    def kind(self) -> str:
        """Name of the kind, as in SOURCES."""

    @property
    def root(self) -> Location:
        """The folder that labels of files are relative to."""

    @property
    def resolution(self) -> str | None:
        """Name of the folder between JPEGImages and the videos, None for layouts without one."""

    @property
    def soft_masks(self) -> bool:
        """Whether masks are levels of grey, to be stored as such."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is odd about lists and folders."""

    def sizes(self) -> Iterator[VideoSize]:
        """Every video to convert, sorted by name, with its size; reads folders, opens no image."""

    def video(self, name: str) -> SourceVideo:
        """Files of one video."""
