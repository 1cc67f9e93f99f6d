"""Splines against the written-out formulas, one point and one pixel at a time."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from pipelines.order.streams import Stream, StreamName
from pipelines.spline import bend, draw_points, fit, sample_linear, sample_nearest, sampling_map, sampling_maps
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
        assert np.array_equal(found.numpy(), sampling_map(spline, size))
    assert torch.equal(sample_nearest(labels, maps), one_by_one.labels[:, 0])
    assert torch.equal(sample_linear(images, maps), one_by_one.images[:, 0])


def test_points_that_do_not_move_still_stretch_the_frame_by_one_pixel_as_published() -> None:
    still = points(deviation=0.0)
    x, y = sampling_map(still, SIZE) / 32
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
