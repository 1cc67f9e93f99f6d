"""Frames and masks of one video from two folders of numbered files: which belong together, and which files are odd."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from shards.findings import Finding
from shards.naming import frame_number
from shards.sources.types import SourceFile, SourceFrame

IMAGE_ENDINGS = (".jpg", ".jpeg")
MASK_ENDING = ".png"
# Left by file managers; hidden files are passed over as well.
_DROPPINGS = frozenset({"Thumbs.db", "desktop.ini"})


def visible_files(folder: Path) -> list[os.DirEntry[str]]:
    """Files of a folder sorted by name, without hidden ones and file managers' droppings; [] if there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        kept = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _DROPPINGS]
        return sorted((entry for entry in kept if entry.is_file()), key=lambda entry: entry.name)


def pair_frames(video: str, images: Path, masks: Path, root: Path) -> tuple[tuple[SourceFrame, ...], list[Finding]]:
    """Frames of a video ordered by frame number, each with the mask of the same stem, and findings on file names."""
    findings: list[Finding] = []
    image_files = _numbered(video, images, root, findings)
    mask_files = _masks_by_stem(video, masks, root, findings)
    frames = []
    for stem, image in image_files:
        frames.append(SourceFrame(stem, image, mask_files.pop(stem, None)))
    for stem, mask in sorted(mask_files.items()):
        orphan = Finding("warning", "mask without image", "an image of the same name", "none", _LOOK, "ignored")
        findings.append(orphan.at(mask.label, video, stem))
    return tuple(frames), findings


_LOOK = "see whether a file is missing or misnamed"


def _numbered(video: str, folder: Path, root: Path, findings: list[Finding]) -> list[tuple[str, SourceFile]]:
    found: dict[int, tuple[str, SourceFile]] = {}
    for entry in visible_files(folder):
        stem, ending = _split(entry.name)
        file = _source_file(entry, root)
        number = frame_number(stem)
        if ending not in IMAGE_ENDINGS or number is None:
            odd = Finding("warning", "no frame name", "<number>.jpg", repr(entry.name), _LOOK, "ignored")
            findings.append(odd.at(file.label, video))
        elif number in found:
            first = found[number][1].label
            twice = Finding(
                "refused",
                "frame number twice",
                "one image for each frame number",
                f"{number} also in {first}",
                "remove one of the two",
                "frame dropped",
            )
            findings.append(twice.at(file.label, video, stem))
        else:
            found[number] = (stem, file)
    return [found[number] for number in sorted(found)]


def _masks_by_stem(video: str, folder: Path, root: Path, findings: list[Finding]) -> dict[str, SourceFile]:
    found: dict[str, SourceFile] = {}
    # .png first: another file of the same stem is then the odd one, but stands for the mask if it is alone.
    for entry in sorted(visible_files(folder), key=lambda entry: _split(entry.name)[1] != MASK_ENDING):
        stem, _ = _split(entry.name)
        file = _source_file(entry, root)
        if stem in found:
            odd = Finding("warning", "two masks for one frame", "one PNG", repr(entry.name), _LOOK, "ignored")
            findings.append(odd.at(file.label, video, stem))
        else:
            found[stem] = file
    return found


def _split(name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    return path.stem, path.suffix.lower()


def _source_file(entry: os.DirEntry[str], root: Path) -> SourceFile:
    path = Path(entry.path)
    return SourceFile(path, path.relative_to(root).as_posix())
