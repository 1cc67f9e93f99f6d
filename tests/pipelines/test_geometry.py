"""Matrices on the exact grid, against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from pipelines.executors.geometry import pixel_centred, snap
from tests.pipelines.clips import plan

SIZE = (384, 384)


def rde_matrices(count: int, source: tuple[int, int]) -> np.ndarray:
    return np.concatenate([plan(seed, source=source, size=SIZE).matrices for seed in range(count)])


@pytest.mark.parametrize(("source", "limit"), [((480, 854), 0.05), ((1080, 1920), 0.2)])
def test_snapping_moves_no_pixel_by_more_than_stated(source: tuple[int, int], limit: float) -> None:
    matrices = rde_matrices(200, source)
    corners = np.array([[0, 384, 0, 384], [0, 0, 384, 384], [1, 1, 1, 1]], np.float64)
    moved = (snap(matrices, SIZE).matrices.astype(np.float64) - matrices) @ corners
    assert np.abs(moved).max() <= limit
    assert np.abs(moved).max() > 1e-4


def test_any_order_of_float32_arithmetic_gives_the_exact_coordinate() -> None:
    snapped = snap(rde_matrices(20, (480, 854)), SIZE)
    coordinates = [np.float32(v + 0.5) for v in (0, 1, 127, 200, 383)]
    for a, b, c in snapped.matrices.reshape(-1, 3):
        for x in coordinates:
            for y in coordinates:
                exact = Fraction(float(a)) * Fraction(float(x)) + Fraction(float(b)) * Fraction(float(y))
                exact += Fraction(float(c))
                sums = (a * x + b * y) + c, a * x + (b * y + c), (a * x + c) + b * y
                assert all(Fraction(float(value)) == exact for value in sums)


def test_pixel_centred_matrices_with_half_steps_stay_exact_in_float32() -> None:
    snapped = snap(rde_matrices(50, (480, 854)), SIZE)
    shifted = pixel_centred(snapped.matrices)
    shifted[..., 2] += snapped.half_steps
    assert np.array_equal(shifted, shifted.astype(np.float32))
    rows = shifted.astype(np.float32)
    across = rows[..., 0, None] * np.arange(384, dtype=np.float32)
    exact = shifted[..., 0, None] * np.arange(384)
    assert np.array_equal(across + rows[..., 2, None], exact + shifted[..., 2, None])


def test_matrices_already_on_the_grid_stay_and_so_does_the_centre() -> None:
    identity = np.eye(2, 3, dtype=np.float32)[None]
    assert np.array_equal(snap(identity, SIZE).matrices, identity)
    matrices = rde_matrices(50, (480, 854))
    centre = np.array([192, 192, 1.0])
    assert np.abs((snap(matrices, SIZE).matrices.astype(np.float64) - matrices) @ centre).max() < 2e-4


def test_a_matrix_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        snap(np.full((1, 2, 3), np.nan, np.float32), SIZE)
