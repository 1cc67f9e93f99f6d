"""DAVIS 2016: lists of frame pairs and masks of 0/255; or the DAVIS 2017 tree with all objects of a frame as one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from shards.errors import DataError
from shards.findings import DROPPED, Finding
from shards.sources.davis import read_splits
from shards.sources.folders import frame_order, split_name, visible_files
from shards.sources.lists import CHECK_LIST, FolderVideos, VideoFolders, read_lines, text_lists
from shards.sources.types import Source, SourceFile, SourceFrame, SourceRequest, SourceVideo, VideoSize
from shards.storage.paths import Location

MERGED_LISTS = "ImageSets/2016"


@dataclass(frozen=True, slots=True)
class _ListedVideo:
    """Frames of one video as the lists pair them: image file name -> mask file name."""

    splits: tuple[str, ...]
    pairs: dict[str, str]


@dataclass(frozen=True, slots=True)
class Davis2016:
    """A DAVIS 2016 tree. videos: by name, sorted; a video has the frames that any list names."""

    root: Location
    resolution: str
    videos: dict[str, _ListedVideo]
    findings: tuple[Finding, ...]
    kind: str = field(default="davis2016", init=False)
    soft_masks: bool = field(default=False, init=False)

    def sizes(self) -> Iterator[VideoSize]:
        """Every listed video in the order of names; lists its folders."""
        for name in self.videos:
            video = self.video(name)
            files = [file for frame in video.frames for file in (frame.image, frame.mask) if file is not None]
            yield VideoSize(name, video.splits, len(video.frames), sum(file.num_bytes for file in files))

    def video(self, name: str) -> SourceVideo:
        """Frames of one video in the order of their numbers."""
        listed = self.videos[name]
        images, masks = self._files("JPEGImages", name), self._files("Annotations", name)
        labels = [f"{folder}/{self.resolution}/{name}" for folder in ("JPEGImages", "Annotations")]
        frames, findings = [], []
        for image in sorted(listed.pairs, key=frame_order):
            if image in images:
                mask = masks.get(listed.pairs[image])
                frames.append(SourceFrame(split_name(image)[0], images[image], mask))
            else:
                gone = Finding("refused", "no such frame", "the listed image", "none", CHECK_LIST, DROPPED)
                findings.append(gone.at(f"{labels[0]}/{image}", name, split_name(image)[0]))
        unlisted = sorted(set(images) - set(listed.pairs))
        if unlisted:
            found = f"{len(unlisted)} others, the first is {unlisted[0]}"
            odd = Finding("warning", "frames in no list", "the listed frames", found, CHECK_LIST, "ignored")
            findings.append(odd.at(labels[0], name))
        return SourceVideo(name, labels[0], labels[1], listed.splits, tuple(frames), tuple(findings), reading="binary")

    def _files(self, folder: str, video: str) -> dict[str, SourceFile]:
        label = f"{folder}/{self.resolution}/{video}"
        return {file.name: file for file in visible_files(self.root / label, label)}


def open_davis2016(request: SourceRequest) -> Source:
    """Read the lists of a DAVIS 2016 tree, or those of ImageSets/2016 in a DAVIS 2017 tree. Raises DataError."""
    request.options.require_only("davis2016")
    root = request.one_folder("davis2016")
    lists = root / "ImageSets" / request.resolution
    if lists.is_dir():
        return _open_pairs(request, root, lists)
    images, masks = f"JPEGImages/{request.resolution}", f"Annotations/{request.resolution}"
    if not ((root / MERGED_LISTS).is_dir() and (root / images).is_dir()):
        raise DataError(
            lists,
            expected=f"lists of DAVIS 2016, or {MERGED_LISTS} and {images} of a DAVIS 2017 tree",
            found="neither" if root.is_dir() else f"no folder {root}",
            remedy="give the folder that holds JPEGImages; --resolution chooses the folder below it",
        )
    findings: list[Finding] = []
    splits = read_splits(root, images, (MERGED_LISTS,), request.splits, findings)
    places = {name: VideoFolders(f"{images}/{name}", f"{masks}/{name}", splits[name]) for name in splits}
    return FolderVideos("davis2016", root, request.resolution, places, tuple(findings), reading="merged")


def _open_pairs(request: SourceRequest, root: Location, lists: Location) -> Davis2016:
    there = text_lists(lists)
    unknown = [split for split in request.splits or () if split not in there]
    if unknown or not there:
        raise DataError(
            lists / f"{unknown[0] if unknown else '*'}.txt",
            expected="a list of frame pairs",
            found=f"only {', '.join(there) or 'no list'}",
            remedy="choose --split among these",
        )
    splits: dict[str, set[str]] = {}
    pairs: dict[str, dict[str, str]] = {}
    for split in sorted(set(request.splits or there)):
        for line in read_lines(there[split]):
            video, image, mask = _parse_pair(line, there[split], request.resolution)
            splits.setdefault(video, set()).add(split)
            pairs.setdefault(video, {})[image] = mask
    videos = {name: _ListedVideo(tuple(sorted(splits[name])), pairs[name]) for name in sorted(pairs)}
    return Davis2016(root, request.resolution, videos, ())


def _parse_pair(line: str, path: Location, resolution: str) -> tuple[str, str, str]:
    """(video, image file, mask file) of `/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png`."""
    found = re.fullmatch(r"/?JPEGImages/([^/]+)/([^/]+)/([^/]+?)\s+/?Annotations/([^/]+)/([^/]+)/([^/]+)", line)
    if found:
        image_size, video, image, mask_size, mask_video, mask = found.groups()
        if (image_size, mask_size, mask_video) == (resolution, resolution, video) and video not in (".", ".."):
            return video, image, PurePosixPath(mask).name
    raise DataError(
        path,
        expected=f"lines like '/JPEGImages/{resolution}/bear/00000.jpg /Annotations/{resolution}/bear/00000.png'",
        found=f"{line!r}",
        remedy="for lists of video names use the kind davis2017",
    )
