"""First-frame samples: numbers of the plan, geometry against OpenCV, and what happens to objects that vanish."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from pipelines.first_frame.pixels import augment_first_frame, fill_hole, warp_bicubic, warp_nearest
from pipelines.first_frame.plans import (
    Box,
    FirstFrameOptions,
    FirstFramePlan,
    Variant,
    background_matrix,
    blur_kernel,
    object_matrix,
    plan_first_frame,
)
from pipelines.order.streams import Stream, StreamName

SIZE = (48, 86)
STILL = Variant((0.5, 0.5), 0.0, False, 1.0, (0.0, 0.0), 0, 0.0, 1.0, 0, 0.0)


def stream(number: int = 0) -> Stream:
    return Stream((1, 2), StreamName.FIRST_FRAME, number)


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth picture (3, 48, 86) with a bright object, and its mask."""
    y, x = np.mgrid[:48, :86]
    image = np.stack([120 + 60 * np.sin(x / 9), 100 + 50 * np.cos(y / 7), 90 + 40 * np.sin((x + y) / 11)])
    mask = np.zeros(SIZE, np.uint8)
    mask[16:30, 30:52] = 1
    image[:, mask > 0] = 250
    return torch.from_numpy(image.astype(np.uint8)), torch.from_numpy(mask)


def test_the_plan_is_a_function_of_its_stream() -> None:
    options = FirstFrameOptions()
    assert plan_first_frame(stream(), SIZE, options) == plan_first_frame(stream(), SIZE, options)
    assert plan_first_frame(stream(), SIZE, options) != plan_first_frame(stream(1), SIZE, options)


def test_every_round_has_each_value_as_often_as_its_list_says() -> None:
    plan = plan_first_frame(stream(), SIZE, FirstFrameOptions(num_made=20, rounds=2))
    assert len(plan.variants) == 40
    for start in (0, 20):
        variants = plan.variants[start : start + 20]
        assert set(Counter(variant.rotation for variant in variants).values()) == {2}
        assert Counter(variant.mirror for variant in variants) == {False: 16, True: 4}
        assert Counter(variant.blur for variant in variants) == {0: 15, 2: 5}
        assert Counter(variant.background_blur for variant in variants) == {0: 8, 1: 4, 2: 4, 5: 4}


def test_centres_lie_in_a_grid_over_the_whole_image() -> None:
    options = FirstFrameOptions(num_samples=5, num_made=400)
    centres = {variant.centre for variant in plan_first_frame(stream(), (480, 854), options).variants}
    assert len(centres) == 5  # of the 2 x 4 cells
    assert all(-0.2 < x < 1.2 and -0.3 < y < 1.3 for x, y in centres)


@pytest.mark.parametrize(
    ("variance", "expected"),
    [
        (1, (0.2704, 0.4459, 0.2704)),
        (2, (0.3005, 0.3858, 0.3005)),
        (5, (0.0808, 0.1333, 0.1799, 0.1988, 0.1799, 0.1333, 0.0808)),
    ],
)
def test_blur_kernels_are_those_of_the_acceptance_vectors(variance: int, expected: tuple[float, ...]) -> None:
    row = blur_kernel(variance, 0)[3]
    assert row[row > 0].tolist() == pytest.approx(expected, abs=1e-4)
    np.testing.assert_allclose(blur_kernel(variance, 90).T, blur_kernel(variance, 0), atol=1e-12)


def test_an_object_goes_where_its_matrix_says() -> None:
    box = Box(left=30, top=16, width=22, height=14)
    variant = STILL._replace(centre=(0.25, 0.75), scale=2.0)
    corner = object_matrix(variant, box, SIZE) @ np.array([30, 16, 1])
    assert corner[:2].tolist() == pytest.approx([0.25 * 86 - 22, 0.75 * 48 - 14])


def test_rotation_turns_the_right_side_up() -> None:
    box = Box(0, 0, 20, 20)
    matrix = object_matrix(STILL._replace(rotation=90.0), box, (100, 100))
    assert (matrix @ np.array([20, 10, 1]))[:2].tolist() == pytest.approx([50, 40])


def test_scales_keep_objects_inside_the_image_and_above_ten_pixels() -> None:
    wide = object_matrix(STILL._replace(scale=2.5), Box(0, 0, 60, 20), SIZE)
    assert np.abs(np.linalg.det(wide)) == pytest.approx((86 / 60) ** 2)
    small = object_matrix(STILL._replace(scale=0.5), Box(0, 0, 16, 12), SIZE)
    assert np.abs(np.linalg.det(small)) == pytest.approx((10 / 12) ** 2)


def test_the_background_grows_about_its_middle() -> None:
    matrix = background_matrix(STILL._replace(background_scale=1.2), SIZE)
    assert (matrix @ np.array([43, 24, 1]))[:2].tolist() == pytest.approx([43, 24])


def test_warps_are_those_of_opencv() -> None:
    image, mask = scene()
    variant = STILL._replace(centre=(0.4, 0.6), rotation=20.0, scale=1.5, skew=(0.1, 0.1), mirror=True)
    matrix = object_matrix(variant, Box(30, 16, 22, 14), SIZE)
    ours = warp_bicubic(image.float(), [matrix])[0].permute(1, 2, 0).numpy()
    pixels = image.permute(1, 2, 0).numpy().astype(np.float32)
    theirs = cv2.warpAffine(pixels, matrix[:2], (86, 48), flags=cv2.INTER_CUBIC).clip(0, 255)
    assert np.abs(ours - theirs).mean() < 1  # OpenCV rounds positions to 1/32 pixel
    nearest = cv2.warpAffine(mask.numpy(), matrix[:2], (86, 48), flags=cv2.INTER_NEAREST)
    assert (warp_nearest(mask, [matrix])[0].numpy() != nearest).mean() < 0.005


def test_a_variant_that_moves_nothing_gives_the_frame_back_inside_and_outside_the_object() -> None:
    image, mask = scene()
    options = FirstFrameOptions(num_samples=2, hole="grey")
    centre = ((30 + 11) / 86, (16 + 7) / 48)
    plan = FirstFramePlan((STILL._replace(centre=centre),), seed=0)
    images, masks = augment_first_frame(image, mask, plan, options)
    assert torch.equal(masks, torch.stack([mask, mask]))
    assert torch.equal(images[0], image)
    grown = torch.from_numpy(cv2.dilate(mask.numpy(), np.ones((3, 3), np.uint8))) > 0
    difference = (images[1].int() - image.int()).abs()
    assert difference[:, ~grown].max() <= 1
    assert difference[:, mask > 0].max() <= 1


def test_samples_are_the_plans_candidates_that_show_the_object() -> None:
    image, mask = scene()
    outside = STILL._replace(centre=(9.0, 9.0))
    inside = STILL._replace(centre=(0.3, 0.3), rotation=30.0)
    options = FirstFrameOptions(num_samples=3, hole="smooth")
    plan = FirstFramePlan((outside, inside, outside, STILL, inside), seed=0)
    _, masks = augment_first_frame(image, mask, plan, options)
    expected = warp_nearest(mask, [object_matrix(each, Box(30, 16, 22, 14), SIZE) for each in (inside, STILL)])
    assert torch.equal(masks[1:], expected)


def test_an_object_that_no_candidate_shows_ends_in_the_frame_itself() -> None:
    image, mask = scene()
    options = FirstFrameOptions(num_samples=4, hole="grey")
    plan = FirstFramePlan((STILL, STILL._replace(centre=(9.0, 9.0))), seed=0)
    images, masks = augment_first_frame(image, mask, plan, options)
    assert torch.equal(masks[2:], mask.repeat(2, 1, 1))
    assert torch.equal(images[2:], image.repeat(2, 1, 1, 1))


@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_masks_give_samples(value: int) -> None:
    image, _ = scene()
    mask = torch.full(SIZE, value, dtype=torch.uint8)
    options = FirstFrameOptions(hole="smooth")
    images, masks = augment_first_frame(image, mask, plan_first_frame(stream(), SIZE, options), options)
    assert images.shape == (5, 3, *SIZE)
    assert torch.equal(masks[0], mask)
    assert (masks.flatten(1).any(1) == bool(value)).all()


@pytest.mark.parametrize("hole", ["telea", "smooth"])
def test_holes_are_filled_with_what_is_around_them(hole: str) -> None:
    image, mask = scene()
    filled = fill_hole(image, mask, hole)
    x = np.arange(86)[None].repeat(48, 0)
    truth = 120 + 60 * np.sin(x / 9)
    inside = mask.numpy() > 0
    assert np.abs(filled[0].numpy() - truth)[inside].mean() < 40  # the object itself is 130 away
    far = torch.from_numpy(cv2.dilate(mask.numpy(), np.ones((3, 3), np.uint8))) == 0
    assert torch.equal(filled[:, far], image.float()[:, far])


def test_the_mask_grows_as_opencvs_smallest_ellipse_makes_it() -> None:
    image, mask = scene()
    filled = fill_hole(image, mask, "grey")
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2, 2))
    assert element.tolist() == [[0, 1], [1, 1]]
    grown = cv2.dilate(mask.numpy(), element) > 0
    assert ((filled == 128).all(0).numpy() == grown).all()


def test_fifteen_samples_come_from_nineteen_candidates_as_in_training() -> None:
    image, mask = scene()
    options = FirstFrameOptions(num_samples=15, hole="smooth")
    images, masks = augment_first_frame(image, mask, plan_first_frame(stream(), SIZE, options), options)
    assert images.shape == (15, 3, *SIZE)
    assert len({tuple(each.flatten().tolist()) for each in masks}) > 10
