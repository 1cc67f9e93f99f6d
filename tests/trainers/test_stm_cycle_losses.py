"""STM-Cycle's losses against its published numbers and plain loops over pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainers.objectives.stm_cycle_losses import hardest_cross_entropy, present_labels, soft_iou_loss


def published_case() -> tuple[Tensor, Tensor]:
    """Logits (1, 4, 5, 5) and labels (1, 5, 5) of the published numbers."""
    slot, y, x = torch.meshgrid(torch.arange(4), torch.arange(5), torch.arange(5), indexing="ij")
    logits = torch.sin(1.3 * slot + 0.7 * y + 0.4 * x)
    return logits[None], ((y[0] // 2 + x[0] // 2) % 3).to(torch.uint8)[None]


def random_case() -> tuple[Tensor, Tensor, Tensor]:
    """Three samples with void pixels; the last one void everywhere."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 4, 6, 7, generator=generator)
    labels = torch.randint(0, 5, (3, 6, 7), generator=generator).to(torch.uint8)
    labels[labels == 4] = 255
    labels[2] = 255
    judged = torch.tensor([[True, True, False, True], [False, True, True, False], [True, True, True, True]])
    return logits, labels, judged


def plain_cross_entropy(logits: Tensor, labels: Tensor, judged: Tensor, *, count_void: bool) -> float:
    """One sample, pixel by pixel."""
    losses = []
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = int(labels[y, x])
            if label == 255:
                if count_void:
                    losses.append(0.0)
                continue
            exponentials = [math.exp(value) for value in logits[:, y, x].tolist()]
            loss = -math.log(exponentials[label] / sum(exponentials))
            losses.append(loss if judged[label] else 0.0)
    kept = math.floor(0.4 * len(losses))
    return sum(sorted(losses, reverse=True)[:kept]) / max(1, kept)


def plain_iou_loss(logits: Tensor, labels: Tensor, judged: Tensor, *, count_void: bool) -> float:
    """One sample, object by object and pixel by pixel."""
    found, terms = logits.softmax(0), []
    for slot in range(1, len(judged)):
        smaller = larger = 0.0
        for y in range(labels.shape[0]):
            for x in range(labels.shape[1]):
                if int(labels[y, x]) == 255 and not count_void:
                    continue
                guess, truth = float(found[slot, y, x]), float(labels[y, x] == slot)
                smaller, larger = smaller + min(guess, truth), larger + max(guess, truth)
        if judged[slot]:
            terms.append(1 - smaller / larger if larger else 1.0)
    return sum(terms) / max(1, len(terms))


@pytest.mark.parametrize(
    ("judged", "cross_entropy", "iou"),
    [([True, True, True, False], 2.226156, 0.865332), ([True, True, False, False], 1.844919, 0.819127)],
)
def test_the_losses_have_the_published_values(judged: list[bool], cross_entropy: float, iou: float) -> None:
    logits, labels = published_case()
    which = torch.tensor([judged])
    assert hardest_cross_entropy(logits.softmax(1), labels, which).item() == pytest.approx(cross_entropy, abs=2e-6)
    assert soft_iou_loss(logits.softmax(1), labels, which).item() == pytest.approx(iou, abs=2e-6)


@pytest.mark.parametrize("count_void", [True, False])
def test_the_losses_of_a_batch_equal_loops_over_its_pixels(count_void: bool) -> None:
    logits, labels, judged = random_case()
    entropy = hardest_cross_entropy(logits.softmax(1), labels, judged, count_void=count_void)
    iou = soft_iou_loss(logits.softmax(1), labels, judged, count_void=count_void)
    for sample in range(3):
        one = (logits[sample], labels[sample], judged[sample])
        assert entropy[sample].item() == pytest.approx(plain_cross_entropy(*one, count_void=count_void), abs=1e-6)
        assert iou[sample].item() == pytest.approx(plain_iou_loss(*one, count_void=count_void), abs=1e-6)


def test_a_sample_without_judged_objects_has_no_iou_loss_where_the_published_one_is_nan() -> None:
    logits, labels = published_case()
    logits.requires_grad_()
    loss = soft_iou_loss(logits.softmax(1), labels, torch.tensor([[True, False, False, False]]))
    loss.sum().backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0.0


def test_the_gradient_of_the_iou_loss_is_that_of_its_definition() -> None:
    logits, labels, judged = random_case()
    logits, labels, judged = logits[:2], labels[:2], judged[:2]
    ours, defined = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    soft_iou_loss(ours.softmax(1), labels, judged).sum().backward()
    found = defined.softmax(1)[:, 1:]
    truth = (labels[:, None] == torch.arange(1, 4)[:, None, None]).float()
    smaller, larger = (reduce(found, truth).sum((2, 3)) for reduce in (torch.minimum, torch.maximum))
    weights = judged[:, 1:].float()
    ((1 - smaller / larger) * weights / weights.sum(1, keepdim=True)).sum().backward()
    torch.testing.assert_close(ours.grad, defined.grad)


def test_labels_are_present_if_a_pixel_has_them_and_the_clip_has_that_many_objects() -> None:
    labels = torch.zeros(2, 4, 4, dtype=torch.uint8)
    labels[0, 0, 0], labels[0, 1, 1], labels[1] = 1, 3, 2
    found = present_labels(labels, torch.tensor([2, 3]), 3)
    assert found.tolist() == [[True, True, False, False], [False, False, True, False]]
