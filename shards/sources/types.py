"""What every kind of source gives: videos in a fixed order, each with its files, listed only when it is their turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from shards.findings import Finding


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read. label: its path relative to the source, for messages."""

    path: Path
    label: str

    @property
    def name(self) -> str:
        """File name with ending."""
        return self.path.name

    def read(self) -> bytes:
        """All its bytes."""
        return self.path.read_bytes()


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """One frame. stem: its name without ending; mask None where the frame is not annotated."""

    stem: str
    image: SourceFile
    mask: SourceFile | None


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """One video, frames in time order.

    label, masks_label: its folders relative to the source. findings: about its file names.
    """

    name: str
    label: str
    masks_label: str
    splits: tuple[str, ...]
    frames: tuple[SourceFrame, ...]
    findings: tuple[Finding, ...]


class VideoSize(NamedTuple):
    """All the plan has to know about a video: name, splits, frames, bytes of its images and masks."""

    name: str
    splits: tuple[str, ...]
    num_frames: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """Where a source is and what of it is wanted. splits: None for every split there is."""

    paths: tuple[Path, ...]
    splits: tuple[str, ...] | None
    resolution: str


class Source(Protocol):
    """A data set in its original layout. Instances are pickled into worker processes: keep them small."""

    @property
    def kind(self) -> str:
        """Name of the kind, as in SOURCES."""

    @property
    def resolution(self) -> str | None:
        """Name of the folder between JPEGImages and the videos, None for layouts without one."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is odd about lists and folders."""

    def sizes(self) -> Iterator[VideoSize]:
        """Every video to convert, sorted by name, with its size; reads folders, opens no image."""

    def video(self, name: str) -> SourceVideo:
        """Files of one video."""
