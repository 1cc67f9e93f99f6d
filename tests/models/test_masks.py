"""Soft aggregation and padding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.masks import Padding, aggregate, aggregate_probabilities, pad_to_multiple, unpad

ABSENT = -16.118  # logit of a probability clamped to 1e-7, as measured on the authors' code


def test_aggregation_of_one_pixel_is_what_the_formula_gives_by_hand() -> None:
    first, second = 0.8, 0.25
    background = (1 - first) * (1 - second)
    odds = [p / (1 - p) for p in (background, first, second)]
    object_logits = torch.tensor([math.log(odds[1]), math.log(odds[2])]).view(1, 2, 1, 1)

    result = aggregate(object_logits)

    assert result.logits.flatten().tolist() == pytest.approx([math.log(value) for value in odds], abs=1e-5)
    assert result.probabilities.flatten().tolist() == pytest.approx(
        [odds[1] / sum(odds), odds[2] / sum(odds)], abs=1e-6
    )


def test_an_absent_object_gets_the_clamped_logit_and_leaves_the_others_as_if_alone() -> None:
    object_logits = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    result = aggregate(object_logits, valid=torch.tensor([[1, 0], [1, 1]]))

    alone = aggregate(object_logits[:1, :1])
    both = aggregate(object_logits[1:])
    assert result.logits[0, 2].flatten().tolist() == pytest.approx([ABSENT] * 16, abs=1e-3)
    torch.testing.assert_close(result.logits[:1, :2], alone.logits)
    torch.testing.assert_close(result.logits[1:], both.logits)


def test_probabilities_with_background_sum_to_one_and_the_first_is_the_background() -> None:
    object_logits = 5 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    result = aggregate(object_logits)
    everything = result.logits.softmax(1)
    torch.testing.assert_close(everything.sum(1), torch.ones(1, 8, 8))
    torch.testing.assert_close(everything[:, 1:], result.probabilities)
    nobody = aggregate(torch.full((1, 3, 8, 8), -20.0)).logits.softmax(1)
    assert (nobody[:, 0] > 0.999).all()


def test_first_masks_keep_their_labels_after_aggregation() -> None:
    labels = torch.randint(0, 3, (1, 6, 6), generator=torch.Generator().manual_seed(3))
    masks = torch.stack([labels == 1, labels == 2], 1).float()
    assert torch.equal(aggregate_probabilities(masks).argmax(1), labels)


def test_saturated_logits_give_finite_values_and_gradients() -> None:
    object_logits = torch.tensor([1e4, -1e4, 1e4, 0.5]).view(1, 2, 1, 2).requires_grad_()
    result = aggregate(object_logits)
    (result.logits.sum() + result.probabilities.sum()).backward()
    assert object_logits.grad is not None
    assert result.logits.isfinite().all()
    assert object_logits.grad.isfinite().all()


def test_aggregation_of_half_precision_logits_is_float32() -> None:
    object_logits = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(4)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = aggregate(object_logits)
    assert result.logits.dtype == torch.float32
    torch.testing.assert_close(result.logits, aggregate(object_logits.float()).logits)


def test_davis_frames_are_padded_by_five_pixels_left_and_right() -> None:
    padded, padding = pad_to_multiple(torch.ones(3, 480, 854))
    assert padded.shape == (3, 480, 864)
    assert padding == Padding(left=5, right=5, top=0, bottom=0)
    assert padded[..., :5].abs().sum() == padded[..., -5:].abs().sum() == 0


def test_the_smaller_half_of_an_odd_padding_is_left_and_top() -> None:
    _, padding = pad_to_multiple(torch.zeros(1, 1, 13, 29))
    assert padding == Padding(left=1, right=2, top=1, bottom=2)


def test_a_small_frame_is_padded_to_the_smallest_size_around_its_middle() -> None:
    frames = torch.ones(1, 3, 40)
    padded, padding = pad_to_multiple(frames, smallest=32)
    assert padded.shape == (1, 32, 48)
    assert padding == Padding(left=4, right=4, top=14, bottom=15)
    assert torch.equal(unpad(padded, padding), frames)


@given(st.integers(1, 70), st.integers(1, 70))
def test_unpad_undoes_padding_to_multiples(height: int, width: int) -> None:
    frames = torch.arange(2.0 * height * width).view(2, height, width)
    padded, padding = pad_to_multiple(frames)
    assert padded.shape[1] % 16 == padded.shape[2] % 16 == 0
    assert padded.shape[1] - height < 16
    assert padded.shape[2] - width < 16
    assert torch.equal(unpad(padded, padding), frames)
