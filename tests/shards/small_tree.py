"""A tiny DAVIS 2017 tree for tests: made from label maps, so that every test knows the ids it should find again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shards.building.build import BuildResult, build, silent
from shards.building.plan import BuildRequest, make_plan

HEIGHT, WIDTH = 40, 56
PALETTE = bytes(range(256)) + bytes(512)


def label_maps(num_frames: int, object_ids: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Label maps (40, 56) uint8 with one rectangle an object, moved by a pixel from frame to frame."""
    generator = np.random.default_rng(seed)
    corners = generator.integers(0, 20, (len(object_ids), 2))
    maps = []
    for frame in range(num_frames):
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        for object_id, (top, left) in zip(object_ids, corners, strict=True):
            labels[top : top + 9, left + frame : left + frame + 12] = object_id
        maps.append(labels)
    return maps


def jpeg(seed: int, height: int = HEIGHT, width: int = WIDTH, **options: object) -> bytes:
    """JPEG of smooth noise; options go to Pillow."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    return saved(image, "jpeg", **options)


def indexed_png(labels: np.ndarray, palette: bytes = PALETTE) -> bytes:
    """8-bit palette PNG whose indices are the labels."""
    image = Image.fromarray(labels).convert("P")
    image.putpalette(palette)
    return saved(image, "png", bits=8)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    """The image as a file of this form."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def write_tree(
    root: Path,
    videos: Mapping[str, Sequence[np.ndarray | None]],
    splits: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Write a DAVIS 2017 tree: a label map for each frame, None for a frame without mask. Returns `root`."""
    for position, (name, maps) in enumerate(videos.items()):
        images, masks = (root / folder / "480p" / name for folder in ("JPEGImages", "Annotations"))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for frame, labels in enumerate(maps):
            (images / f"{frame:05d}.jpg").write_bytes(jpeg(100 * position + frame))
            if labels is not None:
                (masks / f"{frame:05d}.png").write_bytes(indexed_png(labels))
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    for split, names in (splits or {"train": list(videos)}).items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def build_set(source: Path, out: Path, **arguments: object) -> BuildResult:
    """Build a DAVIS 2017 set with these arguments of BuildRequest."""
    return build_kind("davis2017", (source,), out, **arguments)


def build_kind(kind: str, sources: Sequence[Path], out: Path, **arguments: object) -> BuildResult:
    """Build a set of any kind with these arguments of BuildRequest."""
    request = BuildRequest(kind, tuple(sources), out, **arguments)  # type: ignore[arg-type]
    return build(request, make_plan(request), silent)


def files_of(root: Path) -> dict[str, bytes]:
    """Every file below a folder: relative path -> bytes."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
