"""Matrices on a grid on which float32 arithmetic is exact, so that every executor looks at the same source pixel.

Nearest sampling takes source pixel floor(M @ (column + 0.5, row + 0.5, 1)). Where that product lies next to a whole
number, a rounding error in its last bit picks another pixel, and libraries, versions, processors and GPUs (fused
multiply-add) all round differently: OpenCV and DALI disagreed on 0.13 % of the pixels of the same float32 matrix. On
the grid every product and every partial sum, in whatever order, is a float32 number, so there is nothing to round.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.types import ClipPlan

FLOAT32_BITS = 24
SPARE_BITS = 1
"""Kept free for the half step that `pixel_centred` adds."""


class SnappedMatrices(NamedTuple):
    """Matrices on the exact grid.

    matrices (N, 2, 3) float32, output (x, y, 1) -> source, continuous coordinates. half_steps (N, 2): half the distance
    between neighbouring values that each row of a matrix can produce.
    """

    matrices: NDArray[np.float32]
    half_steps: NDArray[np.float64]


def snap(matrices: NDArray[np.float32], size: tuple[int, int]) -> SnappedMatrices:
    """The matrices (N, 2, 3) nearest to the given ones on the exact grid, keeping where the output's centre goes.

    size: output (height, width). For a 480p source and 384 x 384 no output pixel moves by more than 0.05 px of the
    source, 0.2 px for 1080p. Raises ValueError for entries that are not finite.
    """
    if not np.isfinite(matrices).all():
        raise ValueError("a plan's matrices must be finite")
    exact = matrices.astype(np.float64)
    bits = _fraction_bits(exact, size)
    # Output coordinates are multiples of 1/2, so the linear part needs steps twice as long as the products'.
    linear = _round_to(exact[..., :2], bits[..., None] - 1)
    moved = ((exact[..., :2] - linear) * np.array([size[1] / 2, size[0] / 2])).sum(axis=-1)
    shift = _round_to(exact[..., 2] + moved, bits)
    snapped = np.concatenate([linear, shift[..., None]], axis=-1).astype(np.float32)
    return SnappedMatrices(snapped, np.exp2(-bits - 1))


NEIGHBOURS = tuple((x, y) for y in (-0.5, 0.5) for x in (-0.5, 0.5))
"""Pixels of the source: nearest sampling at these shifts takes the four that linear sampling blends."""


def label_matrices(plan: ClipPlan) -> NDArray[np.float32]:
    """(T, 2, 3): the matrices that a plan's label maps are warped by, not snapped yet."""
    return plan.matrices if plan.label_matrices is None else plan.label_matrices


def shifted(matrices: NDArray[np.float32], shift: tuple[float, float]) -> NDArray[np.float32]:
    """Snapped matrices (N, 2, 3) that sample `shift` = (x, y) source pixels further; whole half pixels stay exact."""
    moved = matrices.copy()
    moved[..., 2] += np.array(shift, np.float32)
    return moved


def pixel_centred(matrices: NDArray[np.float32]) -> NDArray[np.float64]:
    """Snapped matrices (N, 2, 3) for libraries that put pixel centres on whole numbers (OpenCV); still exact.

    Rounding to the nearest whole number then meets ties; add the half steps to the last column and it is the floor that
    this project means.
    """
    shifted = matrices.astype(np.float64)
    shifted[..., 2] += 0.5 * (shifted[..., 0] + shifted[..., 1]) - 0.5
    return shifted


def floor_matrices(snapped: SnappedMatrices) -> NDArray[np.float64]:
    """(N, 2, 3): the matrices as OpenCV takes them, such that its rounding is the floor that is meant."""
    matrices = pixel_centred(snapped.matrices)
    matrices[..., 2] += snapped.half_steps
    return matrices


def nearest_affine(pixels: NDArray[np.uint8], matrix: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image or label map (h, w[, 3]) of `size` (height, width) by an output -> input matrix (3, 3); 0 outside."""
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    taken = floor_matrices(snap(matrix[None, :2].astype(np.float32), size))[0]
    warped = cv2.warpAffine(
        pixels, taken, (size[1], size[0]), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
    return np.asarray(warped, np.uint8)


def _fraction_bits(matrices: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """(N, 2): fraction bits that a float32 has left beside the largest partial sum that a row can meet."""
    terms = matrices * np.array([size[1], size[0], 1.0])
    largest = np.maximum(np.maximum(terms, 0).sum(axis=-1), np.maximum(-terms, 0).sum(axis=-1))
    # Two more than the sum: what snapping may add, and the half pixels of `pixel_centred` and `shifted`.
    return FLOAT32_BITS - SPARE_BITS - np.ceil(np.log2(largest + 2.0))


def _round_to(values: NDArray[np.float64], bits: NDArray[np.float64]) -> NDArray[np.float64]:
    scale = np.exp2(bits)
    rounded: NDArray[np.float64] = np.rint(values * scale) / scale
    return rounded
