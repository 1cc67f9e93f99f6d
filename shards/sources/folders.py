"""Frames and masks of one video from numbered files: which belong together, and which files are odd."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from shards.findings import DROPPED, Finding
from shards.naming import frame_number
from shards.sources.types import SourceFile, SourceFrame
from shards.storage.paths import Location
from shards.storage.paths import list_folder as list_entries

IMAGE_ENDINGS = (".jpg", ".jpeg")
MASK_ENDING = ".png"
# Left by file managers; hidden files are passed over as well.
_DROPPINGS = frozenset({"Thumbs.db", "desktop.ini"})
_LOOK = "see whether a file is missing or misnamed"


def is_dropping(name: str) -> bool:
    """Whether a file or folder of this name is hidden or left by a file manager."""
    return name.startswith(".") or name in _DROPPINGS


def visible_files(folder: Location, label: str) -> list[SourceFile]:
    """Files of a folder sorted by name, without hidden ones and droppings; [] if there is no folder.

    What is neither file nor folder is among them, with its fault, and so is a folder that is named as an image: they
    are refused where they would be read. label: of the folder, relative to the source.
    """
    return [
        SourceFile(folder / entry.name, f"{label}/{entry.name}", entry.num_bytes, changed=entry.changed, fault=fault)
        for entry in list_entries(folder)
        if not is_dropping(entry.name)
        for fault in [entry.fault or ("a folder" if entry.is_folder else "")]
        if not entry.is_folder or split_name(entry.name)[1] in (*IMAGE_ENDINGS, MASK_ENDING)
    ]


def visible_folders(folder: Location) -> list[str]:
    """Names of the folders directly inside, sorted, without hidden ones; [] if there is no such folder."""
    return [entry.name for entry in list_entries(folder) if entry.is_folder and not is_dropping(entry.name)]


def pair_frames(
    video: str,
    images: Iterable[SourceFile],
    masks: Iterable[SourceFile],
    image_endings: tuple[str, ...] = IMAGE_ENDINGS,
) -> tuple[tuple[SourceFrame, ...], list[Finding]]:
    """Frames of a video ordered by frame number, each with the mask of the same stem, and findings on file names."""
    findings: list[Finding] = []
    image_files = _numbered(video, _readable(video, images, findings), image_endings, findings)
    mask_files = _by_stem(video, _readable(video, masks, findings), findings)
    frames = [SourceFrame(stem, image, mask_files.pop(stem, None)) for stem, image in image_files]
    findings += [orphan_mask(video, mask) for _, mask in sorted(mask_files.items())]
    return tuple(frames), findings


def orphan_mask(video: str, mask: SourceFile) -> Finding:
    """Warning about a mask that no image belongs to."""
    orphan = Finding("warning", "mask without image", "an image of the same name", "none", _LOOK, "ignored")
    return orphan.at(mask.label, video, split_name(mask.name)[0])


def split_name(name: str) -> tuple[str, str]:
    """(stem, ending in lower case): only the last ending counts, so `two.jpg.png` has the stem `two.jpg`."""
    path = PurePosixPath(name)
    return path.stem, path.suffix.lower()


def is_frame_name(name: str, image_endings: tuple[str, ...]) -> bool:
    """Whether a file is named as an image of a frame: a number and one of these endings."""
    stem, ending = split_name(name)
    return ending in image_endings and frame_number(stem) is not None


def frame_order(file_name: str) -> tuple[int, str]:
    """Key that sorts the files of frames by number, then by name."""
    return frame_number(split_name(file_name)[0]) or 0, file_name


def unreadable_name(name: str) -> Finding | None:
    """Refusal of a name that is not UTF-8, which no tar member and no list can hold; None for a sound one."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return Finding("refused", "name is not UTF-8", "UTF-8", ascii(name), "rename it", DROPPED)
    return None


def printable(label: str) -> str:
    """Label with bytes that are not UTF-8 written out."""
    return label.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _readable(video: str, files: Iterable[SourceFile], findings: list[Finding]) -> list[SourceFile]:
    kept = []
    for file in files:
        refusal = unreadable_name(file.name)
        if refusal is None:
            kept.append(file)
        else:
            findings.append(refusal.at(printable(file.label), video))
    return kept


def _numbered(
    video: str, files: list[SourceFile], endings: tuple[str, ...], findings: list[Finding]
) -> list[tuple[str, SourceFile]]:
    found: dict[int, tuple[str, SourceFile]] = {}
    for file in files:
        stem, _ = split_name(file.name)
        number = frame_number(stem)
        if not is_frame_name(file.name, endings) or number is None:
            odd = Finding("warning", "no frame name", "<number>.jpg", repr(file.name), _LOOK, "ignored")
            findings.append(odd.at(file.label, video))
        elif number in found:
            twice = Finding(
                "refused",
                "frame number twice",
                "one image for each frame number",
                f"{number} also in {found[number][1].label}",
                "remove one of the two",
                DROPPED,
            )
            findings.append(twice.at(file.label, video, stem))
        else:
            found[number] = (stem, file)
    return [found[number] for number in sorted(found)]


def _by_stem(video: str, files: list[SourceFile], findings: list[Finding]) -> dict[str, SourceFile]:
    found: dict[str, SourceFile] = {}
    # .png first: another file of the same stem is then the odd one, but stands for the mask if it is alone.
    for file in sorted(files, key=lambda file: split_name(file.name)[1] != MASK_ENDING):
        stem, ending = split_name(file.name)
        if stem in found and ending == MASK_ENDING:
            both = f"also {found[stem].label}"
            twice = Finding("refused", "two masks for one frame", "one PNG", both, "remove one of the two", DROPPED)
            findings.append(twice.at(file.label, video, stem))
        elif stem in found:
            odd = Finding("warning", "two masks for one frame", "one PNG", repr(file.name), _LOOK, "ignored")
            findings.append(odd.at(file.label, video, stem))
        else:
            found[stem] = file
    return found
