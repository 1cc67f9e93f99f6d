"""Made-up video: textured shapes that move, turn and hide each other, written in the DAVIS 2017 layout.

The demo and the tests need video where none was downloaded. Ids and file formats are those of the real data set, so
whatever reads these folders reads DAVIS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.palettes import voc_palette


@dataclass(frozen=True, slots=True)
class MovingShapes:
    """What to make. Sizes in pixels, counts in videos and frames."""

    num_train: int = 16
    num_val: int = 4
    num_frames: int = 20
    height: int = 96
    width: int = 160
    max_objects: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Shape:
    """One object: outline in units of its radius, a texture, and a path as two sinusoids."""

    outline: NDArray[np.float64]  # (n, 2) points, x and y
    texture: NDArray[np.uint8]  # (height, width, 3)
    radius_px: float
    centre_px: tuple[float, float]
    swing_px: tuple[float, float]
    phase: tuple[float, float]
    turn: float  # radians per frame
    pace: float  # radians of the path per frame


def write_moving_shapes(
    folder: Path, shapes: MovingShapes, on_frame: Callable[[], object] = lambda: None
) -> dict[str, list[str]]:
    """Write `shapes` to `folder` as JPEGImages/480p, Annotations/480p and ImageSets/2017; returns {split: video names}.

    Equal arguments give equal files. `on_frame` is called after each frame (for a progress bar). Videos of both splits
    have 1..max_objects objects in turn, ids 1..N, all visible in frame 0; later objects lie in front of earlier ones.
    """
    splits = {
        "train": [f"shapes-{number:03d}" for number in range(shapes.num_train)],
        "val": [f"shapes-{number:03d}" for number in range(shapes.num_train, shapes.num_train + shapes.num_val)],
    }
    for number in range(shapes.num_train + shapes.num_val):
        _write_video(folder, number, shapes, on_frame)
    for split, names in splits.items():
        lists = folder / "ImageSets" / "2017"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return splits


def _write_video(folder: Path, number: int, shapes: MovingShapes, on_frame: Callable[[], object]) -> None:
    name, rng = f"shapes-{number:03d}", np.random.default_rng([shapes.seed, number])
    images, masks = folder / "JPEGImages" / "480p" / name, folder / "Annotations" / "480p" / name
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    num_objects = 1 + number % shapes.max_objects
    margin = 32  # the background drifts by up to this much, as if the camera moved
    background = _texture(rng, shapes.height + 2 * margin, shapes.width + 2 * margin)
    objects = [_make_shape(rng, shapes, position, num_objects) for position in range(num_objects)]
    for frame in range(shapes.num_frames):
        drift_x = round(margin * (1 + math.sin(0.07 * frame)))
        drift_y = round(margin * (1 + math.cos(0.05 * frame)))
        image = background[drift_y : drift_y + shapes.height, drift_x : drift_x + shapes.width].copy()
        labels = np.zeros((shapes.height, shapes.width), np.uint8)
        for object_id, shape in enumerate(objects, start=1):
            _paint(image, labels, shape, object_id, frame)
        noisy = np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(images / f"{frame:05d}.jpg", quality=92)
        indexed = Image.fromarray(labels)
        indexed.putpalette(voc_palette())
        indexed.save(masks / f"{frame:05d}.png")
        on_frame()


def _make_shape(rng: np.random.Generator, shapes: MovingShapes, position: int, num_objects: int) -> _Shape:
    """A shape whose path starts in its own column of the image, so that every object shows in frame 0."""
    column = shapes.width / num_objects
    radius = rng.uniform(0.16, 0.24) * min(shapes.height, 1.6 * column)
    return _Shape(
        outline=_outline(rng),
        texture=_texture(rng, shapes.height, shapes.width, tint=_tint(rng)),
        radius_px=float(radius),
        centre_px=(column * (position + 0.5), shapes.height * float(rng.uniform(0.4, 0.6))),
        swing_px=(float(rng.uniform(0.12, 0.3)) * shapes.width, float(rng.uniform(0.05, 0.2)) * shapes.height),
        # Phase 0 or pi: the sinusoids start at the centre of the column and leave it to either side.
        phase=(math.pi * int(rng.integers(2)), math.pi * int(rng.integers(2))),
        turn=float(rng.uniform(-0.12, 0.12)),
        pace=float(rng.uniform(0.06, 0.14)),
    )


def _outline(rng: np.random.Generator) -> NDArray[np.float64]:
    """Closed outline around (0, 0): a disc, a polygon, a star or a wavy blob."""
    kind = rng.choice(["disc", "polygon", "star", "blob"])
    angles = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    if kind == "disc":
        radii = np.ones_like(angles)
    elif kind == "polygon":
        corners = int(rng.integers(3, 6))
        angles, radii = np.linspace(0, 2 * math.pi, corners, endpoint=False), np.ones(corners)
    elif kind == "star":
        points = int(rng.integers(5, 8))
        angles = np.linspace(0, 2 * math.pi, 2 * points, endpoint=False)
        radii = np.where(np.arange(2 * points) % 2 == 0, 1.1, 0.55)
    else:
        radii = 0.9 + 0.2 * np.sin(int(rng.integers(2, 5)) * angles + rng.uniform(0, 6))
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _tint(rng: np.random.Generator) -> NDArray[np.float64]:
    """A saturated colour, 0..255, so that an object differs from the dull background."""
    tint = rng.permutation(np.array([235.0, rng.uniform(20, 220), 25.0]))
    return np.asarray(tint, np.float64)


def _texture(
    rng: np.random.Generator, height: int, width: int, tint: NDArray[np.float64] | None = None
) -> NDArray[np.uint8]:
    """Smooth coloured noise at two scales, (height, width, 3); around `tint`, or a dull colour when None."""
    base = rng.uniform(90, 160) + rng.uniform(-15, 15, 3) if tint is None else tint
    coarse = cv2.resize(rng.normal(0, 28, (5, 8, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(rng.normal(0, 22, (height // 5, width // 5, 3)), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(base + coarse + fine, 0, 255).astype(np.uint8)


def _paint(image: NDArray[np.uint8], labels: NDArray[np.uint8], shape: _Shape, object_id: int, frame: int) -> None:
    """Paint `shape` at `frame` over both arrays; its texture moves with it."""
    x = shape.centre_px[0] + shape.swing_px[0] * math.sin(shape.pace * frame + shape.phase[0])
    y = shape.centre_px[1] + shape.swing_px[1] * math.sin(1.3 * shape.pace * frame + shape.phase[1])
    cosine, sine = math.cos(shape.turn * frame), math.sin(shape.turn * frame)
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    points = (shape.outline * shape.radius_px) @ rotation.T + (x, y)
    inside = np.zeros(labels.shape, np.uint8)
    cv2.fillPoly(inside, [np.round(points).astype(np.int32)], 1)
    shift = np.array([[1, 0, x - shape.centre_px[0]], [0, 1, y - shape.centre_px[1]]])
    height, width = labels.shape
    texture = cv2.warpAffine(shape.texture, shift, (width, height), borderMode=cv2.BORDER_REFLECT)
    image[inside == 1] = texture[inside == 1]
    labels[inside == 1] = object_id
