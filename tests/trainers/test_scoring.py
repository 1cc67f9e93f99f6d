from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.trainers.scoring_oracle import slow_boundary_map, slow_measure, slow_region
from trainers.scoring.measures import (
    boundary_map,
    boundary_measure,
    boundary_radius,
    crop_to_both,
    region_similarity,
    score_frame,
)
from trainers.scoring.statistics import quarter_edges, summarise

Mask = NDArray[np.bool_]

# Known answers worked out by hand or by the official code. Rectangles are (y0, y1, x0, x1), ends excluded.
RECTANGLES = [
    ("identical", (480, 854), (100, 200, 100, 200), (100, 200, 100, 200), 1.0, 1.0),
    ("shifted by the radius", (480, 854), (100, 200, 100, 200), (100, 200, 108, 208), 0.8518518518518519, 1.0),
    ("shifted by one more", (480, 854), (100, 200, 100, 200), (100, 200, 109, 209), 0.8348623853211009, 0.54),
    ("shifted along the diagonal", (480, 854), (100, 200, 100, 200), (106, 206, 106, 206), 0.7914725904693658, 0.9975),
    ("far apart", (480, 854), (10, 60, 10, 60), (300, 350, 600, 650), 0.0, 0.0),
    ("top left corner", (480, 854), (0, 50, 0, 50), (0, 50, 0, 50), 1.0, 1.0),
    ("bottom right corner", (480, 854), (430, 480, 804, 854), (433, 480, 807, 854), 0.8836, 1.0),
    ("whole image against nothing", (480, 854), (0, 480, 0, 854), (0, 0, 0, 0), 0.0, 1.0),
    ("whole image but a column", (480, 854), (0, 480, 0, 854), (0, 480, 0, 853), 0.9988290398126464, 0.0),
    ("both empty", (480, 854), (0, 0, 0, 0), (0, 0, 0, 0), 1.0, 1.0),
    ("only the result is empty", (480, 854), (100, 200, 100, 200), (0, 0, 0, 0), 0.0, 0.0),
    (
        "1080p, one more than the radius",
        (1080, 1920),
        (200, 600, 300, 900),
        (200, 600, 319, 919),
        0.938610662358643,
        0.618,
    ),
    ("1x1", (1, 1), (0, 1, 0, 1), (0, 1, 0, 1), 1.0, 1.0),
    ("J of exactly one half", (480, 854), (0, 100, 0, 100), (0, 100, 0, 50), 0.5, 0.33333333333333326),
]


def rectangle(shape: tuple[int, int], box: tuple[int, int, int, int]) -> Mask:
    mask = np.zeros(shape, np.bool_)
    mask[box[0] : box[1], box[2] : box[3]] = True
    return mask


def measure(truth: Mask, result: Mask) -> tuple[float, float]:
    scores = score_frame(truth.astype(np.uint8), result.astype(np.uint8), (1,))
    return float(scores.region[0]), float(scores.boundary[0])


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[Mask, Mask]:
    """Two masks of one odd or even size: noise, rectangles that may touch the border, full or empty."""
    shape = (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    return draw(_masks(shape)), draw(_masks(shape))


@st.composite
def _masks(draw: st.DrawFn, shape: tuple[int, int]) -> Mask:
    kind = draw(st.sampled_from(["rectangles", "noise", "sparse", "full", "empty"]))
    if kind in ("full", "empty"):
        return np.full(shape, kind == "full")
    if kind == "rectangles":
        mask = np.zeros(shape, np.bool_)
        for _ in range(draw(st.integers(1, 3))):
            rows = sorted((draw(st.integers(0, shape[0])), draw(st.integers(0, shape[0]))))
            columns = sorted((draw(st.integers(0, shape[1])), draw(st.integers(0, shape[1]))))
            mask[rows[0] : rows[1], columns[0] : columns[1]] ^= True
        return mask
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return generator.random(shape) < (0.5 if kind == "noise" else 0.03)


@settings(max_examples=300, deadline=None)
@given(mask_pairs())
def test_j_and_f_equal_the_literal_definition_bit_for_bit(pair: tuple[Mask, Mask]) -> None:
    assert measure(*pair) == (slow_region(*pair), slow_measure(*pair))


@settings(max_examples=100, deadline=None)
@given(mask_pairs(), st.integers(1, 12))
def test_cropping_changes_neither_measure_for_any_radius(pair: tuple[Mask, Mask], radius: int) -> None:
    crops = crop_to_both(*pair)
    assert region_similarity(*crops) == region_similarity(*pair)
    assert boundary_measure(*crops, radius) == boundary_measure(*pair, radius)


@settings(max_examples=100, deadline=None)
@given(mask_pairs())
def test_truth_and_result_may_be_exchanged(pair: tuple[Mask, Mask]) -> None:
    truth, result = pair
    assert measure(truth, result) == measure(result, truth)
    assert measure(truth, truth) == (1.0, 1.0)


@settings(max_examples=100, deadline=None)
@given(mask_pairs())
def test_boundary_map_marks_pixels_that_differ_right_below_or_between(pair: tuple[Mask, Mask]) -> None:
    np.testing.assert_array_equal(boundary_map(pair[0]), slow_boundary_map(pair[0]))


@pytest.mark.parametrize(
    ("shape", "truth", "result", "region", "boundary"),
    [case[1:] for case in RECTANGLES],
    ids=[case[0] for case in RECTANGLES],
)
def test_known_rectangles_score_as_the_official_code_scores_them(
    shape: tuple[int, int],
    truth: tuple[int, int, int, int],
    result: tuple[int, int, int, int],
    region: float,
    boundary: float,
) -> None:
    found = measure(rectangle(shape, truth), rectangle(shape, result))
    assert found == pytest.approx((region, boundary), rel=0, abs=1e-12)


def test_objects_of_a_frame_are_scored_apart_and_other_ids_are_ignored() -> None:
    generator = np.random.default_rng(3)
    truth, result = generator.integers(0, 5, (2, 37, 53), dtype=np.uint8)
    scores = score_frame(truth, result, (1, 2, 3))
    for index in range(3):
        masks = truth == index + 1, result == index + 1
        assert scores.region[index] == slow_region(*masks)
        assert scores.boundary[index] == slow_measure(*masks)
    assert len(scores.region) == len(scores.boundary) == 3


def test_label_maps_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"truth is \(4, 4\), result is \(4, 5\)"):
        score_frame(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8), (1,))


@pytest.mark.parametrize(
    ("height", "width", "radius"),
    [
        (480, 854, 8),
        (480, 910, 9),
        (480, 1138, 10),
        (1080, 1920, 18),
        (1280, 720, 12),
        (240, 427, 4),
        (1, 1, 1),
        (75, 100, 1),
    ],
)
def test_radius_is_eight_thousandths_of_the_diagonal_rounded_up(height: int, width: int, radius: int) -> None:
    assert boundary_radius(height, width) == radius


def test_mean_recall_and_decay_of_a_falling_line() -> None:
    statistics = summarise(np.linspace(1, 0, 22))
    assert quarter_edges(22) == (0, 5, 11, 16, 21)
    assert statistics == pytest.approx((0.5, 0.5, 0.7619047619047619), abs=1e-12)


def test_one_half_is_a_miss_and_nan_too() -> None:
    assert summarise(np.full(4, 0.5)).recall == 0.0
    assert summarise(np.array([0.9, math.nan, 0.8, 0.2])).recall == 0.5
    assert summarise(np.array([0.9, math.nan, 0.8, 0.1])).mean == pytest.approx(0.6)
    assert math.isnan(summarise(np.array([math.nan, math.nan, math.nan])).mean)


@pytest.mark.parametrize("num_frames", [256, 257, 300, 500, 1000])
def test_decay_stays_right_beyond_the_255_frames_of_the_official_code(num_frames: int) -> None:
    assert summarise(np.linspace(1, 0, num_frames)).decay == pytest.approx(0.75, abs=0.005)
    assert quarter_edges(num_frames)[-1] == num_frames - 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=600))
def test_quarters_share_their_border_frames_and_cover_all(values: list[float]) -> None:
    edges = quarter_edges(len(values))
    assert edges[0] == 0
    assert edges[-1] == len(values) - 1
    # Round half up of the exact position 1 + k (n - 1) / 4, in integers.
    assert list(edges) == [(4 + k * (len(values) - 1) + 2) // 4 - 1 for k in range(5)]
    expected = math.fsum(values[: edges[1] + 1]) / (edges[1] + 1) - math.fsum(values[edges[3] :]) / (
        len(values) - edges[3]
    )
    assert summarise(np.array(values)).decay == pytest.approx(expected, abs=1e-12)


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one scored frame"):
        summarise(np.array([]))


def _formula(text: str, height: int, width: int) -> Mask:
    """A mask of metrics_reference.json: zeros, ones, rect, disc, ring or checker."""
    kind, *numbers = text.split()
    parameters = [int(number) for number in numbers]
    y, x = np.mgrid[:height, :width]
    if kind == "rect":
        return rectangle((height, width), (parameters[0], parameters[1], parameters[2], parameters[3]))
    if kind == "checker":
        return np.asarray((x + y) % 2 == parameters[0])
    if kind in ("disc", "ring"):
        squared = (y - parameters[0]) ** 2 + (x - parameters[1]) ** 2
        inner = parameters[2] ** 2 if kind == "ring" else -1
        return np.asarray((squared <= parameters[-1] ** 2) & (squared > inner))
    return np.full((height, width), kind == "ones")


def _reference(shared_data: Path) -> dict:
    path = shared_data.parent / "spec" / "metrics_reference.json"
    return json.loads(path.read_text(encoding="utf-8"))["synthetic"]


def test_every_reference_pair_scores_as_the_official_code_scores_it(shared_data: Path) -> None:
    cases = _reference(shared_data)["pair_cases"]
    assert len(cases) == 31
    for case in cases:
        truth = _formula(case["gt"], case["height"], case["width"])
        result = _formula(case["pred"], case["height"], case["width"])
        assert boundary_map(truth).sum() == case["gt_boundary_px"], case["name"]
        assert boundary_map(result).sum() == case["pred_boundary_px"], case["name"]
        assert measure(truth, result) == pytest.approx((case["J"], case["F"]), rel=0, abs=1e-12), case["name"]


def test_every_reference_statistic_agrees_where_the_official_code_does_not_overflow(shared_data: Path) -> None:
    cases = _reference(shared_data)["statistics_cases"]
    for case in cases:
        number = case["n"]
        values = [1 - index / (number - 1) for index in range(number)] if case["formula"] else case["values"]
        found = summarise(
            np.array([math.nan if value in (None, "nan", "NaN") else value for value in values], np.float64)
        )
        assert quarter_edges(number) == tuple(case["bin_edges"]), case["name"]
        assert found[:2] == pytest.approx((case["mean"], case["recall"]), abs=1e-12), case["name"]
        if case["bin_edges"] == case["bin_edges_uint8"] and number < 256:
            assert found.decay == pytest.approx(case["decay"], abs=1e-12), case["name"]


def test_real_masks_of_davis_equal_the_literal_definition(shared_data: Path) -> None:
    folder = shared_data / "davis_mini"
    results = folder / "Results" / "Segmentations" / "480p" / "osvos"
    for name in ("dog/00013.png", "horsejump-high/00017.png"):
        with Image.open(folder / "Annotations" / "480p" / name) as truth, Image.open(results / name) as result:
            truth_labels, result_labels = np.asarray(truth), np.asarray(result)
        scores = score_frame(truth_labels, result_labels, (1, 2))
        for index in range(2):
            masks = truth_labels == index + 1, result_labels == index + 1
            assert scores.boundary[index] == slow_measure(*masks)
