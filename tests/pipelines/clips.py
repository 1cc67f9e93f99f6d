"""Encoded clips made from nothing: pictures with edges and texture, label maps, and plans as RDE draws them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg

from pipelines.augmentation import affine_matrices, colour_matrices, crop_matrix, draw_colours, draw_crop
from pipelines.order.streams import Stream, StreamName
from pipelines.recipes.rde import CLIP_JITTER, FRAME_JITTER, IMAGENET_FILL
from pipelines.types import ClipPlan, ClipSteps, EncodedClip
from shards.masks import MaskCodec, encode_label_map
from shards.reader import EncodedFrame

IDENTITY = np.eye(2, 3, dtype=np.float32)
NO_COLOUR = np.eye(3, 4, dtype=np.float32)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: soft colours, a texture and sharp rectangles."""
    rng = np.random.default_rng(seed)
    soft = cv2.resize(rng.uniform(0, 255, (5, 7, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    soft += cv2.GaussianBlur(rng.normal(0, 40, (height, width, 3)), (0, 0), 1.5)
    image = np.clip(soft, 0, 255).astype(np.uint8)
    for _ in range(6):
        y, x = rng.integers(0, height), rng.integers(0, width)
        image[y : y + height // 4, x : x + width // 5] = rng.integers(0, 256, 3)
    return image


def blobs(seed: int, height: int, width: int, ids: Sequence[int] = (1, 2, 3)) -> np.ndarray:
    """(height, width) uint8: one ellipse per id on background, later ones in front."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    for object_id in ids:
        centre = int(rng.integers(width // 4, 3 * width // 4)), int(rng.integers(height // 4, 3 * height // 4))
        axes = int(rng.integers(width // 12, width // 5)), int(rng.integers(height // 12, height // 4))
        cv2.ellipse(labels, centre, axes, float(rng.uniform(0, 180)), 0, 360, int(object_id), -1)
    return labels


def noise_labels(seed: int, height: int, width: int) -> np.ndarray:
    """(height, width) uint8 of all 256 labels at random: one pixel off is seen."""
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


def jpeg(image: np.ndarray, *, quality: int = 90, subsampling: str = "420") -> bytes:
    """The image as JPEG bytes."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorsubsampling=subsampling)


def frame(image: np.ndarray, labels: np.ndarray | None, *, codec: MaskCodec = "lz4", quality: int = 90) -> EncodedFrame:
    """One frame as a shard holds it."""
    return EncodedFrame(jpeg(image, quality=quality), None if labels is None else encode_label_map(labels, codec))


def plan(
    seed: int = 0, *, num_frames: int = 1, source: tuple[int, int] = (60, 80), size: tuple[int, int] = (48, 64)
) -> ClipPlan:
    """A plan as RDE's recipe draws it, for frames of `source` (height, width)."""
    stream = Stream((seed, 77), StreamName.CROP, seed)
    flip_width = source[1] if stream.happens(0.5) else None
    crop = draw_crop(stream, *source, (0.36, 1.0), (3 / 4, 4 / 3))
    rotations, shears = (degrees * (2 * stream.uniforms(num_frames) - 1) for degrees in (15, 10))
    affines = affine_matrices(rotations, shears, size)
    matrices = crop_matrix(crop, size, flip_width=flip_width) @ affines
    colours = draw_colours(
        stream, num_frames, clip_jitter=CLIP_JITTER, grayscale=0.05, frame_jitter=FRAME_JITTER, mean_grey=118.0
    )
    return ClipPlan(
        number=seed,
        dataset=0,
        video=3,
        frames=tuple(range(7, 7 + num_frames)),
        object_ids=(1, 2, 3),
        size=size,
        matrices=matrices[:, :2].astype(np.float32),
        colours=colour_matrices(colours.tones),
        fill=IMAGENET_FILL,
        damage_key=(seed, 5),
        damage_iou=None,
        trial=0,
        steps=ClipSteps(
            flip_width is not None, crop, colours.clip_steps, colours.grayscale, affines[:, :2], colours.frame_steps
        ),
    )


def plain_plan(size: tuple[int, int], *, num_frames: int = 1, seed: int = 0) -> ClipPlan:
    """A plan that shows frames of `size` as they are."""
    return ClipPlan(
        number=seed,
        dataset=0,
        video=3,
        frames=tuple(range(7, 7 + num_frames)),
        object_ids=(1, 2, 3),
        size=size,
        matrices=np.tile(IDENTITY, (num_frames, 1, 1)),
        colours=np.tile(NO_COLOUR, (num_frames, 1, 1)),
        fill=IMAGENET_FILL,
        damage_key=(seed, 5),
        damage_iou=None,
        trial=0,
        steps=ClipSteps(False, (0, 0, *size), (), False, np.tile(np.eye(2, 3), (num_frames, 1, 1)), ((),) * num_frames),
    )


def clip(
    seed: int = 0,
    *,
    num_frames: int = 3,
    source: tuple[int, int] = (120, 214),
    size: tuple[int, int] = (96, 96),
    noisy: bool = True,
) -> EncodedClip:
    """Pictures, label maps and an RDE plan; labels are noise or, on demand, three ellipses."""
    draw = noise_labels if noisy else blobs
    seeds = [100 * seed + t for t in range(num_frames)]
    frames = tuple(frame(picture(s, *source), draw(s, *source)) for s in seeds)
    return EncodedClip(plan(seed, num_frames=num_frames, source=source, size=size), frames, "lz4")
