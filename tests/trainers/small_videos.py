"""Videos of a few small frames in the DAVIS layout, and results for them: rectangles that move to the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.palettes import voc_palette

HEIGHT, WIDTH = 40, 50


def label_map(ids: Sequence[int], frame: int) -> NDArray[np.uint8]:
    """One 8x12 rectangle per id, each 2 pixels further right with every frame."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for row, object_id in enumerate(ids):
        labels[2 + 12 * row : 10 + 12 * row, 3 + 2 * frame : 15 + 2 * frame] = object_id
    return labels


def save_labels(path: Path, labels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    image.putpalette(voc_palette())
    image.save(path)


def save_image(path: Path, labels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([labels * 40, 255 - labels * 30, labels * 7 + 50], axis=2)).save(path, quality=95)


def write_tree(root: Path, videos: dict[str, Sequence[int]], num_frames: int = 6) -> Path:
    """A DAVIS 2017 tree whose val list holds `videos` (name -> object ids); returns `root`."""
    for video, ids in videos.items():
        for frame in range(num_frames):
            labels = label_map(ids, frame)
            save_labels(root / "Annotations" / "480p" / video / f"{frame:05d}.png", labels)
            save_image(root / "JPEGImages" / "480p" / video / f"{frame:05d}.jpg", labels)
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("\n".join(videos) + "\n", encoding="utf-8")
    return root


def write_results(root: Path, videos: dict[str, Sequence[int]], num_frames: int = 6, *, lag: int = 1) -> Path:
    """Results that lag `lag` frames behind the truth, first and last frame left out; returns `root`."""
    for video, ids in videos.items():
        for frame in range(1, num_frames - 1):
            save_labels(root / video / f"{frame:05d}.png", label_map(ids, frame - lag))
    return root
