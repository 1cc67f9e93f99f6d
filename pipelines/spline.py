"""Thin-plate splines that bend finished frames: drawn as control points, applied to many frames on their device.

Coordinates are those of the published recipe: normalised (x, y) with 0 at the first pixel's centre and 1 at the last's;
the sampling position in pixels is that number times the side, not the side - 1, so even a spline that moves nothing
stretches the frame by 1 / (side - 1) and shows the border's black in its last row and column.
Positions are rounded to 1/32 px and sampled with integers, so every device picks the same pixels. Outside the frame lie
black and label 0. Source: RDE, Li et al. 2022, stage 0; splines as in Bookstein 1989.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.order.streams import Stream
from pipelines.types import ClipPixels, ClipPlan

Points = NDArray[np.float64]
"""(P, 2, 2): for each control point where it comes from and where it goes, as (x, y)."""

FRACTION_BITS = 5
"""Of a sampling position in pixels."""
FARTHEST = (1 << 15 << FRACTION_BITS) - 1
"""Positions that OpenCV's maps can hold."""
KERNEL_EPSILON = 1e-6
ROWS_AT_ONCE = 16
"""On the CPU; the intermediate numbers of so many rows stay in its cache."""

Positions = TypeVar("Positions", NDArray[np.int32], torch.Tensor)


def draw_points(stream: Stream, count: int, side: int, deviation: float) -> Points:
    """Control points on whole pixels of a `side` x `side` frame, no two in one row or column, moved by normal noise.

    deviation: of the noise in each coordinate, normalised units. Takes 2 * side + 4 * count words.
    """
    starts = np.stack([stream.permutation(side)[:count] for _ in range(2)], axis=1) / side  # (P, 2)
    radius, angle = stream.uniforms(4 * count).reshape(2, count, 2)
    noise = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # Box and Muller
    return np.stack([starts, starts + deviation * noise], axis=1)


def fit(points: Points) -> NDArray[np.float64]:
    """(P + 3, 2): coefficients of the displacement source - target that the points have at their targets.

    One per point for the kernel U(r) = r^2 ln(r + 1e-6), then those of 1, x and y. Raises ValueError for points on one
    line or in one place.
    """
    targets, count = points[:, 1], len(points)
    distances = np.linalg.norm(targets[:, None] - targets[None], axis=-1)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = distances**2 * np.log(distances + KERNEL_EPSILON)
    system[:count, count] = system[count, :count] = 1
    system[:count, count + 1 :] = targets
    system[count + 1 :, :count] = targets.T
    wanted = np.zeros((count + 3, 2))
    wanted[:count] = points[:, 0] - targets
    try:
        coefficients = np.linalg.solve(system, wanted)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"no spline through {count} points that lie on one line or in one place") from error
    return coefficients.astype(np.float64)


def sampling_map(points: Points, size: tuple[int, int]) -> NDArray[np.int32]:
    """(2, H, W): x and y, in 1/32 px from the first pixel's centre, of what each pixel of the bent frame shows."""
    coefficients, result = fit(points), np.empty((2, *size), np.int32)
    x = np.arange(size[1])[None] / (size[1] - 1)
    for first in range(0, size[0], ROWS_AT_ONCE):
        rows = slice(first, min(first + ROWS_AT_ONCE, size[0]))
        y = np.arange(rows.start, rows.stop)[:, None] / (size[0] - 1)
        shift_x, shift_y = _displacement(points[:, 1], coefficients, x, y)
        for axis, (moved, side) in enumerate(((x + shift_x, size[1]), (y + shift_y, size[0]))):
            result[axis, rows] = np.rint(moved * (side << FRACTION_BITS))
    return result


def sampling_maps(points: Sequence[Points], size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """`sampling_map` of N sets of equally many points, computed on `device`; (N, 2, H, W) int32.

    In float64, so that two libraries round to different 1/32 px only within about 1e-12 px of a border.
    """
    targets = torch.from_numpy(np.stack([each[:, 1] for each in points])).to(device, non_blocking=True)  # (N, P, 2)
    coefficients = torch.from_numpy(np.stack([fit(each) for each in points])).to(device, non_blocking=True)
    axes = [torch.arange(side, device=device, dtype=torch.float64) / (side - 1) for side in size]
    y, x = axes[0][:, None], axes[1][None]
    squared = (x - targets[..., 0, None, None]) ** 2 + (y - targets[..., 1, None, None]) ** 2  # (N, P, H, W)
    kernel = squared * (squared.sqrt() + KERNEL_EPSILON).log()
    weights, linear = coefficients[:, :-3], coefficients[:, -3:, :, None, None]  # linear (N, 3, 2, 1, 1)
    shifts = torch.einsum("npa,nphw->nahw", weights, kernel) + linear[:, 0] + linear[:, 1] * x + linear[:, 2] * y
    moved = torch.stack([(x + shifts[:, 0]) * size[1], (y + shifts[:, 1]) * size[0]], dim=1)
    return (moved * (1 << FRACTION_BITS)).round().to(torch.int32)


def _displacement(
    targets: NDArray[np.float64], coefficients: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(2, rows, columns): how far from (x (1, columns), y (rows, 1)) the bent frame samples."""
    squared = (x - targets[:, 0, None, None]) ** 2 + (y - targets[:, 1, None, None]) ** 2  # (P, rows, columns)
    kernel = np.sqrt(squared)
    kernel += KERNEL_EPSILON
    np.log2(kernel, out=kernel)  # takes NumPy less than half the time of log
    kernel *= squared
    weights, (constant, of_x, of_y) = coefficients[:-3] * np.log(2), coefficients[-3:]
    bent = (weights.T @ kernel.reshape(len(targets), -1)).reshape(2, *kernel.shape[1:])
    result: NDArray[np.float64] = bent + constant[:, None, None] + of_x[:, None, None] * x + of_y[:, None, None] * y
    return result


def bend(pixels: ClipPixels, plans: Sequence[ClipPlan]) -> ClipPixels:
    """The pixels with every frame bent that its plan has a spline for: images linearly, labels by the nearest pixel.

    Batched on the pixels' device; on a CPU frame by frame through OpenCV, to the same bits. Images and labels that
    change are copies.
    """
    places = [(clip, frame) for clip, plan in enumerate(plans) for frame, s in enumerate(plan.splines) if s is not None]
    if not places:
        return pixels
    images, labels = pixels.images.clone(), pixels.labels.clone()
    size = (labels.shape[2], labels.shape[3])
    points = [plans[clip].splines[frame] for clip, frame in places]
    splines = [each for each in points if each is not None]
    if images.device.type == "cpu":
        for place, spline in zip(places, splines, strict=True):
            bend_frame(images[place].numpy(), labels[place].numpy(), sampling_map(spline, size))
    else:
        clips, frames = (list(numbers) for numbers in zip(*places, strict=True))
        maps = sampling_maps(splines, size, images.device)
        images[clips, frames] = sample_linear(images[clips, frames], maps)
        labels[clips, frames] = sample_nearest(labels[clips, frames], maps)
    return ClipPixels(images, labels, pixels.annotated, pixels.soft)


def bend_frame(image: NDArray[np.uint8], labels: NDArray[np.uint8], positions: NDArray[np.int32]) -> None:
    """Bend one image (H, W, 3) and its labels (H, W) in place, by positions (2, H, W) in 1/32 px.

    The steps of 1/32 px are those of OpenCV's own integer maps: to the bit what sample_linear and sample_nearest give.
    """
    # What lies beyond 16 bit lies outside of every frame, too.
    x, y = np.clip(positions, -FARTHEST, FARTHEST)
    pixels, steps = np.empty((*x.shape, 2), np.int16), (1 << FRACTION_BITS) - 1
    pixels[..., 0], pixels[..., 1] = x >> FRACTION_BITS, y >> FRACTION_BITS
    fractions = (((y & steps) << FRACTION_BITS) | (x & steps)).astype(np.uint16)
    padded = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)  # four channels take OpenCV 5 half the time of three
    border = cv2.BORDER_CONSTANT
    bent = cv2.remap(padded, pixels, fractions, cv2.INTER_LINEAR, borderMode=border, borderValue=0)
    cv2.cvtColor(bent, cv2.COLOR_RGBA2RGB, dst=image)
    pixels[..., 0], pixels[..., 1] = _nearest(x), _nearest(y)
    none = np.empty(0, np.uint16)
    labels[:] = cv2.remap(labels, pixels, none, cv2.INTER_NEAREST, borderMode=border, borderValue=0)


def sample_linear(images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """images (N, H, W, C) uint8 sampled at maps (N, 2, H, W) in 1/32 px: exact weights of 1/1024, rounded half up."""
    one, mask = 1 << FRACTION_BITS, (1 << FRACTION_BITS) - 1
    x, y = maps[:, 0] >> FRACTION_BITS, maps[:, 1] >> FRACTION_BITS
    right, low = (maps[:, 0] & mask)[..., None], (maps[:, 1] & mask)[..., None]  # (N, H, W, 1)
    above = _at(images, y, x) * (one - right) + _at(images, y, x + 1) * right
    below = _at(images, y + 1, x) * (one - right) + _at(images, y + 1, x + 1) * right
    total = above * (one - low) + below * low
    return ((total + (1 << (2 * FRACTION_BITS - 1))) >> (2 * FRACTION_BITS)).to(torch.uint8)


def sample_nearest(labels: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """labels (N, H, W) uint8 at the pixel whose centre is nearest to maps (N, 2, H, W) in 1/32 px, ties upwards."""
    nearest = _nearest(maps)
    return _at(labels[..., None], nearest[:, 1], nearest[:, 0])[..., 0].to(torch.uint8)


def _nearest(positions: Positions) -> Positions:
    return (positions + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS


def _at(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(N, H, W, C) int32: the pixels of images (N, H, W, C) at whole positions (N, H, W), 0 outside."""
    height, width = images.shape[1:3]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = rows.clamp(0, height - 1).long() * width + columns.clamp(0, width - 1)  # (N, H, W)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images.flatten(1, 2)[which, flat].to(torch.int32) * inside[..., None]
