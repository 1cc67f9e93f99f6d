"""The losses against slow literal oracles and the numbers of the paper's specification."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainers.objectives.losses import bootstrapped_cross_entropy, channel_divergence, frame_weights, hardest_share


def slow_cross_entropy(logits: Tensor, labels: Tensor, num_objects: int, top_p: float) -> float:
    """One sample, pixel by pixel: softmax over the classes in use, the int(n * p) largest losses, their mean."""
    classes = 3 if num_objects >= 2 else 2
    losses = []
    for row in range(labels.shape[0]):
        for column in range(labels.shape[1]):
            label = int(labels[row, column])
            if label == 255:
                continue
            scores = [float(logits[c, row, column]) for c in range(classes)]
            top = max(scores)
            losses.append(top + math.log(sum(math.exp(score - top) for score in scores)) - scores[label])
    if not losses:
        return 0.0
    kept = sorted(losses, reverse=True)[: int(len(losses) * top_p)] if top_p < 1 else losses
    return sum(kept) / max(1, len(kept))


def make_case(seed: int, *, void: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, 3, 9, 11, generator=generator, dtype=torch.float64)
    num_objects = torch.tensor([2, 1, 0, 2])
    labels = torch.randint(0, 3, (4, 9, 11), generator=generator)
    labels = torch.minimum(labels, num_objects[:, None, None])
    if void:
        labels[torch.rand(4, 9, 11, generator=generator) < 0.3] = 255
        labels[3] = 255
    return logits, labels, num_objects


@pytest.mark.parametrize("top_p", [1.0, 0.6, 0.15])
@pytest.mark.parametrize("void", [False, True])
def test_cross_entropy_equals_the_pixel_by_pixel_definition(top_p: float, void: bool) -> None:
    logits, labels, num_objects = make_case(1, void=void)
    found = bootstrapped_cross_entropy(logits, labels, num_objects, top_p)
    expected = [slow_cross_entropy(logits[b], labels[b], int(num_objects[b]), top_p) for b in range(4)]
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-5)


def test_a_sample_without_a_second_object_gives_its_channel_no_gradient_and_void_pixels_none_at_all() -> None:
    logits, labels, num_objects = make_case(2, void=True)
    logits.requires_grad_()
    bootstrapped_cross_entropy(logits, labels, num_objects, 1.0).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1, 2].abs().max() == 0
    assert logits.grad[1, 1].abs().max() > 0
    assert (logits.grad.abs().amax(1)[labels == 255] == 0).all()
    assert (logits.grad.abs().amax(1)[labels != 255] > 0).all()


def test_the_hardest_22118_of_147456_pixels_count_at_the_published_size() -> None:
    logits = torch.zeros(1, 2, 384, 384)
    logits[0, 0] = torch.linspace(-6, 6, 384 * 384).view(384, 384)
    labels = torch.zeros(1, 384, 384, dtype=torch.uint8)
    losses = torch.nn.functional.softplus(-logits[0, 0].double()).flatten().sort(descending=True).values
    found = bootstrapped_cross_entropy(logits, labels, torch.tensor([1]), 0.15)
    assert float(found) == pytest.approx(float(losses[:22_118].mean()), rel=1e-5)


@pytest.mark.parametrize("top_p", [0.0, -0.1, 1.01])
def test_a_share_outside_its_range_is_refused(top_p: float) -> None:
    logits, labels, num_objects = make_case(3)
    with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\]"):
        bootstrapped_cross_entropy(logits, labels, num_objects, top_p)


def test_the_share_of_hard_pixels_follows_the_published_schedule() -> None:
    published = {"top_p": 0.15, "start_step": 20_000, "end_step": 70_000}
    steps = (0, 19_999, 20_000, 45_000, 70_000, 70_001, 149_999)
    expected = (1.0, 1.0, 1.0, 0.575, 0.15, 0.15, 0.15)
    assert [hardest_share(step, **published) for step in steps] == pytest.approx(expected, abs=1e-12)  # type: ignore[arg-type]


def test_frame_weights_halve_towards_the_first_frame_unless_uniform() -> None:
    assert frame_weights(5, "published") == (1 / 16, 1 / 8, 1 / 4, 1 / 2)
    assert frame_weights(3, "published") == (1 / 4, 1 / 2)
    assert frame_weights(5, "uniform") == (1.0, 1.0, 1.0, 1.0)


def test_divergence_equals_its_double_loop_for_any_temperature() -> None:
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 3, 6, 2, 2, generator=generator).double().unbind(0)
    for temperature in (1.0, 2.5):
        expected = []
        for row in range(3):
            total = 0.0
            for place in range(4):
                s = torch.softmax(student[row].flatten(1)[:, place] / temperature, 0)
                t = torch.softmax(teacher[row].flatten(1)[:, place] / temperature, 0)
                total += sum(float(b) * (math.log(b) - math.log(a)) for a, b in zip(s, t, strict=True))
            expected.append(temperature**2 * total / student[row].numel())
        found = channel_divergence(student, teacher, temperature, dim=1)
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-4)


def test_divergence_is_the_sum_over_channels_divided_by_294912_at_the_published_size() -> None:
    generator = torch.Generator().manual_seed(5)
    student, teacher = torch.randn(2, 1, 512, 24, 24, generator=generator).unbind(0)
    batchmean = torch.nn.functional.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")
    assert float(batchmean / channel_divergence(student, teacher, 1.0, dim=1)) == pytest.approx(294_912, rel=1e-4)


def test_divergence_has_a_gradient_on_both_sides_and_none_where_they_agree() -> None:
    student = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(6)).requires_grad_()
    teacher = torch.zeros(2, 8, 3, 3, requires_grad=True)
    channel_divergence(student, teacher, 1.0, dim=1).sum().backward()
    assert student.grad is not None
    assert teacher.grad is not None
    assert student.grad.abs().max() > 0
    assert teacher.grad.abs().max() > 0
    same = channel_divergence(student, student, 1.0, dim=1)
    assert same.abs().max() == 0
