"""Thin-plate splines that bend finished frames: drawn as control points, applied to many frames on their device.

Positions (`spline_map`) are rounded to 1/32 px and sampled with integers, so every device picks the same pixels.
Outside the frame lie black and label 0. Source: RDE, Li et al. 2022, stage 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.order.streams import Stream
from pipelines.spline_map import FRACTION_BITS, KERNEL_EPSILON, Points, PositionMap, fit
from pipelines.types import ClipPixels, ClipPlan


def draw_points(stream: Stream, count: int, side: int, deviation: float) -> Points:
    """Control points on whole pixels of a `side` x `side` frame, no two in one row or column, moved by normal noise.

    deviation: of the noise in each coordinate, normalised units. Takes 2 * side + 4 * count words.
    """
    starts = np.stack([stream.permutation(side)[:count] for _ in range(2)], axis=1) / side  # (P, 2)
    radius, angle = stream.uniforms(4 * count).reshape(2, count, 2)
    noise = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # Box and Muller
    return np.stack([starts, starts + deviation * noise], axis=1)


def sampling_maps(points: Sequence[Points], size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """(N, 2, H, W) int32: the positions of `PositionMap` for N sets of equally many points, in 1/32 px, on `device`.

    In float64, so that two libraries round to different 1/32 px only within about 1e-12 px of a border.
    """
    targets = torch.from_numpy(np.stack([each[:, 1] for each in points])).to(device, non_blocking=True)  # (N, P, 2)
    coefficients = torch.from_numpy(np.stack([fit(each) for each in points])).to(device, non_blocking=True)
    axes = [torch.arange(side, device=device, dtype=torch.float64) / (side - 1) for side in size]
    y, x = axes[0][:, None], axes[1][None]
    constant, of_x, of_y = coefficients[:, -3:, :, None, None].unbind(1)  # (N, 2, 1, 1) each
    shifts = constant + of_x * x + of_y * y  # (N, 2, H, W)
    # Point by point: all kernels at once would take P times the memory.
    for target, weight in zip(targets.unbind(1), coefficients[:, :-3].unbind(1), strict=True):
        squared = (x - target[:, 0, None, None]) ** 2 + (y - target[:, 1, None, None]) ** 2  # (N, H, W)
        kernel = squared * (squared.sqrt() + KERNEL_EPSILON).log()
        shifts += weight[..., None, None] * kernel[:, None]
    moved = torch.stack([(x + shifts[:, 0]) * size[1], (y + shifts[:, 1]) * size[0]], dim=1)
    return (moved * (1 << FRACTION_BITS)).round().to(torch.int32)


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
        bender = FrameBender(size)
        for place, spline in zip(places, splines, strict=True):
            bender(images[place].numpy(), labels[place].numpy(), spline)
    else:
        clips, frames = (list(numbers) for numbers in zip(*places, strict=True))
        maps = sampling_maps(splines, size, images.device)
        images[clips, frames] = sample_linear(images[clips, frames], maps)
        labels[clips, frames] = sample_nearest(labels[clips, frames], maps)
    return ClipPixels(images, labels, pixels.annotated, pixels.soft)


class FrameBender:
    """Bends frames of one size (height, width) on the CPU, in memory that it keeps between them.

    The steps of 1/32 px are those of OpenCV's own integer maps: to the bit what sample_linear and sample_nearest give.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._map = PositionMap(size)
        self._steps = np.empty((*size, 2), np.int16), np.empty(size, np.uint16)
        self._padded, self._bent = np.empty((2, *size, 4), np.uint8)
        self._labels = np.empty(size, np.uint8)

    def __call__(self, image: NDArray[np.uint8], labels: NDArray[np.uint8], points: Points) -> None:
        """Bend one image (H, W, 3) and its labels (H, W) in place."""
        x, y = self._map.of(points)
        options: dict[str, Any] = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": 0}
        maps = cv2.convertMaps(x, y, cv2.CV_16SC2, *self._steps)
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA, dst=self._padded)  # OpenCV 5 takes half the time for four channels
        cv2.remap(self._padded, *maps, cv2.INTER_LINEAR, dst=self._bent, **options)
        cv2.cvtColor(self._bent, cv2.COLOR_RGBA2RGB, dst=image)
        # Between two steps there are no ties, which OpenCV would round to even numbers and we round up.
        x += 0.5 / (1 << FRACTION_BITS)
        y += 0.5 / (1 << FRACTION_BITS)
        whole, none = cv2.convertMaps(x, y, cv2.CV_16SC2, self._steps[0], nninterpolation=True)
        labels[:] = cv2.remap(labels, whole, none, cv2.INTER_NEAREST, dst=self._labels, **options)


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


def _nearest(positions: torch.Tensor) -> torch.Tensor:
    return (positions + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS


def _at(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(N, H, W, C) int32: the pixels of images (N, H, W, C) at whole positions (N, H, W), 0 outside."""
    height, width = images.shape[1:3]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = rows.clamp(0, height - 1).long() * width + columns.clamp(0, width - 1)  # (N, H, W)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images.flatten(1, 2)[which, flat].to(torch.int32) * inside[..., None]
