"""Still images with soft masks, one folder a set: DUTS, ECSSD, FSS-1000, BIG, HRSOD and whatever lies like them.

Each image is a video of one frame, named by its path without ending (`fss/abe's_flyingfish/1`), in the split of its set
and in `train`. Recipes of RDE and STCN take fss, DUTS-TR, DUTS-TE and ecssd once, BIG_small and HRSOD_small five times.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from shards import png
from shards.errors import DataError
from shards.findings import DROPPED, Finding, RefusedError
from shards.images import read_image
from shards.masks import SOFT_THRESHOLD
from shards.soft_masks import read_levels
from shards.sources.folders import (
    IMAGE_ENDINGS,
    MASK_ENDING,
    orphan_mask,
    printable,
    split_name,
    unreadable_name,
    visible_files,
    visible_folders,
)
from shards.sources.options import Duplicates
from shards.sources.types import MAX_FILE_BYTES, SourceFile, SourceFrame, SourceRequest, SourceVideo, VideoSize
from shards.storage.paths import Location

EVERYTHING = "train"
# Folders that hold only images or only masks, `DUTS-TR-Image` or `ground_truth_mask`: they do not tell images apart.
# A class of objects may be called `gas_mask` as well; its folder holds both.
_ROLE = re.compile(r"(.*[-_ ])?(images?|imgs?|masks?|gt|ground_?truth([-_ ]mask)?)", re.IGNORECASE)
_ROLE_OF_FILE = re.compile(r"(.+)_(im|gt)")
_MAX_DEPTH = 4


class _Still(NamedTuple):
    """One image and its mask, None where it has none."""

    image: SourceFile
    mask: SourceFile | None


@dataclass(frozen=True, slots=True)
class StaticImages:
    """Sets of still images. stills: by name, sorted."""

    root: Location
    stills: dict[str, _Still]
    findings: tuple[Finding, ...]
    kind: str = field(default="static", init=False)
    resolution: str | None = field(default=None, init=False)
    soft_masks: bool = field(default=True, init=False)

    def sizes(self) -> Iterator[VideoSize]:
        """Every image in the order of names."""
        for name, still in self.stills.items():
            num_bytes = still.image.num_bytes + (still.mask.num_bytes if still.mask else 0)
            yield VideoSize(name, self._splits(name), 1, num_bytes)

    def video(self, name: str) -> SourceVideo:
        """The image as a video of one frame."""
        image, mask = self.stills[name]
        frame = SourceFrame(split_name(image.name)[0], image, mask)
        return SourceVideo(name, image.label, image.label, self._splits(name), (frame,), (), reading="soft", still=True)

    def _splits(self, name: str) -> tuple[str, ...]:
        return tuple(sorted({name.partition("/")[0], EVERYTHING}))


def open_static(request: SourceRequest) -> StaticImages:
    """Pair the files of every set below the root, or of the sets named as splits. Raises DataError if there is none."""
    request.options.require_only("static", "duplicates")
    root = request.one_folder("static")
    there = visible_folders(root)
    wanted = there if request.splits is None or EVERYTHING in request.splits else sorted(set(request.splits))
    missing = [name for name in wanted if name not in there]
    if missing or not there:
        raise DataError(
            root / (missing[0] if missing else ""),
            expected="a folder for each set of images",
            found=f"only {', '.join(there)}" if there else "none" if root.is_dir() else f"no folder {root}",
            remedy="give the folder that holds DUTS-TR, fss and so on; --split chooses among them",
        )
    findings: list[Finding] = []
    stills: dict[str, _Still] = {}
    for name in wanted:
        stills |= _pair(list(_files_below(root / name, name, _MAX_DEPTH)), findings)
    if not stills:
        raise DataError(root, expected="images (.jpg) beside masks (.png)", found="none", remedy="see docs/datasets.md")
    stills = _without_twins(dict(sorted(stills.items())), request.options.duplicates, findings)
    return StaticImages(root, stills, tuple(findings))


def _files_below(folder: Location, label: str, depth: int) -> Iterator[SourceFile]:
    yield from visible_files(folder, label)
    if depth:
        for name in visible_folders(folder):
            yield from _files_below(folder / name, f"{label}/{name}", depth - 1)


def _pair(files: list[SourceFile], findings: list[Finding]) -> dict[str, _Still]:
    """Images of one set by name, each with its mask: the same path but for ending, `_im`/`_gt`, folders of one role."""
    images: dict[str, SourceFile] = {}
    masks: dict[str, SourceFile] = {}
    ambiguous: set[str] = set()
    holds: dict[PurePosixPath, set[bool]] = defaultdict(set)
    for file in files:
        holds[_folder(file)].add(split_name(file.name)[1] == MASK_ENDING)
    for file in files:
        _, ending = split_name(file.name)
        refusal = unreadable_name(file.label)
        if refusal is not None:
            findings.append(refusal.at(printable(file.label), ""))
        elif ending not in (*IMAGE_ENDINGS, MASK_ENDING):
            odd = Finding("warning", "no image name", "<name>.jpg or .png", repr(file.name), _LOOK, "ignored")
            findings.append(odd.at(file.label, ""))
        else:
            group = masks if ending == MASK_ENDING else images
            key = _key(file, side_by_side=len(holds[_folder(file)]) == 2)
            other = group.setdefault(key, file)
            if other is not file:
                twice = Finding("refused", "name twice", "one file", f"also {other.label}", _LOOK, DROPPED)
                findings.append(twice.at(file.label, key))
                ambiguous.add(key)
    findings += [orphan_mask(key, mask) for key, mask in sorted(masks.items()) if key not in images]
    return {key: _Still(image, masks.get(key)) for key, image in images.items() if key not in ambiguous}


_LOOK = "see whether a file is missing or misnamed"


def _folder(file: SourceFile) -> PurePosixPath:
    return PurePosixPath(file.label).parent


def _key(file: SourceFile, side_by_side: bool) -> str:
    """Name of an image, equal for its mask: path without ending and roles."""
    parts = _folder(file).parts
    kept = [part for part in parts[1:] if side_by_side or not _ROLE.fullmatch(part)]
    stem = split_name(file.name)[0]
    role = _ROLE_OF_FILE.fullmatch(stem)
    return "/".join([parts[0], *kept, role.group(1) if role else stem])


def _without_twins(stills: dict[str, _Still], duplicates: Duplicates, findings: list[Finding]) -> dict[str, _Still]:
    """Report images with the same bytes, and drop all but the first if so asked.

    Those without a mask, and links to nothing, do not count: they are refused anyway. Before one is dropped it is made
    sure that the one kept will not be refused either, for its mask may be.
    """
    dropped = set()
    for names in _same_bytes(stills):
        kept, *others = names
        if duplicates == "drop":
            kept, *others = [name for name in names if _is_sound(stills[name])] or [kept]
            dropped |= set(others)
        for name in others:
            done = "kept" if duplicates == "keep" else DROPPED
            remedy = "--duplicates drop leaves the later ones out"
            twin = Finding("warning", "same image twice", "other pixels", f"those of {kept}", remedy, done)
            findings.append(twin.at(stills[name].image.label, name))
    return {name: still for name, still in stills.items() if name not in dropped}


def _same_bytes(stills: dict[str, _Still]) -> list[list[str]]:
    """Names of images with the same bytes, each group sorted; only images of equal size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, still in stills.items():
        if still.mask is not None and not still.image.fault and still.image.num_bytes <= MAX_FILE_BYTES:
            by_size[still.image.num_bytes].append(name)
    by_bytes: dict[bytes, list[str]] = defaultdict(list)
    for name in sorted(name for names in by_size.values() if len(names) > 1 for name in names):
        by_bytes[hashlib.sha256(stills[name].image.read()).digest()].append(name)
    return [names for names in by_bytes.values() if len(names) > 1]


def _is_sound(still: _Still) -> bool:
    """Whether a build will take image and mask; what it will not stays in the list, to be refused by its own name."""
    assert still.mask is not None
    try:
        shape = read_image(still.image.read()).shape
        chunks = png.read_chunks(still.mask.read())
        header = png.read_header(chunks)
        if shape != (header.height, header.width):
            return False
        levels, _ = read_levels(png.decode_pixels(still.mask.read()), header)
    except RefusedError:
        return False
    return bool((levels >= SOFT_THRESHOLD).any())
