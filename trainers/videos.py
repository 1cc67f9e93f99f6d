"""Whole videos to predict or to score, out of a shard set or a folder in the DAVIS layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from shards.errors import DataError
from shards.manifest import MANIFEST
from shards.masks import decode_label_map
from shards.naming import frame_number
from shards.reader import ShardSet
from trainers.label_files import LabelMap, read_label_map

JPEG_SUFFIXES = (".jpg", ".jpeg")


class VideoSource(Protocol):
    """Videos by name and frames by name, as the source spells them; frames in time order. Picklable."""

    @property
    def identity(self) -> str:
        """What tells this data set from another: its fingerprint, or the folder's name where it has none."""

    def select(self, split: str) -> tuple[str, ...]:
        """Names of a split's videos. Raises DataError or ValueError listing the splits there are."""

    def frame_names(self, video: str) -> tuple[str, ...]:
        """All frames of a video. Raises DataError for an unknown video."""

    def annotated_names(self, video: str) -> tuple[str, ...]:
        """Frames that have a label map; a frame without one is not an empty frame."""

    def read_image(self, video: str, frame: str) -> bytes:
        """JPEG bytes of a frame."""

    def read_labels(self, video: str, frame: str) -> LabelMap:
        """Ids (H, W) uint8 of an annotated frame."""

    def palette(self, video: str) -> bytes | None:
        """RGB bytes of the video's palette, None where it has none."""

    def locate(self, video: str, frame: str) -> str:
        """Where the frame lies, for messages."""


def open_videos(path: Path, *, list_folders: Sequence[str] = ("2017",)) -> VideoSource:
    """The shard set or the DAVIS folder at `path`; list_folders: where below ImageSets a folder's split lists may be.

    Raises DataError if it is neither.
    """
    if (path / MANIFEST).is_file():
        return ShardVideos(ShardSet.open(path))
    if (path / "Annotations").is_dir():
        return DavisFolder(path, tuple(list_folders))
    raise DataError(
        path,
        expected=f"a shard set ({MANIFEST}) or a DAVIS folder (Annotations/480p)",
        found="neither" if path.is_dir() else "no such folder",
        remedy="give the output of tools/shard.py or the folder that holds Annotations, JPEGImages and ImageSets",
    )


@dataclass(frozen=True, slots=True)
class DavisFolder:
    """A raw DAVIS tree: JPEGImages, Annotations and ImageSets."""

    root: Path
    list_folders: tuple[str, ...]
    resolution: str = "480p"

    @property
    def identity(self) -> str:
        """The folder's name: raw files have no fingerprint."""
        return self.root.resolve().name

    def select(self, split: str) -> tuple[str, ...]:
        """Videos of ImageSets/<list folder>/<split>.txt, in the list's order, each once."""
        lists = [self.root / "ImageSets" / folder / f"{split}.txt" for folder in self.list_folders]
        for path in lists:
            if path.is_file():
                return read_split_list(path)
        there = sorted(str(path.relative_to(self.root)) for path in self.root.glob("ImageSets/*/*.txt"))
        raise DataError(
            lists[0],
            expected=f"the list of split {split!r}",
            found=f"only {', '.join(there)}" if there else "no lists at all",
            remedy="name another split, or name the videos",
        )

    def frame_names(self, video: str) -> tuple[str, ...]:
        """Stems of the video's JPEG files."""
        return self._stems("JPEGImages", video, JPEG_SUFFIXES)

    def annotated_names(self, video: str) -> tuple[str, ...]:
        """Stems of the video's PNG files."""
        return self._stems("Annotations", video, (".png",))

    def read_image(self, video: str, frame: str) -> bytes:
        """Bytes of <frame>.jpg, whatever the spelling of its suffix."""
        return self._image_path(video, frame).read_bytes()

    def read_labels(self, video: str, frame: str) -> LabelMap:
        """Ids of <frame>.png."""
        return read_label_map(self.root / "Annotations" / self.resolution / video / f"{frame}.png")

    def palette(self, video: str) -> bytes | None:
        """None: results get the palette of DAVIS, which these files have."""
        return None

    def locate(self, video: str, frame: str) -> str:
        """Path of the image."""
        return str(self._image_path(video, frame))

    def _image_path(self, video: str, frame: str) -> Path:
        folder = self.root / "JPEGImages" / self.resolution / video
        plain = folder / f"{frame}.jpg"
        if plain.is_file():
            return plain
        return next((path for path in folder.glob(f"{frame}.*") if path.suffix.lower() in JPEG_SUFFIXES), plain)

    def _stems(self, kind: str, video: str, suffixes: tuple[str, ...]) -> tuple[str, ...]:
        folder = self.root / kind / self.resolution / video
        if not folder.is_dir():
            raise DataError(
                folder,
                expected=f"the files of video {video}",
                found="no such folder",
                remedy="correct the video's name or the split list, or complete the data set",
            )
        return time_order(path.stem for path in folder.iterdir() if path.suffix.lower() in suffixes)


class ShardVideos:
    """The videos of a shard set, under the names they had before it was built."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._latest: tuple[str, dict[str, int]] = ("", {})  # a video and the rows of its frames by name

    @property
    def identity(self) -> str:
        """Fingerprint of the set."""
        return self._shards.fingerprint

    def select(self, split: str) -> tuple[str, ...]:
        """Videos of a split in the order of the set."""
        return tuple(self._shards.videos.original_names[int(row)] for row in self._shards.select(split))

    def frame_names(self, video: str) -> tuple[str, ...]:
        """Names of all frames."""
        return tuple(self._rows(video))

    def annotated_names(self, video: str) -> tuple[str, ...]:
        """Names of the frames that have a mask member."""
        annotated = self._shards.annotated(self._shards.video_row(video))
        return tuple(name for name, has_mask in zip(self._rows(video), annotated, strict=True) if has_mask)

    def read_image(self, video: str, frame: str) -> bytes:
        """JPEG bytes of a frame, checked against the index."""
        return self._shards.read(self._rows(video)[frame]).image

    def read_labels(self, video: str, frame: str) -> LabelMap:
        """Ids of an annotated frame."""
        mask = self._shards.read(self._rows(video)[frame]).mask
        if mask is None:
            raise DataError(
                self.locate(video, frame),
                expected="a label map",
                found="a frame without annotation",
                remedy="use a split whose frames are annotated",
            )
        return decode_label_map(mask, self._shards.mask_codec)

    def palette(self, video: str) -> bytes | None:
        """Palette its masks had in the source."""
        return self._shards.videos.palette(self._shards.video_row(video))

    def locate(self, video: str, frame: str) -> str:
        """Shard, video and frame."""
        return f"{self._shards.path}: {self._shards.locate(self._rows(video)[frame])}"

    def _rows(self, video: str) -> dict[str, int]:
        if self._latest[0] != video:
            rows = self._shards.frame_rows(self._shards.video_row(video))
            self._latest = video, {self._shards.frame_name(row): row for row in rows}
        return self._latest[1]


def read_split_list(path: Path) -> tuple[str, ...]:
    """Video names of a split list, each once: one per line, or DAVIS 2016's pairs of file names."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(path, expected="a text file", found=f"{error}", remedy="restore the list") from None
    names = (PurePosixPath(line.split()[0]).parent.name if line.startswith("/") else line for line in lines if line)
    if not (videos := tuple(dict.fromkeys(names))):
        raise DataError(path, expected="names of videos", found="none", remedy="restore the list")
    return videos


def time_order(names: Iterable[str]) -> tuple[str, ...]:
    """Frame names by the number they end in, then by spelling; names without a number last."""

    def key(name: str) -> tuple[bool, int, str]:
        number = frame_number(name)
        return number is None, number or 0, name

    return tuple(sorted(names, key=key))
