"""DAVIS 2017: {JPEGImages,Annotations}/<resolution>/<video>/<frame>, one list of video names a split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.errors import DataError
from shards.findings import Finding
from shards.sources.folders import pair_frames, visible_files
from shards.sources.types import SourceRequest, SourceVideo, VideoSize

LISTS = Path("ImageSets", "2017")


@dataclass(frozen=True, slots=True)
class Davis2017:
    """A DAVIS 2017 tree. splits: video -> names of the lists it is in, in the order of the videos' names."""

    root: Path
    resolution: str
    splits: dict[str, tuple[str, ...]]
    findings: tuple[Finding, ...]
    kind: str = "davis2017"

    def sizes(self) -> Iterator[VideoSize]:
        """Every listed video in the order of names; stats its files."""
        for name, splits in self.splits.items():
            images = visible_files(self._images(name))
            files = images + visible_files(self._masks(name))
            yield VideoSize(name, splits, len(images), sum(entry.stat().st_size for entry in files))

    def video(self, name: str) -> SourceVideo:
        """Frames and masks of one video."""
        frames, findings = pair_frames(name, self._images(name), self._masks(name), self.root)
        label = self._images(name).relative_to(self.root).as_posix()
        masks_label = self._masks(name).relative_to(self.root).as_posix()
        return SourceVideo(name, label, masks_label, self.splits[name], frames, tuple(findings))

    def _images(self, video: str) -> Path:
        return self.root / "JPEGImages" / self.resolution / video

    def _masks(self, video: str) -> Path:
        return self.root / "Annotations" / self.resolution / video


def open_davis2017(request: SourceRequest) -> Davis2017:
    """Read the lists of a tree. Raises DataError if it is no DAVIS 2017 tree or a wanted split is not there."""
    if len(request.paths) != 1:
        raise ValueError(f"davis2017 takes one source folder, not {len(request.paths)}")
    root = request.paths[0]
    folder = root / "JPEGImages" / request.resolution
    for needed in (folder, root / "Annotations" / request.resolution, root / LISTS):
        _require_folder(root, needed)
    videos = {path.name for path in folder.iterdir() if path.is_dir()}
    members: dict[str, list[str]] = {}
    findings: list[Finding] = []
    for path in _list_files(root, request.splits):
        names = _read_list(path, root, findings)
        if not request.splits and not videos.intersection(names):
            left_out = Finding(
                "warning", "list without videos", "a list of videos here", "none of them", _LIST, "ignored"
            )
            findings.append(left_out.at(path.relative_to(root).as_posix(), ""))
            continue
        for name in names:
            if name in videos:
                members.setdefault(name, []).append(path.stem)
            else:
                findings.append(_unknown(path, root, name))
    if not members:
        wanted = " ".join(request.splits or ("any list",))
        raise DataError(root / LISTS, expected=f"videos of {wanted}", found="none in " + str(folder), remedy=_LIST)
    splits = {name: tuple(sorted(members[name])) for name in sorted(members)}
    return Davis2017(root, request.resolution, splits, tuple(findings))


_LIST = "check the list, or get the part of the data set it belongs to"


def _require_folder(root: Path, needed: Path) -> None:
    if needed.is_dir():
        return
    there = sorted(path.name for path in needed.parent.iterdir() if path.is_dir()) if needed.parent.is_dir() else []
    found = f"only {', '.join(there)} beside it" if there else "no such folder"
    if not root.is_dir():
        found = f"no folder {root}"
    raise DataError(
        needed,
        expected="the layout of DAVIS 2017 (JPEGImages, Annotations, ImageSets/2017)",
        found=found,
        remedy="give the folder that holds JPEGImages; --resolution chooses the folder below it",
    )


def _list_files(root: Path, splits: tuple[str, ...] | None) -> list[Path]:
    there = {path.stem: path for path in sorted((root / LISTS).glob("*.txt")) if not path.name.startswith(".")}
    for split in splits or ():
        if split not in there:
            raise DataError(
                root / LISTS / f"{split}.txt",
                expected="a list of videos",
                found=f"only {', '.join(there) or 'no list'}",
                remedy="choose --split among these",
            )
    return [there[split] for split in sorted(set(splits or there))]


def _read_list(path: Path, root: Path, findings: list[Finding]) -> list[str]:
    """Names of a list in its order, each once. Byte order mark, CR, blanks and empty lines do not count."""
    label = path.relative_to(root).as_posix()
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(path, expected="UTF-8 text", found=str(error), remedy="save the list as UTF-8") from None
    names: dict[str, None] = {}
    for name in filter(None, lines):
        if "JPEGImages/" in name:
            raise DataError(
                path, expected="one video name a line", found=f"{name!r}", remedy="this is a list of DAVIS 2016"
            )
        if name in names:
            twice = Finding("warning", "name twice in a list", "each name once", repr(name), _LIST, "kept once")
            findings.append(twice.at(label, name))
        else:
            names[name] = None
    return list(names)


def _unknown(path: Path, root: Path, name: str) -> Finding:
    finding = Finding("refused", "no such video", "a folder of images", f"none for {name!r}", _LIST, "video dropped")
    return finding.at(path.relative_to(root).as_posix(), name)
