"""J and F straight from their definitions: whole frames, pixel loops, an exact distance transform. Slow on purpose."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Mask = NDArray[np.bool_]


def slow_region(truth: Mask, result: Mask) -> float:
    pixels = list(zip(truth.ravel().tolist(), result.ravel().tolist(), strict=True))
    union = sum(a or b for a, b in pixels)
    return sum(a and b for a, b in pixels) / union if union else 1.0


def slow_boundary_map(mask: Mask) -> Mask:
    height, width = mask.shape
    boundary = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            down, right = min(y + 1, height - 1), min(x + 1, width - 1)
            neighbours = (mask[y, right], mask[down, x], mask[down, right])
            boundary[y, x] = any(neighbour != mask[y, x] for neighbour in neighbours)
    return boundary


def slow_measure(truth: Mask, result: Mask) -> float:
    radius = int(np.ceil(0.008 * np.linalg.norm(truth.shape)))
    truth_map, result_map = slow_boundary_map(truth), slow_boundary_map(result)
    if not truth_map.any() or not result_map.any():
        return 1.0 if truth_map.any() == result_map.any() else 0.0
    near_truth = distance_transform_edt(~truth_map) <= radius
    near_result = distance_transform_edt(~result_map) <= radius
    precision = (result_map & near_truth).sum() / result_map.sum()
    recall = (truth_map & near_result).sum() / truth_map.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0
