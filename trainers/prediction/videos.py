"""Whole videos to predict or to score, out of a shard set or a folder in the layout of DAVIS or YouTube-VOS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from shards.errors import DataError
from shards.manifest import MANIFEST
from shards.masks import decode_label_map, find_objects
from shards.object_facts import ObjectFacts
from shards.reader import ShardSet
from trainers.label_files import LabelMap
from trainers.prediction.video_folders import DavisFolder, UnknownNameError, is_youtube_vos, open_youtube_vos_folder

UNSUPERVISED = "davis2017_unsupervised"


class VideoSource(Protocol):
    """Videos by name and frames by name, as the source spells them; frames in time order. Picklable."""

    @property
    def identity(self) -> str:
        """What tells this data set from another: its fingerprint, or the folder's name where it has none."""

    @property
    def kind(self) -> str:
        """Kind of data set, as `tools/shard.py` names it; `davis2017_unsupervised` for those annotations."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits there are."""

    @property
    def videos(self) -> Sequence[str]:
        """Names of all videos there are, of every split."""

    def select(self, split: str) -> tuple[str, ...]:
        """Names of a split's videos. Raises DataError or ValueError listing the splits there are."""

    def frame_names(self, video: str) -> tuple[str, ...]:
        """All frames of a video. Raises DataError for an unknown video."""

    def annotated_names(self, video: str) -> tuple[str, ...]:
        """Frames that have a label map; a frame without one is not an empty frame."""

    def object_facts(self, video: str) -> dict[int, ObjectFacts]:
        """What the data set lists about the video's objects, by ascending id; {} where it lists nothing."""

    def read_image(self, video: str, frame: str) -> bytes:
        """JPEG bytes of a frame."""

    def read_labels(self, video: str, frame: str) -> LabelMap:
        """Ids (H, W) uint8 of an annotated frame."""

    def palette(self, video: str) -> bytes | None:
        """RGB bytes of the video's palette, None where it has none."""

    def locate(self, video: str, frame: str) -> str:
        """Where the frame lies, for messages."""


def open_videos(
    path: Path,
    *,
    list_folders: Sequence[str] | None = None,
    splits: Sequence[str] = ("valid",),
    annotations: str = "Annotations",
) -> VideoSource:
    """The shard set, or the folder in the layout of DAVIS or YouTube-VOS, at `path`.

    For raw folders only. list_folders: where below ImageSets the split lists of DAVIS may be (None: where its year has
    them). annotations: its folder of masks. splits: of YouTube-VOS, the first that is there. Raises DataError if
    `path` is nothing of these, UnknownNameError if YouTube-VOS has none of the splits.
    """
    if (path / MANIFEST).is_file():
        return ShardVideos(ShardSet.open(path))
    if (path / "Annotations").is_dir() or (path / annotations).is_dir():
        davis = DavisFolder(path, ("2017",), annotations=annotations)
        usual = ("2016", "480p") if davis.kind == "davis2016" else ("2017",)
        return DavisFolder(path, tuple(list_folders or usual), annotations=annotations)
    if is_youtube_vos(path):
        return open_youtube_vos_folder(path, splits)
    raise DataError(
        path,
        expected=f"a shard set ({MANIFEST}), or a DAVIS folder (Annotations/480p), or YouTube-VOS (valid/JPEGImages)",
        found="neither" if path.is_dir() else "a file" if path.exists() else "no such folder",
        remedy="give the output of tools/shard.py, or the folder that holds Annotations, JPEGImages and ImageSets",
    )


def choose_split(source: VideoSource, wanted: str | None, usual: Sequence[str]) -> str:
    """The split wanted; if none is, the first usual one that is there, or the only one there is.

    Raises UnknownNameError for a wanted split that is not there, and where several are and none is a usual one.
    """
    there = source.splits
    if wanted is None:
        found = next((split for split in usual if split in there), None)
        if found is None and len(there) > 1:
            raise UnknownNameError("split", usual[0], there)
        return found or (there[0] if there else usual[0])
    if there and wanted not in there:
        raise UnknownNameError("split", wanted, there)
    return wanted


def choose_videos(
    source: VideoSource, split: str, names: Sequence[str] | None, *, within_split: bool = False
) -> tuple[str, ...]:
    """The videos named, each once; all of the split if none are. Raises UnknownNameError for another name.

    within_split: those named must be of the split.
    """
    if not names:
        return source.select(split)
    there = source.select(split) if within_split else source.videos
    for name in names:
        if name not in there:
            raise UnknownNameError("video", name, there, where=f" in split {split!r}" if within_split else "")
    return tuple(dict.fromkeys(names))


def first_appearances(source: VideoSource, video: str) -> dict[int, str]:
    """Object id -> the frame whose mask starts it: by the data set's list, else the first annotated one that shows it.

    Ids ascend. Without a list every mask of the video is read.
    """
    listed = source.object_facts(video)
    if listed:
        return {object_id: facts.frames[0] for object_id, facts in listed.items() if facts.frames}
    begun: dict[int, str] = {}
    for frame in source.annotated_names(video):
        for object_id in find_objects(source.read_labels(video, frame)).ids.tolist():
            begun.setdefault(object_id, frame)
    return dict(sorted(begun.items()))


class ShardVideos:
    """The videos of a shard set, under the names they had before it was built."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._latest: tuple[str, dict[str, int]] = ("", {})  # a video and the rows of its frames by name

    @property
    def identity(self) -> str:
        """Fingerprint of the set."""
        return self._shards.fingerprint

    @property
    def kind(self) -> str:
        """Kind of the set."""
        unsupervised = self._shards.manifest.options.get("annotations") == "unsupervised"
        return UNSUPERVISED if unsupervised else self._shards.manifest.kind

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of the set."""
        return tuple(sorted(self._shards.manifest.splits))

    @property
    def videos(self) -> Sequence[str]:
        """Videos of the set, as the source named them."""
        return self._shards.videos.original_names

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

    def object_facts(self, video: str) -> dict[int, ObjectFacts]:
        """What the set lists about the video's objects."""
        return self._shards.videos.object_facts(self._shards.video_row(video))

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
        latest = self._latest  # several threads may ask, each for its own video
        if latest[0] != video:
            rows = self._shards.frame_rows(self._shards.video_row(video))
            self._latest = latest = video, {self._shards.frame_name(row): row for row in rows}
        return latest[1]
