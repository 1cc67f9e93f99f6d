"""Splines against the written-out formulas, one point and one pixel at a time."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from pipelines.order.streams import Stream, StreamName
from pipelines.spline import bend, draw_points, fit, sample_linear, sample_nearest, sampling_maps
from pipelines.spline_map import (
    COLUMNS_OF_BOUND,
    LOG_ERROR,
    ROWS_AT_ONCE,
    Float32Spline,
    PositionMap,
    evaluate_at,
    rounding_bounds,
)
from pipelines.types import ClipPixels
from tests.pipelines.clips import noise_labels, picture, plain_plan

SIZE = (40, 40)


def points(seed: int = 0, *, count: int = 12, side: int = 40, deviation: float = 0.05) -> np.ndarray:
    return draw_points(Stream((seed, 1), StreamName.SPLINE, seed), count, side, deviation)


def kernel(distance: float) -> float:
    return distance**2 * math.log(distance + 1e-6)


def slow_displacement(spline: np.ndarray, x: float, y: float) -> tuple[float, float]:
    """The published fit (all weights and the affine part in one system) evaluated at one point."""
    count = len(spline)
    rows = [
        [kernel(math.dist(spline[i, 1], spline[j, 1])) for j in range(count)] + [1, *spline[i, 1]] for i in range(count)
    ]
    rows += [[1.0] * count + [0] * 3] + [[spline[j, 1, axis] for j in range(count)] + [0] * 3 for axis in (0, 1)]
    wanted = np.vstack([spline[:, 0] - spline[:, 1], np.zeros((3, 2))])
    solved = np.linalg.inv(np.array(rows, np.float64)) @ wanted
    terms = [kernel(math.dist((x, y), spline[j, 1])) for j in range(count)] + [1, x, y]
    return tuple(float(np.dot(terms, solved[:, axis])) for axis in (0, 1))


def slow_bend(image: np.ndarray, labels: np.ndarray, spline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Black outside, linear for the image and nearest for labels, pixel by pixel."""
    height, width = labels.shape
    bent, bent_labels = np.zeros(image.shape), np.zeros_like(labels)
    for row in range(height):
        for column in range(width):
            x, y = column / (width - 1), row / (height - 1)
            moved = slow_displacement(spline, x, y)
            px, py = (round((c + d) * n * 32) / 32 for c, d, n in zip((x, y), moved, (width, height), strict=True))
            for r in (math.floor(py), math.floor(py) + 1):
                for c in (math.floor(px), math.floor(px) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        bent[row, column] += image[r, c] * (1 - abs(py - r)) * (1 - abs(px - c))
            r, c = math.floor(py + 0.5), math.floor(px + 0.5)
            if 0 <= r < height and 0 <= c < width:
                bent_labels[row, column] = labels[r, c]
    return bent, bent_labels


def positions_in_float64(spline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(2, H, W), not rounded, in pixels: the formula once more, for all pixels at once."""
    height, width = size
    y, x = np.meshgrid(np.arange(height) / (height - 1), np.arange(width) / (width - 1), indexing="ij")
    shift = [0, 0]
    for (target_x, target_y), weight in zip(spline[:, 1], fit(spline), strict=False):
        distance = np.hypot(x - target_x, y - target_y)
        shift = [s + w * distance**2 * np.log(distance + 1e-6) for s, w in zip(shift, weight, strict=True)]
    affine = [c[0] + c[1] * x + c[2] * y for c in fit(spline)[-3:].T]
    return np.stack([(x + shift[0] + affine[0]) * width, (y + shift[1] + affine[1]) * height])


def pixels(seed: int = 0) -> ClipPixels:
    image, labels = torch.from_numpy(picture(seed, *SIZE)), torch.from_numpy(noise_labels(seed, *SIZE))
    return ClipPixels(image[None, None].repeat(1, 2, 1, 1, 1), labels[None, None].repeat(1, 2, 1, 1), torch.ones(1, 2))


def test_the_spline_passes_through_its_points() -> None:
    spline = points()
    for source, target in spline:
        moved = slow_displacement(spline, *target)
        assert np.allclose(np.array(target) + moved, source, atol=1e-9)
    assert np.abs(fit(spline)[:-3].sum(axis=0)).max() < 1e-9  # no pull from afar: the side conditions


def test_control_points_lie_on_whole_pixels_of_different_rows_and_columns() -> None:
    drawn = [points(seed, side=384, deviation=0.02) for seed in range(200)]
    for spline in drawn:
        start = spline[:, 0] * 384
        assert np.array_equal(start, np.rint(start))
        assert all(len(set(column)) == 12 for column in start.T)
        assert start.min() >= 0
        assert start.max() <= 383
    noise = np.concatenate([spline[:, 1] - spline[:, 0] for spline in drawn])
    assert noise.mean() == pytest.approx(0, abs=0.001)
    assert noise.std() == pytest.approx(0.02, rel=0.03)
    assert (np.abs(noise) < 0.02).mean() == pytest.approx(0.683, abs=0.02)


def test_bending_equals_the_slow_oracle() -> None:
    before, spline = pixels(), points(3)
    plan = dataclasses.replace(plain_plan(SIZE, num_frames=2), splines=(None, spline))
    after = bend(before, [plan])
    image, labels = slow_bend(before.images[0, 1].numpy().astype(float), before.labels[0, 1].numpy(), spline)
    assert torch.equal(after.images[0, 0], before.images[0, 0])
    assert torch.equal(after.labels[0, 0], before.labels[0, 0])
    assert np.array_equal(after.labels[0, 1].numpy(), labels)
    assert np.abs(after.images[0, 1].numpy() - image).max() <= 1.0
    assert (labels == 0).mean() > 0.02  # some of it shows the outside


def test_the_batched_form_equals_the_one_of_the_cpu() -> None:
    splines = [points(seed, side=64, deviation=0.02) for seed in range(6)]
    size = (64, 64)
    maps = sampling_maps(splines, size, torch.device("cpu"))
    images = torch.stack([torch.from_numpy(picture(seed, *size)) for seed in range(6)])
    labels = torch.stack([torch.from_numpy(noise_labels(seed, *size)) for seed in range(6)])
    plans = [dataclasses.replace(plain_plan(size), splines=(spline,)) for spline in splines]
    one_by_one = bend(ClipPixels(images[:, None], labels[:, None], torch.ones(6, 1)), plans)
    for spline, found in zip(splines, maps, strict=True):
        assert np.array_equal(found.numpy(), PositionMap(size).of(spline) * 32)
    assert torch.equal(sample_nearest(labels, maps), one_by_one.labels[:, 0])
    assert torch.equal(sample_linear(images, maps), one_by_one.images[:, 0])


def test_points_that_do_not_move_still_stretch_the_frame_by_one_pixel_as_published() -> None:
    still = points(deviation=0.0)
    x, y = PositionMap(SIZE).of(still)
    expected = np.arange(40) / 39 * 40
    assert np.abs(x - expected).max() <= 1 / 64
    assert np.abs(y - expected[:, None]).max() <= 1 / 64


def test_clips_without_splines_are_left_alone() -> None:
    before = pixels()
    assert bend(before, [plain_plan(SIZE, num_frames=2)]) is before
    untouched = before.images.clone()
    bend(before, [dataclasses.replace(plain_plan(SIZE, num_frames=2), splines=(points(), None))])
    assert torch.equal(before.images, untouched)


def test_points_without_a_spline_are_refused() -> None:
    same = np.full((4, 2, 2), 0.5)
    with pytest.raises(ValueError, match="no spline through 4 points"):
        fit(same)


SPLINES = {
    "as drawn": points(5, side=96, deviation=0.02),
    "strong": points(6, side=96, deviation=0.3),
    "two points next to each other": np.concatenate([points(7, side=96), points(7, side=96)[:1] + 0.001 * np.eye(2)]),
    "beyond the frame": points(8, side=96) * 3 - 1,
    "four points": points(9, count=4, side=96),
    "not moved": points(10, side=96, deviation=0),
}


@pytest.mark.parametrize("size", [(96, 96), (50, 131)])
@pytest.mark.parametrize("spline", SPLINES.values(), ids=SPLINES)
def test_positions_are_those_of_float64(spline: np.ndarray, size: tuple[int, int]) -> None:
    exact = positions_in_float64(spline, size) * 32
    apart = np.abs(PositionMap(size).of(spline) * 32 - exact)
    assert apart.max() < 0.5 + 1e-6
    assert np.array_equal(PositionMap(size).of(spline) * 32, sampling_maps([spline], size, torch.device("cpu"))[0])


@pytest.mark.parametrize("off", [-1e-7, 1e-7])
def test_positions_next_to_a_border_between_two_steps_are_those_of_float64(off: float) -> None:
    # A frame of 33 px moved by half a step: in float32 every pixel of its first column and row lies on a border.
    spline = points(11, side=33, deviation=0.0)
    spline[:, 0] += (0.5 + off) / (32 * 33)
    x, y = PositionMap((33, 33)).of(spline) * 32
    assert np.array_equal(x[:, 0], np.full(33, round(0.5 + off)))
    assert np.array_equal(y[0], np.full(33, round(0.5 + off)))


@pytest.mark.parametrize("spline", SPLINES.values(), ids=SPLINES)
def test_float32_is_off_by_less_than_its_bound(spline: np.ndarray) -> None:
    size, shifts = (96, 96), np.empty((2, 96, 96), np.float32)
    float32 = Float32Spline(spline[:, 1], fit(spline), size)
    for first in range(0, 96, ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        float32.shifts(rows, shifts[:, rows])
    own = np.stack(np.meshgrid(np.arange(96), np.arange(96))) * 32
    bounds = rounding_bounds(spline[:, 1], fit(spline), size)
    bounds = bounds.repeat(ROWS_AT_ONCE, axis=1).repeat(COLUMNS_OF_BOUND, axis=2)
    errors = np.abs(shifts + own - positions_in_float64(spline, size) * 32)
    assert (errors <= bounds).all()
    assert errors.max() > 0.02 * bounds.min()  # it is a bound on something of its size


def test_a_control_point_on_the_only_pixel_of_a_block_has_a_bound() -> None:
    spline, size = points(12, side=49, deviation=0.0), (ROWS_AT_ONCE + 1, COLUMNS_OF_BOUND + 1)
    spline[0] = 1.0  # the last pixel
    bounds = rounding_bounds(spline[:, 1], fit(spline), size)
    assert bounds.shape == (2, 2, 2) and (bounds > 0).all()


def test_few_pixels_are_computed_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []

    def count(pixels: np.ndarray, *rest: np.ndarray) -> None:
        shares.append(len(pixels) / 128**2)
        evaluate_at(pixels, *rest)

    monkeypatch.setattr("pipelines.spline_map.evaluate_at", count)
    for seed in range(8):
        PositionMap((128, 128)).of(points(seed, side=128, deviation=0.02))
    assert 0 < np.median(shares) < 0.2


def test_log2_of_float32_is_as_exact_as_the_bound_takes_it_to_be() -> None:
    generator = np.random.default_rng(0)
    values = np.exp2(generator.uniform(-20, 3, 300_000)).astype(np.float32)
    exact = np.log2(values.astype(np.float64))
    assert (np.abs(np.log2(values) - exact) <= LOG_ERROR * 2.0**-24 * np.abs(exact)).all()


def test_a_map_is_as_good_the_second_time() -> None:
    kept, splines = PositionMap(SIZE), [points(seed) for seed in (1, 2)]
    first, second = (kept.of(spline).copy() for spline in splines)
    assert np.array_equal(first, PositionMap(SIZE).of(splines[0]))
    assert np.array_equal(second, PositionMap(SIZE).of(splines[1]))
