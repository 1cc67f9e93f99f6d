"""Where the files of each kind of data set lie: what `unshard` needs to give a set back as it came."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.masks import encode_label_map, encode_soft_mask
from shards.object_facts import ObjectFacts
from shards.png import encode_indexed
from shards.reader import ShardSet
from shards.sources.davis import LISTS, UNSUPERVISED_LISTS
from shards.sources.youtube_vos import ALL_FRAMES, SPLITS
from shards.storage.paths import write_bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to lay out a data set. Folders are relative to its root.

    images, masks: folder of a video's files, from the set and the row of the video. encode_mask: PNG of a label map or
    soft mask and the video's palette. finish: what is written last, lists and meta.json, into the given root.
    """

    images: Callable[[ShardSet, int], str]
    masks: Callable[[ShardSet, int], str]
    encode_mask: Callable[[np.ndarray, bytes], bytes]
    finish: Callable[[ShardSet, Path], None]


def davis_folders(folder: str) -> Callable[[ShardSet, int], str]:
    """`<folder>/480p/<video>`; without a resolution `<folder>/<video>`."""

    def place(shard_set: ShardSet, video: int) -> str:
        resolution = shard_set.manifest.resolution
        return "/".join(filter(None, (folder, resolution, shard_set.videos.original_names[video])))

    return place


def _davis_masks(shard_set: ShardSet, video: int) -> str:
    unsupervised = shard_set.manifest.options.get("annotations") == "unsupervised"
    return davis_folders("Annotations_unsupervised" if unsupervised else "Annotations")(shard_set, video)


def _name_lists(shard_set: ShardSet, out: Path) -> None:
    """ImageSets/2017/<split>.txt with the names of a split's videos, sorted as they are in the original.

    The test sets of the unsupervised challenge have theirs in ImageSets/2019.
    """
    unsupervised = shard_set.manifest.options.get("annotations") == "unsupervised"
    for split in sorted(shard_set.manifest.splits):
        folder = UNSUPERVISED_LISTS if unsupervised and split.startswith("test-") else LISTS
        _write_lines(out / folder / f"{split}.txt", _names(shard_set, split))


def _names(shard_set: ShardSet, split: str) -> list[str]:
    """Of a split's videos, sorted: a union has them in the order of its parents."""
    return sorted(shard_set.videos.original_names[int(row)] for row in shard_set.select(split))


def _pair_lists(shard_set: ShardSet, out: Path) -> None:
    """ImageSets/480p/<split>.txt as DAVIS 2016 has it: a leading slash, a pair of files a line, a trailing blank."""
    resolution = shard_set.manifest.resolution or ""
    for split in sorted(shard_set.manifest.splits):
        lines = []
        for name in _names(shard_set, split):
            folder = f"{resolution}/{name}"
            for frame in shard_set.frame_rows(shard_set.video_row(name)):
                image, mask = shard_set.file_name(frame), f"{shard_set.frame_name(frame)}.png"
                lines.append(f"/JPEGImages/{folder}/{image} /Annotations/{folder}/{mask} ")
        _write_lines(out / "ImageSets" / resolution / f"{split}.txt", lines)


def _video_list(shard_set: ShardSet, out: Path) -> None:
    """A list file for each split that is more than a default of its kind, next to the videos."""
    for split in sorted(set(shard_set.manifest.splits) - {"train", "all"}):
        _write_lines(out / f"{split}.txt", _names(shard_set, split))


def _youtube_split(shard_set: ShardSet, video: int) -> str:
    """The folder a video came from: the one of its splits that is no selection of another."""
    return next(split for split in SPLITS if split in shard_set.videos.splits(video))


def _youtube_images(shard_set: ShardSet, video: int) -> str:
    return f"{_youtube_split(shard_set, video)}/JPEGImages/{shard_set.videos.original_names[video]}"


def _youtube_masks(shard_set: ShardSet, video: int) -> str:
    plain = _youtube_split(shard_set, video).removesuffix(ALL_FRAMES)
    return f"{plain}/Annotations/{shard_set.videos.original_names[video]}"


def _youtube_meta(shard_set: ShardSet, out: Path) -> None:
    """<split>/meta.json with the objects that the set knows; `category` only where there is one."""
    videos: dict[str, dict[str, object]] = defaultdict(dict)
    for video in range(shard_set.num_videos):
        listed = shard_set.videos.object_facts(video)
        objects = {str(object_id): _meta_entry(facts) for object_id, facts in listed.items()}
        plain = _youtube_split(shard_set, video).removesuffix(ALL_FRAMES)
        videos[plain][shard_set.videos.original_names[video]] = {"objects": objects}
    for split, entries in videos.items():
        write_bytes(out / split / "meta.json", json.dumps({"videos": dict(sorted(entries.items()))}).encode())


def _meta_entry(facts: ObjectFacts) -> dict[str, object]:
    category = {} if facts.category is None else {"category": facts.category}
    return {**category, "frames": list(facts.frames)}


def _static_folder(shard_set: ShardSet, video: int) -> str:
    return shard_set.videos.original_names[video].rpartition("/")[0]


def _nothing(shard_set: ShardSet, out: Path) -> None:
    """For layouts whose folders say everything."""


def _binary_png(labels: np.ndarray, palette: bytes) -> bytes:
    return encode_label_map((labels > 0).astype(np.uint8) * np.uint8(255), "png")


def _grey_png(levels: np.ndarray, palette: bytes) -> bytes:
    return encode_soft_mask(levels, "soft.png")


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


_PLAIN = (davis_folders("JPEGImages"), davis_folders("Annotations"))
LAYOUTS = {
    "bl30k": Layout(*_PLAIN, encode_indexed, _video_list),
    "davis2016": Layout(*_PLAIN, _binary_png, _pair_lists),
    "davis2017": Layout(davis_folders("JPEGImages"), _davis_masks, encode_indexed, _name_lists),
    "folder": Layout(*_PLAIN, encode_indexed, _video_list),
    "static": Layout(_static_folder, _static_folder, _grey_png, _nothing),
    "youtube_vos": Layout(_youtube_images, _youtube_masks, encode_indexed, _youtube_meta),
}
