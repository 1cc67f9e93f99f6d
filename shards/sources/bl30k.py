"""BL30K: {JPEGImages,Annotations}/<video>/<frame> in folders, or in the published tars, read where they lie."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath

from shards.errors import DataError
from shards.findings import Finding
from shards.sources.folders import IMAGE_ENDINGS, is_frame_name, pair_frames, visible_files, visible_folders
from shards.sources.lists import restrict, video_folders
from shards.sources.tar_members import FOLDERS, index_tar, read_remarks, tar_stamp, video_members, video_sizes
from shards.sources.types import SourceFile, SourceRequest, SourceVideo, VideoSize
from shards.storage.paths import Location

SPLIT = "train"
# Published in the README of MiVOS, by the name of the tar.
PUBLISHED_MD5 = {
    "BL30K_a.tar": "35312550b9a75467b60e3b2be2ceac81",
    "BL30K_b.tar": "269e2f9ad34766b5f73fa117166c1731",
    "BL30K_c.tar": "a3f7c2a62028d0cda555f484200127b9",
    "BL30K_d.tar": "e659ed7c4e51f4c06326855f4aba8109",
    "BL30K_e.tar": "d704e86c5a6a9e920e5e84996c2e0858",
    "BL30K_f.tar": "bf73914d2888ad642bc01be60523caf6",
}
_MAX_DEPTH = 4


@dataclass(frozen=True, slots=True)
class _Tar:
    """A tar, its label in messages, the database of its members, and its size and time of change as text."""

    path: Location
    label: str
    database: Path
    changed: str


@dataclass(frozen=True, slots=True)
class Bl30k:
    """Folders and tars that together hold the videos. trees: folders with JPEGImages, relative to the root.

    lists: None for every video; else the splits of those that some list names.
    """

    root: Location
    trees: tuple[str, ...]
    tars: tuple[_Tar, ...]
    findings: tuple[Finding, ...]
    lists: dict[str, tuple[str, ...]] | None = None
    kind: str = field(default="bl30k", init=False)
    resolution: str | None = field(default=None, init=False)
    soft_masks: bool = field(default=False, init=False)

    def sizes(self) -> Iterator[VideoSize]:
        """Every video in the order of names, from whichever tars and folders hold parts of it."""
        for name, files in groupby(self._files(), key=itemgetter(0)):
            if self.lists is not None and name not in self.lists:
                continue
            num_frames = num_bytes = 0
            for _, folder, file, size in files:
                num_frames += folder == FOLDERS[0] and is_frame_name(file, IMAGE_ENDINGS)
                num_bytes += size
            yield VideoSize(name, self._splits(name), num_frames, num_bytes)

    def video(self, name: str) -> SourceVideo:
        """Frames of one video; images and masks are paired by name, wherever they lie."""
        files: dict[str, list[SourceFile]] = {folder: [] for folder in FOLDERS}
        for tree in self.trees:
            for folder in FOLDERS:
                label = _joined(tree, folder, name)
                files[folder] += visible_files(self.root / label, label)
        for tar in self.tars:
            for member in video_members(tar.database, name):
                label = f"{tar.label}:{member.path}"
                file = SourceFile(tar.path, label, member.num_bytes, member.offset, tar.changed)
                files[member.folder].append(file)
        # Two files of one name are told apart by where they come from.
        images, masks = (sorted(files[folder], key=lambda file: file.name) for folder in FOLDERS)
        frames, findings = pair_frames(name, images, masks)
        labels = [f"{_joined(*self.trees[:1], folder, name)}" for folder in FOLDERS]
        return SourceVideo(name, labels[0], labels[1], self._splits(name), frames, tuple(findings))

    def _splits(self, name: str) -> tuple[str, ...]:
        return (SPLIT,) if self.lists is None else self.lists[name]

    def _files(self) -> Iterator[tuple[str, str, str, int]]:
        """(video, folder, file, bytes) of everything, sorted by video."""
        streams = [video_sizes(tar.database) for tar in self.tars]
        return heapq.merge(*streams, *map(self._tree_files, self.trees), key=itemgetter(0))

    def _tree_files(self, tree: str) -> Iterator[tuple[str, str, str, int]]:
        folders = [_joined(tree, folder) for folder in FOLDERS]
        for name in sorted({name for folder in folders for name in video_folders(self.root / folder, folder, [])}):
            for folder in FOLDERS:
                label = _joined(tree, folder, name)
                listed = visible_files(self.root / label, label)
                if not listed:
                    yield name, folder, "", 0
                yield from ((name, folder, file.name, file.num_bytes) for file in listed)


def open_bl30k(request: SourceRequest) -> Bl30k:
    """Find the trees below folders, and index the members of tars (in threads; MD5 sums on the way where published).

    Raises DataError for a path that holds no BL30K, and for a tar that is damaged or not the published one.
    """
    request.options.require_only("bl30k", "lists", "md5")
    if request.splits is not None and set(request.splits) != {SPLIT}:
        raise ValueError(f"bl30k has the split {SPLIT!r}; name others by --list FILE")
    root = request.paths[0] if request.paths[0].is_dir() else request.paths[0].parent
    trees: list[str] = []
    tars: list[_Tar] = []
    for path in request.paths:
        label = _relative(path, root)
        if path.is_dir():
            trees += _trees(path, label, _MAX_DEPTH)
        else:
            database = _scratch(request) / f"{len(tars)}-{path.name}.members"
            tars.append(_Tar(path, label, database, tar_stamp(path)))
    _index_all(tars, request)
    findings = [remark for tar in tars for remark in read_remarks(tar.database)]
    for tree in trees:
        for folder in FOLDERS:
            video_folders(root / _joined(tree, folder), _joined(tree, folder), findings)
    source = Bl30k(root, tuple(trees), tuple(tars), tuple(findings))
    if (not trees and not tars) or next(source.sizes(), None) is None:
        raise DataError(
            request.paths[0],
            expected="JPEGImages/<video> and Annotations/<video>, in a folder or in tars",
            found="none" if request.paths[0].exists() else "no such file or folder",
            remedy="give the folder that holds JPEGImages, or the published .tar files",
        )
    return _listed(source, request)


def _listed(source: Bl30k, request: SourceRequest) -> Bl30k:
    if not request.options.lists:
        return source
    findings = list(source.findings)
    splits = restrict({size.name: size.splits for size in source.sizes()}, request.options.lists, findings)
    return Bl30k(source.root, source.trees, source.tars, tuple(findings), splits)


def _index_all(tars: list[_Tar], request: SourceRequest) -> None:
    check = request.options.md5 == "check" and request.new

    stop = threading.Event()

    def index(tar: _Tar) -> None:
        md5 = PUBLISHED_MD5.get(tar.path.name) if check else None
        index_tar(tar.path, tar.database, tar.label, md5, stop=stop)

    with ThreadPoolExecutor(max(1, min(request.jobs, len(tars)))) as executor:
        futures = [executor.submit(index, tar) for tar in tars]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            # Reading one of these tars takes minutes: neither Ctrl-C nor a damaged one waits for the others.
            stop.set()
            executor.shutdown(cancel_futures=True)
    for future in sorted(futures, key=lambda one: one.cancelled() or isinstance(one.exception(), InterruptedError)):
        future.result()


def _scratch(request: SourceRequest) -> Path:
    if request.scratch is None:
        raise ValueError("tars need a scratch folder for the index of their members")
    return request.scratch


def _trees(folder: Location, label: str, depth: int) -> list[str]:
    """Labels of the folders that hold JPEGImages or Annotations, at or below `folder`."""
    inside = visible_folders(folder)
    if any(name in FOLDERS for name in inside):
        return [label]
    deeper = (_trees(folder / name, _joined(label, name), depth - 1) for name in inside) if depth else ()
    return [tree for found in deeper for tree in found]


def _joined(*parts: str) -> str:
    return str(PurePosixPath(*parts))


def _relative(path: Location, root: Location) -> str:
    if isinstance(path, Path) and isinstance(root, Path):
        return os.path.relpath(path, root)
    return str(path.relative_to(root))  # type: ignore[arg-type]
