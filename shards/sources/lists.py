"""Lists of video names, and sources whose videos are folders of numbered files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from shards.errors import DataError
from shards.findings import DROPPED, Finding
from shards.object_facts import Given, ObjectFacts
from shards.sources.folders import (
    IMAGE_ENDINGS,
    is_dropping,
    is_frame_name,
    pair_frames,
    printable,
    split_name,
    unreadable_name,
    visible_files,
)
from shards.sources.options import MaskReading
from shards.sources.types import MEND_LINK, Expected, SourceVideo, VideoSize
from shards.storage.paths import Location, list_folder, relative_place

CHECK_LIST = "check the list, or get the part of the data set it belongs to"


class VideoFolders(NamedTuple):
    """Where a video lies: folders of images and masks relative to the root of the source, and what is known of it."""

    images: str
    masks: str
    splits: tuple[str, ...]
    objects: Mapping[int, ObjectFacts] = {}
    given: Given = "all"
    expected: Expected | None = None  # None: as the source's other videos


@dataclass(frozen=True, slots=True)
class FolderVideos:
    """Videos as folders of numbered files. places: by name of the video, sorted."""

    kind: str
    root: Location
    resolution: str | None
    places: dict[str, VideoFolders]
    findings: tuple[Finding, ...]
    reading: MaskReading = "ids"
    expected: Expected = "all"
    image_endings: tuple[str, ...] = IMAGE_ENDINGS
    soft_masks: bool = field(default=False, init=False)

    def sizes(self) -> Iterator[VideoSize]:
        """Every video in the order of names; lists its folders."""
        for name, place in self.places.items():
            images = visible_files(self.root / place.images, place.images)
            masks = visible_files(relative_place(self.root, place.masks), place.masks)
            num_frames = sum(is_frame_name(file.name, self.image_endings) for file in images)
            yield VideoSize(name, place.splits, num_frames, sum(file.num_bytes for file in images + masks))

    def video(self, name: str) -> SourceVideo:
        """Frames and masks of one video."""
        place = self.places[name]
        images = visible_files(self.root / place.images, place.images)
        masks = visible_files(relative_place(self.root, place.masks), place.masks)
        frames, findings = pair_frames(name, images, masks, self.image_endings)
        return SourceVideo(
            name,
            place.images,
            place.masks,
            place.splits,
            frames,
            tuple(findings),
            reading=self.reading,
            expected=place.expected or self.expected,
            objects=place.objects,
            given=place.given,
        )


def text_lists(folder: Location) -> dict[str, Location]:
    """Text files of a folder by their names without ending, sorted; hidden ones are passed over.

    Raises DataError for a list that is a broken link or the like.
    """
    files = [file for file in visible_files(folder, folder.name) if split_name(file.name)[1] == ".txt"]
    for file in files:
        if file.fault:
            raise DataError(file.path, expected="a list of videos", found=file.fault, remedy=MEND_LINK)
    return {split_name(file.name)[0]: file.path for file in files}


def read_names(path: Location, label: str, findings: list[Finding]) -> list[str]:
    """Names of a list in its order, each once. Byte order mark, CR, blanks and empty lines do not count."""
    names: dict[str, None] = {}
    for name in read_lines(path):
        if "JPEGImages/" in name:
            raise DataError(
                path, expected="one video name a line", found=f"{name!r}", remedy="this is a list of DAVIS 2016"
            )
        if name in names:
            twice = Finding("warning", "name twice in a list", "each name once", repr(name), CHECK_LIST, "kept once")
            findings.append(twice.at(label, name))
        else:
            names[name] = None
    return list(names)


def read_lines(path: Location) -> list[str]:
    """Lines of a text file without byte order mark, blanks around them and empty ones. Raises DataError."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(path, expected="UTF-8 text", found=str(error), remedy="save the list as UTF-8") from None
    except FileNotFoundError:
        raise DataError(path, expected="a list", found="no such file", remedy="correct the path") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def unknown_video(label: str, name: str) -> Finding:
    """Refusal of a listed video that is not there."""
    finding = Finding("refused", "no such video", "a folder of images", f"none for {name!r}", CHECK_LIST, DROPPED)
    return finding.at(label, name)


def video_folders(folder: Location, label: str, findings: list[Finding]) -> list[str]:
    """Names of the folders of videos directly inside, sorted; refused are names that are not UTF-8 and broken links."""
    kept = []
    for entry in list_folder(folder):
        if is_dropping(entry.name):
            continue
        refusal = unreadable_name(entry.name) if entry.is_folder or entry.fault else None
        if entry.fault and refusal is None:
            refusal = Finding("refused", "no regular file", "the folder of a video", entry.fault, MEND_LINK, DROPPED)
        if refusal is not None:
            findings.append(refusal.at(printable(f"{label}/{entry.name}"), printable(entry.name)))
        elif entry.is_folder:
            kept.append(entry.name)
    return kept


def restrict(
    splits: Mapping[str, tuple[str, ...]], lists: tuple[Location, ...], findings: list[Finding]
) -> dict[str, tuple[str, ...]]:
    """Splits of the videos that are in one of the lists, each with that list's name as a further split; sorted.

    Without lists: as they are. Raises DataError if no listed video is there.
    """
    added: dict[str, tuple[str, ...]] = {}
    for path in lists:
        for name in read_names(path, path.name, findings):
            if name in splits:
                added[name] = (*added.get(name, splits[name]), path.stem)
            else:
                findings.append(unknown_video(path.name, name))
    if lists and not added:
        raise DataError(lists[0], expected="names of videos of the source", found="none of them", remedy=CHECK_LIST)
    chosen = added if lists else splits
    return {name: tuple(sorted(set(chosen[name]))) for name in sorted(chosen)}
