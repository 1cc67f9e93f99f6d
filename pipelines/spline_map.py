"""Where a thin-plate spline sends the pixels of a frame: what float64 says to 1/32 px, mostly computed in float32.

Coordinates are those of the published recipe: normalised (x, y) with 0 at the first pixel's centre and 1 at the last's;
the sampling position in pixels is that number times the side, not the side - 1, so even a spline that moves nothing
stretches the frame by 1 / (side - 1) and shows the border's black in its last row and column.
Source: RDE, Li et al. 2022, stage 0; splines as in Bookstein 1989.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(P, 2, 2): for each control point where it comes from and where it goes, as (x, y)."""

FRACTION_BITS = 5
"""Of a sampling position in pixels."""
KERNEL_EPSILON = 1e-6

ROWS_AT_ONCE = 16
PIXELS_AT_ONCE = 2048
"""The intermediate numbers of so many rows, or of so many single pixels, stay in a core's cache."""
COLUMNS_OF_BOUND = 48
"""As many share one bound on float32's error."""
PRODUCTS_AT_ONCE = 5
"""A float32 sum over groups of so many has a smaller bound on its error than one over all."""
LOG_ERROR = 5.0
"""Of NumPy's float32 log2, in 2^-24 of the result: measured 2.1; its vector form is said to be within 2.12 ulp."""
LARGEST_KERNEL = 0.5 / (np.e * np.log(2))
"""Of |r^2 log2(r)| for r from 0 to 1."""


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


class PositionMap:
    """Sampling positions of frames of one size, in memory kept between frames: fresh pages cost more than arithmetic.

    They are computed in float32 and rounded to 1/32 px; where float64 might round to another step, by float64 instead.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        """size: (height, width)."""
        self._size = size
        self._positions = np.empty((2, *size), np.float32)
        rows = min(ROWS_AT_ONCE, size[0])
        self._moved, self._nearest = np.empty((2, 2, rows, size[1]), np.float32)
        self._doubtful = np.empty((2, rows, size[1]), np.bool_)

    def of(self, points: Points) -> NDArray[np.float32]:
        """(2, H, W): x and y, in pixels from the first one's centre, of what each pixel of the bent frame shows.

        Whole multiples of 1/32 (above 2^19 px, where no frame reaches, next to one). Good until the next call.
        """
        (height, width), coefficients = self._size, fit(points)
        spline = Float32Spline(points[:, 1], coefficients, self._size)
        bounds = rounding_bounds(points[:, 1], coefficients, self._size)
        certain = np.repeat(0.5 - bounds, COLUMNS_OF_BOUND, axis=2)[..., :width].astype(np.float32)  # (2, bands, W)
        doubtful = []
        for band, first in enumerate(range(0, height, ROWS_AT_ONCE)):
            last = min(first + ROWS_AT_ONCE, height)
            found = self._round_band(spline, slice(first, last), certain[:, band, None])
            doubtful.append(found + first * width)
        evaluate_at(np.concatenate(doubtful), points[:, 1], coefficients, self._positions)
        return self._positions

    def _round_band(self, spline: Float32Spline, rows: slice, certain: NDArray[np.float32]) -> NDArray[np.int64]:
        """Write the positions of `rows`; which pixels of the band may be a step off, counted row by row."""
        height = rows.stop - rows.start
        moved, nearest = self._moved[:, :height], self._nearest[:, :height]
        doubtful = self._doubtful[:, :height]
        spline.shifts(rows, moved)
        np.rint(moved, out=nearest)
        moved -= nearest
        np.greater_equal(np.abs(moved, out=moved), certain, out=doubtful)
        columns, lines = np.arange(self._size[1]), np.arange(rows.start, rows.stop)
        nearest[0] += (columns << FRACTION_BITS).astype(np.float32)
        nearest[1] += (lines << FRACTION_BITS).astype(np.float32)[:, None]
        np.multiply(nearest, np.float32(1 / (1 << FRACTION_BITS)), out=self._positions[:, rows])
        return np.flatnonzero(np.logical_or(doubtful[0], doubtful[1], out=doubtful[0]))


class Float32Spline:
    """A spline in float32, for ROWS_AT_ONCE rows of a frame at a time.

    Everything that does not depend on both coordinates is computed in float64 and rounded once.
    """

    def __init__(self, targets: NDArray[np.float64], coefficients: NDArray[np.float64], size: tuple[int, int]) -> None:
        (height, width), self._count = size, len(targets)
        x, y = np.arange(width) / (width - 1), np.arange(height) / (height - 1)
        # (P, W) and (P, H): squared distances along one axis
        self._along_x, self._along_y = (
            ((axis - targets[:, each, None]) ** 2).astype(np.float32) for each, axis in enumerate((x, y))
        )
        self._weights = _pixel_weights(coefficients, size).T.astype(np.float32)  # (2, P + 3)
        # What they weigh (P + 3, rows, W): the kernel at each point, 1, column and row.
        self._basis = np.empty((self._count + 3, min(ROWS_AT_ONCE, height), width), np.float32)
        self._basis[self._count], self._basis[self._count + 1] = 1, np.arange(width)
        self._squared = np.empty_like(self._basis[: self._count])

    def shifts(self, rows: slice, out: NDArray[np.float32]) -> None:
        """Sampling positions less the pixel's own, in 1/32 px, to `out` (2, rows, W)."""
        height = rows.stop - rows.start
        basis, squared = self._basis[:, :height], self._squared[:, :height]
        kernel = basis[: self._count]
        np.add(self._along_x[:, None], self._along_y[:, rows, None], out=squared)
        np.sqrt(squared, out=kernel)
        kernel += np.float32(KERNEL_EPSILON)
        np.log2(kernel, out=kernel)
        kernel *= squared
        basis[self._count + 2] = np.arange(rows.start, rows.stop)[:, None]
        flat = basis.reshape(len(basis), -1)
        moved = self._weights[:, :PRODUCTS_AT_ONCE] @ flat[:PRODUCTS_AT_ONCE]
        for first in range(PRODUCTS_AT_ONCE, len(flat), PRODUCTS_AT_ONCE):
            some = slice(first, first + PRODUCTS_AT_ONCE)
            moved += self._weights[:, some] @ flat[some]
        out[:] = moved.reshape(out.shape)


def rounding_bounds(
    targets: NDArray[np.float64], coefficients: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.float64]:
    """(2, bands of ROWS_AT_ONCE, blocks of COLUMNS_OF_BOUND): how far float32 positions may be off there, in 1/32 px.

    With u = 2^-24 for one rounding: a squared distance s = r^2 is off by 2 u s, so r + 1e-6 by 3 u r, its log2 by 4.4 u
    and LOG_ERROR more, and the product with s by another 3 u. Weights add u, and the sum of P + 3 products u for each
    sum that a product can go through, whatever the order within a group. Every |s log2 r| is replaced by the largest
    that a distance up to the block's farthest corner allows.
    """
    (height, width), count = size, len(targets)
    weights = np.abs(_pixel_weights(coefficients, size))  # (P + 3, 2)
    far_x, far_y = (
        np.abs(_ends(side, step) / (side - 1) - targets[:, axis, None, None]).max(axis=1)
        for axis, (side, step) in enumerate(((width, COLUMNS_OF_BOUND), (height, ROWS_AT_ONCE)))
    )
    squared = far_x[:, None, :] ** 2 + far_y[:, :, None] ** 2  # (P, bands, blocks)
    kernel = squared * np.log2(np.maximum(squared, 1e-300)) / 2  # a block of one pixel may lie on a control point
    kernel = np.where(squared < np.exp(-1), -kernel, np.maximum(LARGEST_KERNEL, kernel))
    of_sum = 1 + min(PRODUCTS_AT_ONCE, count + 3) + (count + 2) // PRODUCTS_AT_ONCE
    roundings = 4.4 * squared + (LOG_ERROR + 3 + of_sum) * kernel
    affine = weights[count:] * np.array([1, width - 1, height - 1])[:, None] * of_sum
    total = np.tensordot(weights[:count].T, roundings, axes=1) + affine.sum(axis=0)[:, None, None]
    # Room for products of two errors, for float64's own, and for the comparison in float32.
    return np.asarray(total * (1 + 1e-4) * 2.0**-24 + 1e-6, np.float64)


def _ends(count: int, step: int) -> NDArray[np.int64]:
    """(2, n): first and last of each run of `step` out of 0 .. count - 1."""
    first = np.arange(0, count, step)
    return np.stack([first, np.minimum(first + step, count) - 1])


def _pixel_weights(coefficients: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """(P + 3, 2): of the kernel in log2, 1, column and row, for positions less the pixel's own in 1/32 px."""
    sides = np.array([size[1], size[0]])
    weights = coefficients * (sides << FRACTION_BITS)
    weights[:-3] *= np.log(2)
    weights[-2:] /= (sides - 1)[:, None]
    weights[[-2, -1], [0, 1]] += (1 << FRACTION_BITS) / (sides - 1)  # x * side is the column and column / (side - 1)
    return weights


def evaluate_at(
    pixels: NDArray[np.int64],
    targets: NDArray[np.float64],
    coefficients: NDArray[np.float64],
    positions: NDArray[np.float32],
) -> None:
    """Write the positions (2, H, W), as of PositionMap, of some pixels (n,) counted row by row, by float64 alone."""
    _, height, width = positions.shape
    to_x, to_y = positions.reshape(2, -1)
    weights, (constant, of_x, of_y) = (coefficients[:-3] * np.log(2)).T, coefficients[-3:, :, None]
    kernels, squares = np.empty((2, len(targets), min(PIXELS_AT_ONCE, len(pixels))))
    for first in range(0, len(pixels), PIXELS_AT_ONCE):
        some = pixels[first : first + PIXELS_AT_ONCE]
        rows = some // width
        x, y = (some - rows * width) / (width - 1), rows / (height - 1)
        kernel, squared = kernels[:, : len(some)], squares[:, : len(some)]
        np.subtract(x, targets[:, 0, None], out=squared)
        np.subtract(y, targets[:, 1, None], out=kernel)
        np.add(np.square(squared, out=squared), np.square(kernel, out=kernel), out=squared)
        np.sqrt(squared, out=kernel)
        kernel += KERNEL_EPSILON
        np.log2(kernel, out=kernel)  # takes NumPy less than half the time of log
        kernel *= squared
        shift_x, shift_y = weights @ kernel + constant + of_x * x + of_y * y
        steps = 1 << FRACTION_BITS
        to_x[some] = np.rint((x + shift_x) * (width * steps)) / steps
        to_y[some] = np.rint((y + shift_y) * (height * steps)) / steps
