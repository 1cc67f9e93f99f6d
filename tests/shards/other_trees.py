"""Tiny trees in the layouts of the other data sets, made from label maps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shards.masks import decode_label_map
from shards.reader import ShardSet
from tests.shards.small_tree import indexed_png, jpeg, saved

Maps = Mapping[str, np.ndarray | None]


def write(path: Path, data: bytes) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_davis2016(root: Path, videos: Mapping[str, Sequence[np.ndarray]], splits: Mapping[str, list[str]]) -> Path:
    """DAVIS 2016: grey masks of 0/255, lists of frame pairs with leading slash and trailing blank."""
    for number, (name, maps) in enumerate(videos.items()):
        for frame, labels in enumerate(maps):
            write(root / f"JPEGImages/480p/{name}/{frame:05d}.jpg", jpeg(100 * number + frame))
            grey = saved(Image.fromarray((labels > 0).astype(np.uint8) * np.uint8(255)), "png")
            write(root / f"Annotations/480p/{name}/{frame:05d}.png", grey)
    for split, names in splits.items():
        lines = [
            f"/JPEGImages/480p/{name}/{frame:05d}.jpg /Annotations/480p/{name}/{frame:05d}.png \n"
            for name in names
            for frame in range(len(videos[name]))
        ]
        write(root / f"ImageSets/480p/{split}.txt", "".join(lines).encode())
    return root


def write_youtube(
    root: Path, split: str, videos: Mapping[str, Maps], objects: Mapping[str, Mapping[str, object]]
) -> Path:
    """One split of YouTube-VOS: frames by name, None for an image without mask; objects as in meta.json."""
    for number, (name, maps) in enumerate(videos.items()):
        for frame, labels in maps.items():
            write(root / split / f"JPEGImages/{name}/{frame}.jpg", jpeg(1000 * number + int(frame)))
            if labels is not None:
                write(root / split / f"Annotations/{name}/{frame}.png", indexed_png(labels))
    meta = {"videos": {name: {"objects": entry} for name, entry in objects.items()}}
    write(root / split / "meta.json", json.dumps(meta).encode())
    return root


def write_bl30k(root: Path, videos: Mapping[str, Sequence[np.ndarray | None]]) -> Path:
    """BL30K: JPEGImages/<video>, Annotations/<video>."""
    for number, (name, maps) in enumerate(videos.items()):
        for frame, labels in enumerate(maps):
            write(root / f"JPEGImages/{name}/{frame:05d}.jpg", jpeg(100 * number + frame))
            if labels is not None:
                write(root / f"Annotations/{name}/{frame:05d}.png", indexed_png(labels))
    return root


def labels_of(shard_set: ShardSet, video: str, place: int) -> np.ndarray | None:
    """Label map of a frame of a video, counted from its first."""
    mask = shard_set.read(shard_set.frame_rows(shard_set.video_row(video))[place]).mask
    return None if mask is None else decode_label_map(mask, shard_set.mask_codec)
