"""Gradient correction against the published numbers, a loop over objects, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.masks import aggregate_probabilities
from models.object_rows import ObjectRows
from models.stm import Arch, Stm
from tests.models import stm_fill
from tests.trainers.stm_clips import SIZE, make_clips, small_stm
from trainers.segmenters.stm import make_reference
from trainers.segmenters.stm_correction import Correction, CorrectionOptions, Reference, cycle_erf

pytestmark = pytest.mark.usefixtures("one_thread")

NUMBERS: dict[Arch, tuple[list[float], list[float], list[float]]] = {
    "resnet18": ([2.429310, 2.423188], [-0.016277, -0.036416], [1.4546e-5, 9.6308e-6]),
    "resnet50": ([2.953652, 2.949588], [-0.017915, -0.038429], [8.3878e-6, 1.4339e-5]),
}


@pytest.mark.parametrize("arch", NUMBERS)
def test_two_iterations_have_the_published_losses_masks_and_gradients(arch: Arch) -> None:
    model = Stm(arch=arch, initialise=False)
    stm_fill.fill_weights(model)
    truth, first, current = stm_fill.labels(), stm_fill.frame()[None], stm_fill.query_frame()[None]
    rows = ObjectRows.of([2], 3, torch.device("cpu"))
    with torch.no_grad():
        memory = model.memorise(
            model.look(first), torch.stack([(truth == slot).float() for slot in (1, 2)]), rows.clips
        )
        logits = rows.aggregate(
            model.segment(model.encode_query(current), memory, rows.clips, (stm_fill.HEIGHT, stm_fill.WIDTH))
        )
        reference = Reference(model.encode_query(first), truth[None])
        correction = Correction(model, reference, model.look(current), CorrectionOptions(2), num_slots=3)
    steps = list(correction.iterations(logits.softmax(1)[0, 1:3]))
    losses, lowest, gradient = NUMBERS[arch]
    assert [step.loss.item() for step in steps] == pytest.approx(losses, abs=2e-6)
    assert [step.masks.min().item() for step in steps] == pytest.approx(lowest, abs=2e-6)
    assert steps[0].gradient.abs().mean((1, 2)).tolist() == pytest.approx(gradient, rel=2e-4)


def small_correction(options: CorrectionOptions | None = None) -> tuple[Correction, Tensor]:
    """Three objects of a small clip, and masks to be corrected."""
    model, clips = small_stm(), make_clips()
    first = clips.first_masks[:1, :3]
    shown = torch.cat([1 - first.amax(1, keepdim=True), first], 1)
    with torch.no_grad():
        reference = make_reference(model, clips.images[:1, 0], shown)
        stem = model.look(clips.images[:1, 2])
    masks = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(4))
    return Correction(model, reference, stem, options or CorrectionOptions(3, rate=2000.0)), masks


def plain_loss(correction: Correction, masks: Tensor) -> Tensor:
    """The loss of the way back, object by object, from definitions."""
    model, clips = correction.model, torch.zeros(1, dtype=torch.int64)
    found = []
    for mask in masks:
        memory = model.memorise(correction.stem, mask[None], clips)
        found.append(model.segment(correction.reference.query, memory, clips, SIZE).sigmoid())
    probabilities = aggregate_probabilities(torch.cat(found)[None]).softmax(1)[0]
    labels = correction.reference.labels[0].long()
    pixels = -probabilities.gather(0, labels[None]).log().flatten()
    loss = pixels.sort(descending=True).values[: math.floor(0.4 * pixels.numel())].mean()
    overlaps = []
    for slot in range(1, len(probabilities)):
        truth = (labels == slot).float()
        overlaps.append(
            torch.minimum(probabilities[slot], truth).sum() / torch.maximum(probabilities[slot], truth).sum()
        )
    return loss + 1 - torch.stack(overlaps).mean()


def test_corrections_of_all_objects_equal_a_loop_over_iterations_and_objects() -> None:
    correction, masks = small_correction()
    expected = masks
    for step in correction.iterations(masks):
        leaf = expected.clone().requires_grad_()
        loss = plain_loss(correction, leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        expected = expected - 2000.0 * gradient
        assert step.loss.item() == pytest.approx(loss.item(), abs=1e-6)
        torch.testing.assert_close(step.masks, expected, rtol=1e-4, atol=1e-5)
    assert (expected - masks).abs().max() > 0.01


def test_the_gradient_is_that_of_finite_differences() -> None:
    correction, masks = small_correction(CorrectionOptions(1))
    (step,) = correction.iterations(masks)
    model = correction.model.double()
    precise = Correction(
        model,
        Reference(
            type(correction.reference.query)(*(p.double() for p in correction.reference.query)),
            correction.reference.labels,
        ),
        correction.stem.double(),
        correction.options,
    )
    largest = step.gradient.abs().flatten().topk(3).indices.tolist()
    for place in largest:
        shift = torch.zeros(masks.numel(), dtype=torch.float64)
        shift[place] = 1e-4
        with torch.no_grad():
            above, below = (plain_loss(precise, masks.double() + sign * shift.view(masks.shape)) for sign in (1, -1))
        measured = (above - below).item() / 2e-4
        assert step.gradient.flatten()[place].item() == pytest.approx(measured, rel=0.02)


def test_objects_in_pieces_give_the_same_correction() -> None:
    together, masks = small_correction(CorrectionOptions(2, rate=500.0))
    pieces, _ = small_correction(CorrectionOptions(2, rate=500.0, objects_at_once=2))
    torch.testing.assert_close(pieces.apply(masks), together.apply(masks))


def test_small_steps_lower_the_loss_and_weights_get_no_gradient() -> None:
    correction, masks = small_correction(CorrectionOptions(8, rate=2000.0))
    with torch.no_grad():
        losses = [step.loss.item() for step in correction.iterations(masks)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1e-3
    assert all(parameter.grad is None for parameter in correction.model.parameters())


def test_clamping_keeps_probabilities_in_their_range_where_the_published_way_leaves_it() -> None:
    free, masks = small_correction(CorrectionOptions(2, rate=1e5))
    clamped, _ = small_correction(CorrectionOptions(2, rate=1e5, clamp=True))
    assert free.apply(masks).min() < 0
    found = clamped.apply(masks)
    assert found.min() == 0
    assert found.max() <= 1


def test_the_cycle_erf_is_what_corrections_make_of_empty_masks() -> None:
    correction, masks = small_correction()
    expected = correction.apply(torch.zeros_like(masks)).clamp(min=0).max(0).values
    found = cycle_erf(correction, 3)
    assert torch.equal(found, expected)
    assert found.max() > 0


@pytest.mark.parametrize("changes", [{"iterations": 0}, {"rate": -1.0}, {"objects_at_once": 0}])
def test_options_outside_their_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        CorrectionOptions(**changes)  # type: ignore[arg-type]
