"""Videos in raw folders: the layouts of DAVIS and of YouTube-VOS."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from PIL import Image

from shards.errors import DataError
from shards.naming import frame_number
from shards.object_facts import ObjectFacts
from shards.sources.folders import visible_folders
from shards.sources.youtube_vos import ALL_FRAMES, SPLITS, images_folder, read_meta
from trainers.label_files import LabelMap, read_label_map

JPEG_SUFFIXES = (".jpg", ".jpeg")
TRUTH = "_gt"
"""Ending of a split whose masks are complete: `valid_gt/Annotations` to `valid/JPEGImages`."""


class UnknownNameError(ValueError):
    """A split or a video that the data set does not have: a slip of the hand, not of the data."""

    exit_status = 2

    def __init__(self, what: str, name: str, there: Sequence[str], *, where: str = "") -> None:
        near = difflib.get_close_matches(name, there, n=1)
        more = f" and {len(there) - 5} more" if len(there) > 5 else ""
        remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(there[:5]) or 'none'}{more}"
        super().__init__(f"the data set has no {what} {name!r}{where}; {remedy}")


@dataclass(frozen=True, slots=True)
class DavisFolder:
    """A raw DAVIS tree: JPEGImages, Annotations (or Annotations_unsupervised) and ImageSets.

    list_folders: where below ImageSets its split lists may be.
    """

    root: Path
    list_folders: tuple[str, ...]
    resolution: str = "480p"
    annotations: str = "Annotations"

    @property
    def identity(self) -> str:
        """The folder's name: raw files have no fingerprint."""
        return self.root.resolve().name

    @property
    def kind(self) -> str:
        """davis2016 where the lists are those of its own package, else davis2017."""
        lists = self.root / "ImageSets"
        return "davis2016" if (lists / "480p").is_dir() and not (lists / "2017").is_dir() else "davis2017"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the lists in the list folders."""
        paths = [path for name in self.list_folders for path in (self.root / "ImageSets" / name).glob("*.txt")]
        return tuple(sorted({path.stem for path in paths}))

    @property
    def videos(self) -> tuple[str, ...]:
        """Folders of images and of masks."""
        trees = (self.root / tree / self.resolution for tree in ("JPEGImages", self.annotations))
        return tuple(sorted({name for tree in trees for name in visible_folders(tree)}))

    def select(self, split: str) -> tuple[str, ...]:
        """Videos of ImageSets/<list folder>/<split>.txt, in the list's order, each once."""
        lists = [self.root / "ImageSets" / folder / f"{split}.txt" for folder in self.list_folders]
        for path in lists:
            if path.is_file():
                return read_split_list(path)
        there = sorted(str(path.relative_to(self.root)) for path in self.root.glob("ImageSets/*/*.txt"))
        raise DataError(
            lists[0],
            expected=f"the list of split {split!r}",
            found=f"only {', '.join(there)}" if there else "no lists at all",
            remedy="name another split, or name the videos",
        )

    def frame_names(self, video: str) -> tuple[str, ...]:
        """Stems of the video's JPEG files."""
        return file_stems(self.root / "JPEGImages" / self.resolution / video, JPEG_SUFFIXES)

    def annotated_names(self, video: str) -> tuple[str, ...]:
        """Stems of the video's PNG files."""
        return file_stems(self.root / self.annotations / self.resolution / video, (".png",))

    def object_facts(self, video: str) -> dict[int, ObjectFacts]:
        """Nothing: DAVIS lists no objects."""
        return {}

    def read_image(self, video: str, frame: str) -> bytes:
        """Bytes of <frame>.jpg, whatever the spelling of its suffix."""
        return image_path(self.root / "JPEGImages" / self.resolution / video, frame).read_bytes()

    def read_labels(self, video: str, frame: str) -> LabelMap:
        """Ids of <frame>.png."""
        return read_label_map(self.root / self.annotations / self.resolution / video / f"{frame}.png")

    def palette(self, video: str) -> bytes | None:
        """None: results get the palette of DAVIS, which these files have."""
        return None

    def locate(self, video: str, frame: str) -> str:
        """Path of the image."""
        return str(image_path(self.root / "JPEGImages" / self.resolution / video, frame))


@dataclass(frozen=True, slots=True)
class YoutubeVosFolder:
    """One split of a raw YouTube-VOS tree: `valid`, `valid_all_frames`, ..., or `valid_gt` for complete masks.

    An all-frames split takes its images from that folder, masks and meta.json from the plain one; a `_gt` split takes
    images from the plain one, and its meta.json where it has none of its own.
    """

    root: Path
    split: str

    @property
    def identity(self) -> str:
        """The names of folder and split: raw files have no fingerprint."""
        return f"{self.root.resolve().name}/{self.split}"

    @property
    def kind(self) -> str:
        """youtube_vos."""
        return "youtube_vos"

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of the tree, and those whose masks are complete."""
        truths = tuple(f"{split}{TRUTH}" for split in SPLITS)
        return (*_there(self.root, SPLITS, "JPEGImages"), *_there(self.root, truths, "Annotations"))

    @property
    def videos(self) -> tuple[str, ...]:
        """Videos that meta.json lists, and folders of masks."""
        return tuple(sorted({*self._facts(), *visible_folders(self._masks)}))

    def select(self, split: str) -> tuple[str, ...]:
        """Videos that meta.json lists, else those that have masks. Raises DataError for another split than this."""
        if split != self.split:
            found = f"{self.split}, opened out of {', '.join(self.splits)}"
            raise DataError(self.root, expected=f"split {split!r}", found=found, remedy="name one of these splits")
        return tuple(sorted(self._facts())) or tuple(visible_folders(self._masks))

    def frame_names(self, video: str) -> tuple[str, ...]:
        """Stems of the video's JPEG files."""
        return file_stems(self._images / video, JPEG_SUFFIXES)

    def annotated_names(self, video: str) -> tuple[str, ...]:
        """Stems of the video's PNG files."""
        return file_stems(self._masks / video, (".png",))

    def object_facts(self, video: str) -> dict[int, ObjectFacts]:
        """What meta.json lists about the video's objects."""
        return self._facts().get(video, {})

    def read_image(self, video: str, frame: str) -> bytes:
        """Bytes of <frame>.jpg, whatever the spelling of its suffix."""
        return image_path(self._images / video, frame).read_bytes()

    def read_labels(self, video: str, frame: str) -> LabelMap:
        """Ids of <frame>.png."""
        return read_label_map(self._masks / video / f"{frame}.png")

    def palette(self, video: str) -> bytes | None:
        """Palette of the video's first mask, None if that is no palette PNG."""
        path = self._masks / video / f"{self.annotated_names(video)[0]}.png"
        with Image.open(path, formats=("PNG",)) as image:
            colours = image.getpalette() if image.mode == "P" else None
        return None if colours is None else bytes(colours).ljust(768, b"\0")

    def locate(self, video: str, frame: str) -> str:
        """Path of the image."""
        return str(image_path(self._images / video, frame))

    @property
    def _images(self) -> Path:
        return self.root / images_folder(self.root, self.split.removesuffix(TRUTH))

    @property
    def _masks(self) -> Path:
        return self.root / self.split.removesuffix(ALL_FRAMES) / "Annotations"

    def _facts(self) -> dict[str, dict[int, ObjectFacts]]:
        own = self.root / self.split.removesuffix(ALL_FRAMES) / "meta.json"
        plain = self.root / self.split.removesuffix(TRUTH).removesuffix(ALL_FRAMES) / "meta.json"
        path = own if own.is_file() else plain
        return _read_meta(path) if path.is_file() else {}


def is_youtube_vos(root: Path) -> bool:
    """Whether a folder holds splits in the layout of YouTube-VOS."""
    return bool(_there(root, SPLITS, "JPEGImages") or _there(root, SPLITS, "Annotations"))


def open_youtube_vos_folder(root: Path, splits: Sequence[str]) -> YoutubeVosFolder:
    """The first of these splits that is there. Raises UnknownNameError that lists those there are."""
    there = YoutubeVosFolder(root, "").splits
    for split in splits:
        if split in there:
            return YoutubeVosFolder(root, split)
    raise UnknownNameError("split", splits[0], there)


def file_stems(folder: Path, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """Stems of the files of one video with these suffixes, in time order. Raises DataError if there is no folder."""
    if not folder.is_dir():
        raise DataError(
            folder,
            expected=f"the files of video {folder.name}",
            found="no such folder",
            remedy="correct the video's name or the split list, or complete the data set",
        )
    return time_order(path.stem for path in folder.iterdir() if path.suffix.lower() in suffixes)


def image_path(folder: Path, frame: str) -> Path:
    """<frame>.jpg, however its suffix is spelled."""
    plain = folder / f"{frame}.jpg"
    if plain.is_file():
        return plain
    return next((path for path in folder.glob(f"{frame}.*") if path.suffix.lower() in JPEG_SUFFIXES), plain)


def read_split_list(path: Path) -> tuple[str, ...]:
    """Video names of a split list, each once: one per line, or DAVIS 2016's pairs of file names."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(path, expected="a text file", found=f"{error}", remedy="restore the list") from None
    names = (PurePosixPath(line.split()[0]).parent.name if line.startswith("/") else line for line in lines if line)
    if not (videos := tuple(dict.fromkeys(names))):
        raise DataError(path, expected="names of videos", found="none", remedy="restore the list")
    return videos


def time_order(names: Iterable[str]) -> tuple[str, ...]:
    """Frame names by the number they end in, then by spelling; names without a number last."""

    def key(name: str) -> tuple[bool, int, str]:
        number = frame_number(name)
        return number is None, number or 0, name

    return tuple(sorted(names, key=key))


def _there(root: Path, splits: Sequence[str], folder: str) -> tuple[str, ...]:
    return tuple(
        split
        for split in splits
        if (root / (images_folder(root, split) if folder == "JPEGImages" else f"{split}/{folder}")).is_dir()
    )


@lru_cache(maxsize=4)
def _read_meta(path: Path) -> dict[str, dict[int, ObjectFacts]]:
    return read_meta(path)
