"""Composed numbers do to points, shapes and colours what the published steps do one after the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from pipelines.augmentation import (
    GREYSCALE,
    Crop,
    Jitter,
    Tone,
    affine_matrices,
    apply_step,
    centre_crop,
    colour_matrices,
    compose_steps,
    crop_matrix,
    draw_colours,
    draw_crop,
    draw_jitter,
    luma,
    sees_any,
)
from pipelines.order.streams import Stream, StreamName

NAMES = ("brightness", "contrast", "saturation")
ENHANCE = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}
FILL = (124.0, 116.0, 104.0)
factors = st.tuples(st.sampled_from(NAMES), st.floats(0.5, 1.5))


def stream(number: int, name: StreamName = StreamName.CROP) -> Stream:
    return Stream((7, 7), name, number)


def smooth_image(height: int = 60, width: int = 80) -> np.ndarray:
    """Colours well inside 0..255 whose luma averages that of FILL, so that clipping and the contrast centre agree."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([40 * np.sin(x / 9 + c) * np.cos(y / 7 - c) for c in range(3)], axis=-1)
    image = 118 + waves
    image += 117.024 - (image @ np.array([0.299, 0.587, 0.114])).mean()
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def nearest_warp(labels: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Source pixel under the centre of each output pixel, one by one; 0 outside."""
    out = np.zeros(size, labels.dtype)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y, _ = matrix @ (column + 0.5, row + 0.5, 1)
            if 0 <= x < labels.shape[1] and 0 <= y < labels.shape[0]:
                out[row, column] = labels[int(y), int(x)]
    return out


# Geometry


def test_crops_have_the_area_and_aspect_asked_for_and_lie_inside():
    crops = [draw_crop(stream(n), 480, 854, (0.36, 1.0), (3 / 4, 4 / 3)) for n in range(4000)]
    for crop in crops:
        assert crop.top >= 0 <= crop.left
        assert crop.top + crop.height <= 480
        assert crop.left + crop.width <= 854
        assert 0.745 < crop.width / crop.height < 1.34
    areas = np.array([crop.height * crop.width for crop in crops]) / (480 * 854)
    assert 0.355 < areas.min() < 0.37


def test_crop_areas_follow_the_accepted_draws_of_a_literal_transcription():
    generator = np.random.default_rng(5)

    def literal(height: int, width: int) -> float:
        for _ in range(10):
            area = height * width * generator.uniform(0.36, 1)
            ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if w <= width and h <= height:
                return w * h / (height * width)
        return 640 * 480 / (height * width)

    theirs = np.array([literal(480, 854) for _ in range(4000)])
    ours = [draw_crop(stream(n), 480, 854, (0.36, 1.0), (3 / 4, 4 / 3)) for n in range(4000)]
    areas = np.array([crop.height * crop.width for crop in ours]) / (480 * 854)
    grid = np.linspace(0.3, 1.0, 100)
    distance = np.abs((areas[:, None] < grid).mean(0) - (theirs[:, None] < grid).mean(0)).max()
    assert distance < 1.95 * math.sqrt(2 / 4000)  # Kolmogorov-Smirnov at about 0.1 %


def test_crop_corners_are_uniform_over_what_fits():
    crops = [draw_crop(stream(n), 200, 200, (0.25, 0.25), (1, 1)) for n in range(2000)]
    assert {(crop.height, crop.width) for crop in crops} == {(100, 100)}
    for side in (np.array([crop.top for crop in crops]), np.array([crop.left for crop in crops])):
        assert (side.min(), side.max()) == (0, 100)
        assert abs(side.mean() - 50) < 4 * 29.2 / math.sqrt(2000)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 400, Crop(0, 133, 100, 133)), (400, 100, Crop(133, 0, 133, 100)), (100, 110, Crop(0, 0, 100, 110))],
)
def test_a_crop_that_never_fits_falls_back_to_the_middle(height, width, expected):
    assert centre_crop(height, width, (3 / 4, 4 / 3)) == expected
    if expected.width != width or expected.height != height:
        assert draw_crop(stream(0), height, width, (1.0, 1.0), (3 / 4, 4 / 3)) == expected


def test_without_chance_the_whole_image_maps_onto_the_canvas():
    crop = draw_crop(stream(0), 300, 400, (1.0, 1.0), (4 / 3, 4 / 3))
    matrix = crop_matrix(crop, (300, 400)) @ affine_matrices([0.0], [0.0], (300, 400))[0]
    assert np.array_equal(matrix, np.eye(3))


@given(st.floats(-15, 15), st.floats(-10, 10), st.booleans(), st.floats(0, 384), st.floats(0, 384))
def test_a_composed_point_goes_through_affine_crop_and_flip_in_turn(rotation, shear, flip, x, y):
    crop, size, width = Crop(30, 50, 350, 420), (384, 384), 854
    matrix = crop_matrix(crop, size, flip_width=width if flip else None) @ affine_matrices([rotation], [shear], size)[0]
    # The forward step turns the sheared plane about the middle; undo it by hand: turn back, then shear back.
    a, k = math.radians(rotation), math.tan(math.radians(shear))
    dx, dy = x - 192, y - 192
    turned_x, turned_y = math.cos(a) * dx + math.sin(a) * dy, -math.sin(a) * dx + math.cos(a) * dy
    canvas_x, canvas_y = turned_x + k * turned_y + 192, turned_y + 192
    source_x, source_y = crop.left + canvas_x * crop.width / 384, crop.top + canvas_y * crop.height / 384
    expected = (width - source_x if flip else source_x, source_y, 1)
    assert np.allclose(matrix @ (x, y, 1), expected, atol=1e-9)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("rotation", "shear"), [(0.0, 0.0), (15.0, 0.0), (-12.0, 10.0), (7.0, -10.0)])
def test_a_shape_warped_once_lies_where_pillow_puts_it_in_three_steps(flip, rotation, shear):
    y, x = np.mgrid[:120, :160]
    labels = ((x - 70) ** 2 / 40**2 + (y - 66) ** 2 / 25**2 < 1).astype(np.uint8)
    labels[(x > 95) & (y < 30)] = 2
    crop, size = Crop(10, 30, 96, 110), (64, 64)
    affine = affine_matrices([rotation], [shear], size)[0]
    picture = Image.fromarray(labels)
    if flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
    picture = picture.resize((64, 64), Image.Resampling.NEAREST)
    numbers = affine[:2].reshape(-1).tolist()
    expected = np.asarray(picture.transform((64, 64), Image.Transform.AFFINE, numbers, Image.Resampling.NEAREST))
    ours = nearest_warp(labels, crop_matrix(crop, size, flip_width=160 if flip else None) @ affine, size)
    # Compare where the two-step recipe has content: outside the crop it shows fill and we show the image.
    inside = nearest_warp(np.ones((64, 64), np.uint8), affine, size) > 0
    for label in (1, 2):
        both = ((ours == label) & (expected == label) & inside).sum()
        either = (((ours == label) | (expected == label)) & inside).sum()
        assert both / either > 0.93


@given(
    st.floats(-80, 80), st.floats(-10, 10), st.tuples(*[st.integers(0, 90)] * 2), st.tuples(*[st.integers(1, 40)] * 2)
)
def test_a_box_is_seen_exactly_if_some_point_of_it_lands_on_the_canvas(rotation, shear, corner, extent):
    (y0, x0), (height, width) = corner, extent
    matrix = crop_matrix(Crop(20, 40, 30, 50), (32, 32)) @ affine_matrices([rotation], [shear], (32, 32))[0]
    box = np.array([[y0, x0, y0 + height, x0 + width]], np.uint16)
    fine = np.linspace(0.001, 0.999, 40)
    x, y = np.meshgrid(x0 + fine * width, y0 + fine * height)
    landed = np.linalg.inv(matrix) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    some_point = bool(((landed[:2] > 0) & (landed[:2] < 32)).all(axis=0).any())
    if some_point:
        assert sees_any(matrix, (32, 32), box)
    elif sees_any(matrix, (32, 32), box):
        # The points are a grid: a corner may reach in between them, but never by more than their distance.
        near = ((landed[:2] > -2.5) & (landed[:2] < 34.5)).all(axis=0).any()
        assert near


def test_no_box_is_not_seen_and_any_seen_box_counts():
    matrix = crop_matrix(Crop(0, 0, 50, 50), (50, 50))
    far, near = [60, 60, 70, 70], [40, 40, 60, 60]
    assert not sees_any(matrix, (50, 50), np.zeros((0, 4), np.uint16))
    assert not sees_any(matrix, (50, 50), np.array([far], np.uint16))
    assert sees_any(matrix, (50, 50), np.array([far, near], np.uint16))
    assert not sees_any(matrix, (50, 50), np.array([[50, 0, 60, 50]], np.uint16)), "touching is not seeing"


# Colour


@given(st.lists(factors, max_size=7), st.booleans(), st.tuples(*[st.floats(0, 255)] * 3))
def test_a_composed_matrix_does_what_the_steps_do_one_by_one(steps, grey_first, rgb):
    tone = compose_steps(steps, GREYSCALE if grey_first else Tone(), 117.0)
    colour, centre = np.array(rgb), 117.0
    if grey_first:
        colour = np.full(3, luma(rgb))
    for name, factor in steps:
        if name == "brightness":
            colour, centre = factor * colour, factor * centre
        elif name == "contrast":
            colour = centre + factor * (colour - centre)
        else:
            colour = luma(colour) + factor * (colour - luma(colour))
    matrix = colour_matrices([tone])[0].astype(np.float64)
    assert np.allclose(matrix[:, :3] @ np.array(rgb) + matrix[:, 3], colour, atol=2e-3)


def enhance_floats(image: np.ndarray, name: str, factor: float) -> np.ndarray:
    """One enhancement as Pillow defines it, without its rounding: a blend with black, own mean grey or greyscale."""
    weights = np.array([0.299, 0.587, 0.114])
    if name == "brightness":
        return factor * image
    other = (image @ weights).mean() if name == "contrast" else (image @ weights)[:, None]
    return other + factor * (image - other)


@pytest.mark.parametrize("number", range(30))
def test_published_jitters_one_by_one_give_the_composed_colours_on_an_image_of_the_mean_grey(number):
    image = smooth_image()
    colours = draw_colours(
        stream(number, StreamName.COLOUR),
        1,
        clip_jitter=Jitter(0.1, 0.03, 0.03),
        grayscale=0.3,
        frame_jitter=Jitter(0.01, 0.01, 0.01),
        mean_grey=luma(FILL),
    )
    picture, exact = Image.fromarray(image), image.reshape(-1, 3).astype(np.float64)
    for name, factor in colours.clip_steps:
        picture, exact = ENHANCE[name](picture).enhance(factor), enhance_floats(exact, name, factor)
    if colours.grayscale:
        picture, exact = picture.convert("L").convert("RGB"), np.repeat(exact @ [[0.299], [0.587], [0.114]], 3, axis=1)
    for name, factor in colours.frame_steps[0]:
        picture, exact = ENHANCE[name](picture).enhance(factor), enhance_floats(exact, name, factor)
    matrix = colour_matrices(colours.tones)[0]
    ours = image.reshape(-1, 3) @ matrix[:, :3].T + matrix[:, 3]
    assert np.abs(ours - exact).max() < 0.02
    # Pillow drops fractions of a level in each of its seven steps, which darkens by a few levels in all.
    difference = ours - np.asarray(picture).reshape(-1, 3)
    assert -1 < difference.mean() < 4.5
    assert difference.std() < 1.5


def test_the_contrast_centre_is_the_grey_of_the_fill_brightened_before_it():
    grey = luma(FILL)
    assert grey == pytest.approx(117.024)
    after = apply_step(("contrast", 0.5), apply_step(("brightness", 1.2), Tone(), grey), grey)
    before = apply_step(("brightness", 1.2), apply_step(("contrast", 0.5), Tone(), grey), grey)
    assert after.of_grey(grey) == pytest.approx(1.2 * grey)
    assert before.of_grey(grey) == pytest.approx(1.2 * grey)
    assert after == pytest.approx(before), "so brightness and contrast commute, as they do for an image's own mean"


def test_jitter_draws_each_factor_in_its_range_and_all_orders_alike():
    draws = [draw_jitter(stream(n, StreamName.COLOUR), Jitter(0.1, 0.03, 0.02)) for n in range(3000)]
    for name, amount in zip(NAMES, (0.1, 0.03, 0.02), strict=True):
        values = np.array([dict(steps)[name] for steps in draws])
        assert 1 - amount <= values.min() < 1 - 0.98 * amount
        assert 1 + 0.98 * amount < values.max() < 1 + amount
        assert abs(values.mean() - 1) < 4 * amount / math.sqrt(3 * 3000)
    orders = [tuple(name for name, _ in steps) for steps in draws]
    assert {orders.count(order) // 100 for order in set(orders)} <= {4, 5}
    assert len(set(orders)) == 6


def test_no_jitter_is_the_identity_and_greyscale_is_luma():
    none = Jitter(0, 0, 0)
    colours = draw_colours(stream(1), 2, clip_jitter=none, grayscale=0.0, frame_jitter=none, mean_grey=117.0)
    assert np.array_equal(colour_matrices(colours.tones), np.stack([np.eye(3, 4, dtype=np.float32)] * 2))
    grey = draw_colours(stream(1), 1, clip_jitter=none, grayscale=1.0, frame_jitter=none, mean_grey=117.0)
    assert np.allclose(colour_matrices(grey.tones)[0], [[0.299, 0.587, 0.114, 0]] * 3)
