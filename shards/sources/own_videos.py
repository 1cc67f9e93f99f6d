"""People's own videos: a folder of images a video, and the same below another folder for masks."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from shards.errors import DataError
from shards.findings import Finding
from shards.sources.folders import IMAGE_ENDINGS, visible_folders
from shards.sources.lists import FolderVideos, VideoFolders, restrict, video_folders
from shards.sources.types import SourceRequest
from shards.storage.paths import Location, RemotePath

# What is no JPEG is encoded as one, which is listed for each video.
ENDINGS = (*IMAGE_ENDINGS, ".png", ".bmp", ".webp", ".tif", ".tiff")
SPLIT = "all"


def open_folder(request: SourceRequest) -> FolderVideos:
    """Videos IMAGES/<video>/<frame>.jpg with masks MASKS/<video>/<frame>.png, where there are any.

    Every video is in the split `all` beside the splits of --list. Raises DataError if there is no video.
    """
    request.options.require_only("folder", "lists", "masks")
    if len(request.paths) > 2:
        raise ValueError(f"folder takes IMAGES and, if there are any, MASKS, not {len(request.paths)} folders")
    root, masks = request.paths[0], request.paths[-1] if len(request.paths) == 2 else None
    if request.splits is not None and set(request.splits) != {SPLIT}:
        raise ValueError(f"folder has the split {SPLIT!r}; name others by --list FILE")
    masks_label = None if masks is None else _relative(masks, root)
    findings: list[Finding] = []
    names = video_folders(root, ".", findings)
    _require_video_folders(root, masks)
    chosen = restrict(dict.fromkeys(names, (SPLIT,)), request.options.lists, findings)
    # A folder that is not there lists as empty.
    places = {
        name: VideoFolders(name, f"{name}/no masks" if masks_label is None else f"{masks_label}/{name}", chosen[name])
        for name in chosen
    }
    return FolderVideos(
        "folder",
        root,
        None,
        places,
        tuple(findings),
        reading=request.options.masks,
        expected="none",
        image_endings=ENDINGS,
    )


def _require_video_folders(root: Location, masks: Location | None) -> None:
    """Raise DataError if there is no folder of a video, or if the folder above images and masks was given."""
    if masks is None and {"JPEGImages", "Annotations"} <= set(visible_folders(root)):
        raise DataError(
            root,
            expected="a folder for each video",
            found="JPEGImages and Annotations",
            remedy="give the folders that hold the videos, images first: .../JPEGImages .../Annotations OUT",
        )
    for folder in (root, *((masks,) if masks is not None else ())):
        if not visible_folders(folder):
            raise DataError(
                folder,
                expected="a folder for each video",
                found="none" if folder.is_dir() else "no such folder",
                remedy="put the frames of each video into a folder of its own below this one",
            )


def _relative(masks: Location, root: Location) -> str:
    """Path from the images to the masks: labels of findings must not hold paths of the machine."""
    if isinstance(masks, Path) and isinstance(root, Path):
        return os.path.relpath(masks, root)
    if isinstance(masks, RemotePath) and isinstance(root, RemotePath) and masks.store == root.store:
        return posixpath.relpath(f"/{masks.url}", f"/{root.url}")
    raise ValueError(f"images and masks must both be local, or both in one store: {root}, {masks}")
