"""RDE's stage 0 as published: three resamplings of image and soft mask, then a spline evaluated pixel by pixel.

Source: RDE, Li et al. 2022, data of stage 0.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.augmentation import affine_matrices
from pipelines.executors.encoded import decode_labels, fill_colour
from pipelines.executors.pillow_steps import greyscale, jitter, mirror, open_image, warp
from pipelines.spline_map import KERNEL_EPSILON, Points, fit
from pipelines.types import EncodedClip, StillSteps

BICUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
Fill = tuple[int, int, int] | int


def render(clip: EncodedClip, index: int, image_out: NDArray[np.uint8], labels_out: NDArray[np.uint8]) -> None:
    """One frame and its soft mask, bent; see frames.RenderFrame."""
    plan, steps = clip.plan, clip.plan.steps
    assert isinstance(steps, StillSteps)
    fill = fill_colour(plan)
    image = _place(open_image(clip, index), steps, fill)
    image = jitter(image, steps.clip_colours)
    image = greyscale(image) if steps.grayscale else image
    image = _move(image, steps, index, plan.size, fill, resizing=BICUBIC)
    pixels = np.asarray(jitter(image, steps.frame_colours[index]))
    levels = decode_labels(clip, index)
    if levels is None:
        mask = np.zeros(plan.size, np.uint8)
    else:
        placed = _place(Image.fromarray(levels), steps, 0)
        mask = np.asarray(_move(placed, steps, index, plan.size, 0, resizing=NEAREST))
    points = plan.splines[index] if plan.splines else None
    if points is not None:
        pixels, mask = bend(pixels, mask, points)
    image_out[:], labels_out[:] = pixels, mask


def bend(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], points: Points
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image (H, W, 3) linearly and its mask (H, W) by the nearest pixel, black outside.

    The spline is evaluated at every pixel, each coordinate by itself, as the published loader does.
    """
    height, width = mask.shape
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    grid = np.stack([x, y], axis=-1).reshape(-1, 2)  # (H * W, 2)
    coefficients = fit(points)
    moved = [
        ((grid[:, axis] + displacement(grid, points[:, 1], coefficients[:, axis])) * side).reshape(height, width)
        for axis, side in ((0, width), (1, height))
    ]
    map_x, map_y = (each.astype(np.float32) for each in moved)
    border = cv2.BORDER_CONSTANT
    bent = cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR, borderMode=border, borderValue=0)
    bent_mask = cv2.remap(mask, map_x, map_y, cv2.INTER_NEAREST, borderMode=border, borderValue=0)
    return np.asarray(bent, np.uint8), np.asarray(bent_mask, np.uint8)


def displacement(
    grid: NDArray[np.float64], targets: NDArray[np.float64], coefficients: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N,): one coordinate of the spline's displacement at grid (N, 2); coefficients (P + 3,) as of spline.fit."""
    distances = np.linalg.norm(grid[:, None] - targets[None], axis=-1)  # (N, P)
    kernel = distances**2 * np.log(distances + KERNEL_EPSILON)
    result: NDArray[np.float64] = kernel @ coefficients[:-3] + coefficients[-3] + grid @ coefficients[-2:]
    return result


def _place(image: Image.Image, steps: StillSteps, fill: Fill) -> Image.Image:
    """The steps of the clip: scale (nearest, for the image too), then mirror."""
    scaling = affine_matrices([0.0], [0.0], (image.height, image.width), scales=steps.clip_scale)[0, :2]
    image = warp(image, scaling, NEAREST, fill)
    return mirror(image) if steps.flip else image


def _move(
    image: Image.Image,
    steps: StillSteps,
    index: int,
    size: tuple[int, int],
    fill: Fill,
    *,
    resizing: Image.Resampling,
) -> Image.Image:
    """The steps of a frame: affine (bicubic, for the mask too), resize, crop."""
    image = warp(image, steps.affines[index], BICUBIC, fill)
    image = image.resize((steps.resized[1], steps.resized[0]), resizing)
    top, left = steps.corners[index]
    return image.crop((left, top, left + size[1], top + size[0]))
