"""DAVIS 2017: {JPEGImages,Annotations}/<resolution>/<video>/<frame>, one list of video names a split."""

from __future__ import annotations

from pathlib import PurePosixPath

from shards.errors import DataError
from shards.findings import Finding
from shards.sources.folders import visible_folders
from shards.sources.lists import (
    CHECK_LIST,
    FolderVideos,
    VideoFolders,
    read_names,
    restrict,
    text_lists,
    unknown_video,
    video_folders,
)
from shards.sources.types import SourceRequest
from shards.storage.paths import Location

LISTS = "ImageSets/2017"
# The test sets of the unsupervised challenge; its train and val are the lists of 2017.
UNSUPERVISED_LISTS = "ImageSets/2019"


def open_davis2017(request: SourceRequest) -> FolderVideos:
    """Read the lists of a tree. Raises DataError if it is no DAVIS 2017 tree or a wanted split is not there."""
    request.options.require_only("davis2017", "annotations", "lists")
    root = request.one_folder("davis2017")
    unsupervised = request.options.annotations == "unsupervised"
    masks = f"Annotations{'_unsupervised' * unsupervised}/{request.resolution}"
    images = f"JPEGImages/{request.resolution}"
    for needed in (images, masks, LISTS):
        _require_folder(root, needed, LISTS)
    folders = (LISTS, UNSUPERVISED_LISTS) if unsupervised else (LISTS,)
    findings: list[Finding] = []
    splits = read_splits(root, images, folders, request.splits, findings)
    chosen = restrict(splits, request.options.lists, findings)
    without_masks = set(text_lists(root / UNSUPERVISED_LISTS)) if unsupervised else set()
    places = {
        name: VideoFolders(
            f"{images}/{name}",
            f"{masks}/{name}",
            chosen[name],
            expected="none" if without_masks.intersection(splits[name]) else "all",
        )
        for name in chosen
    }
    return FolderVideos("davis2017", root, request.resolution, places, tuple(findings))


def read_splits(
    root: Location, images: str, folders: tuple[str, ...], wanted: tuple[str, ...] | None, findings: list[Finding]
) -> dict[str, tuple[str, ...]]:
    """Video -> names of the lists it is in, for the videos that have a folder below `images`.

    folders: of lists, a later one winning over an earlier for a list of the same name. Raises DataError for a wanted
    list that is not there, or if no listed video is.
    """
    videos = set(video_folders(root / images, images, findings))
    members: dict[str, list[str]] = {}
    for path in _list_files(root, folders, wanted):
        label = f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
        names = read_names(path, label, findings)
        if not wanted and not videos.intersection(names):
            left_out = Finding(
                "warning", "list without videos", "a list of videos here", "none of them", CHECK_LIST, "ignored"
            )
            findings.append(left_out.at(label, ""))
            continue
        for name in names:
            if name in videos:
                members.setdefault(name, []).append(path.stem)
            else:
                findings.append(unknown_video(label, name))
    if not members:
        asked = " ".join(wanted or ("any list",))
        found = f"none in {root / images}"
        raise DataError(root / folders[0], expected=f"videos of {asked}", found=found, remedy=CHECK_LIST)
    return {name: tuple(sorted(members[name])) for name in sorted(members)}


def _require_folder(root: Location, needed: str, lists: str) -> None:
    folder = root / needed
    if folder.is_dir():
        return
    parent = root / str(PurePosixPath(needed).parent)
    there = visible_folders(parent)
    found = f"only {', '.join(there)} beside it" if there else "no such folder"
    if not root.is_dir():
        found = f"no folder {root}"
    raise DataError(
        folder,
        expected=f"the layout of DAVIS 2017 (JPEGImages, Annotations, {lists})",
        found=found,
        remedy="give the folder that holds JPEGImages; --resolution chooses the folder below it",
    )


def _list_files(root: Location, folders: tuple[str, ...], wanted: tuple[str, ...] | None) -> list[Location]:
    there: dict[str, Location] = {}
    for folder in folders:
        there |= text_lists(root / folder)
    for split in wanted or ():
        if split not in there:
            raise DataError(
                root / folders[0] / f"{split}.txt",
                expected="a list of videos",
                found=f"only {', '.join(there) or 'no list'}",
                remedy="choose --split among these",
            )
    return [there[split] for split in sorted(set(wanted or there))]
