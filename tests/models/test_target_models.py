"""Target models: acceptance vectors, and an independent oracle that works at full size with a dense Jacobian."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.target_fitting import Regularisation, Samples, Targets, Weights, condense, fit, pixel_weights, scores_of
from models.target_memory import SlotWeights
from models.target_models import TargetModels, TargetOptions, fit_first, project, random_weights

ONCE = 0.9**750

VECTOR_OPTIONS = {
    "num_channels": 2,
    "regularisation": Regularisation(1e-4, 1e-2),
    "init_iterations": (3, 4),
    "update_iterations": (3,),
    "capacity": 6,
    "refit_every": 2,
}
P_AFTER = (0.16570, -0.02849, 0.22514, 0.03258, 0.14294, -0.27243, -0.02057, -0.13243)
F_AFTER = (0.13424, 0.22231, 0.23967, 0.23389, 0.20121, 0.13885, 0.14032, 0.11291, 0.12948)
F_AFTER += (0.26517, 0.06149, -0.01305, 0.01958, 0.06585, 0.10955, 0.15183, 0.07660, -0.18074)
P_AFTER_75 = (0.16569, -0.02851, 0.22514, 0.03261, 0.14294, -0.27244, -0.02058, -0.13242)
F_AFTER_75 = (0.13429, 0.22233, 0.23967, 0.23398)
F_AT_END = (0.05811, 0.21276, 0.24755, 0.28749, 0.22776, 0.09827, 0.15099, 0.12231, 0.16421)
F_AT_END += (0.49531, 0.10122, -0.05557, -0.12932, 0.03083, 0.24265, 0.10738, 0.07143, -0.27117)
SCORES = (-0.08469, -0.09348, -0.03905, -0.00728, 0.08751, 0.08223)
SLOT_WEIGHTS = (
    (0.45833, 0.22917, 0.22917, 0.08333, 0, 0),
    (0.41985, 0.20992, 0.20992, 0.07634, 0.08397, 0),
    (0.38435, 0.19217, 0.19217, 0.06988, 0.07687, 0.08456),
    (0.37566, 0.18783, 0.18783, 0.09091, 0.07513, 0.08264),
    (0.36654, 0.18327, 0.18327, 0.08870, 0.09757, 0.08064),
    (0.35701, 0.17851, 0.17851, 0.08640, 0.09504, 0.10454),
)


def features_at(*numbers: int) -> Tensor:
    """(1, K, 4, 6, 8) of the acceptance vectors."""
    number = torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1, 1)
    channels, rows, columns = (torch.arange(count, dtype=torch.float64) for count in (4, 6, 8))
    return (0.7 * number + 1.3 * channels[:, None, None] + 0.5 * rows[:, None] + 0.9 * columns).sin()[None]


def vector_start() -> Weights:
    outs, ins, taps = (torch.arange(count, dtype=torch.float64) for count in (2, 4, 3))
    project = 0.3 * torch.cos(1 + outs[:, None] + 2 * ins)
    taps_of = 0.2 * torch.sin(1 + outs[:, None, None] + 0.5 * taps[:, None] + 0.3 * taps)
    return Weights(project[None], taps_of.view(1, 2, 9))


def vector_targets() -> Targets:
    labels = torch.zeros(3, 24, 32, dtype=torch.float64)
    for k in range(3):
        labels[k, 6 + 2 * k : 12 + 2 * k, 8 + 3 * k : 16 + 3 * k] = 1
    squared = pixel_weights(labels)
    assert squared.unique().tolist() == pytest.approx([0.96, 1.6])
    return Targets(*(tensor[None] for tensor in condense(labels, squared, (6, 8))))


def test_the_first_fit_is_that_of_the_acceptance_vectors() -> None:
    options = TargetOptions(**VECTOR_OPTIONS)
    weights = fit_first(features_at(0, 1, 2), vector_targets(), vector_start(), options).weights
    assert weights.project is not None
    assert weights.project.flatten().tolist() == pytest.approx(P_AFTER, abs=1e-5)
    assert weights.filter.flatten().tolist() == pytest.approx(F_AFTER, abs=1e-5)


def test_a_smaller_forgetting_rate_carries_over_as_in_the_acceptance_vectors() -> None:
    options = TargetOptions(**VECTOR_OPTIONS, forgetting_rate=75)
    weights = fit_first(features_at(0, 1, 2), vector_targets(), vector_start(), options).weights
    assert weights.project is not None
    assert weights.project.flatten().tolist() == pytest.approx(P_AFTER_75, abs=1e-5)
    assert weights.filter.flatten().tolist()[:4] == pytest.approx(F_AFTER_75, abs=1e-5)


def test_six_frames_go_as_in_the_acceptance_vectors() -> None:
    options = TargetOptions(**VECTOR_OPTIONS)
    models = TargetModels([fit_first(features_at(0, 1, 2), vector_targets(), vector_start(), options)], options)
    for time, (score, slot_weights) in enumerate(zip(SCORES, SLOT_WEIGHTS, strict=True), start=1):
        assert models.score([features_at(3 + time)[0]])[0][0, 0, 2, 3].item() == pytest.approx(score, abs=1e-5)
        mask = torch.zeros(1, 24, 32, dtype=torch.float64)
        mask[0, 6 + time : 12 + time, 8 + time : 16 + time] = 0.9
        models.update(mask)
        assert models.sample_weights[0].tolist() == pytest.approx(slot_weights, abs=1e-5)
    assert models.weights[0].filter.flatten().tolist() == pytest.approx(F_AT_END, abs=1e-4)


def test_a_full_memory_gives_way_in_the_published_order() -> None:
    slots = SlotWeights(1, 5, 80)
    taken = [slots.insert(torch.tensor([True])).item() for _ in range(96)]
    assert taken[:75] == list(range(5, 80))
    assert taken[75:] == [*range(5, 12), *range(1, 5), *range(12, 19), 0, 19, 20]


@pytest.mark.parametrize(
    ("growth", "expected"), [("mtmfi", (0.05370, 0.02685, 0.08958)), ("frtm", (0.04864, 0.02432, 0.09723))]
)
def test_after_twenty_frames_samples_weigh_what_the_rule_says(growth: str, expected: tuple[float, ...]) -> None:
    slots = SlotWeights(1, 5, 80, growth)
    for _ in range(20):
        newest = slots.insert(torch.tensor([True])).item()
    weights = slots.weights[0]
    assert [weights[0].item(), weights[1].item(), weights[int(newest)].item()] == pytest.approx(expected, abs=1e-5)
    assert weights.sum().item() == pytest.approx(1)


def test_objects_that_are_not_active_keep_their_slots() -> None:
    slots = SlotWeights(2, 2, 4)
    slots.insert(torch.tensor([True, True]))
    before = slots.weights[1].clone()
    slots.insert(torch.tensor([True, False]))
    assert torch.equal(slots.weights[1], before)
    assert (slots.weights[0] > 0).all()


def random_problem(generator: torch.Generator, num_objects: int = 2) -> tuple[Weights, Samples, Tensor, Tensor]:
    """Start, samples of 3 frames, and the labels and squared pixel weights (O, 3, 21, 34) they were made from."""
    features = torch.randn(num_objects, 3, 5, 4, 6, generator=generator, dtype=torch.float64)
    labels = torch.rand(num_objects, 3, 21, 34, generator=generator, dtype=torch.float64)
    squared = 0.5 + torch.rand(labels.shape, generator=generator, dtype=torch.float64)
    flat = condense(labels.flatten(0, 1), squared.flatten(0, 1), (4, 6))
    targets = Targets(*(tensor.unflatten(0, (num_objects, 3)) for tensor in flat))
    weights = torch.rand(num_objects, 3, generator=generator, dtype=torch.float64)
    start = random_weights(num_objects, 5, 3, generator)
    assert start.project is not None
    samples = Samples(features, targets, weights)
    return Weights(start.project.double(), start.filter.double()), samples, labels, squared


def residual_at_full_size(
    flat: Tensor, features: Tensor, labels: Tensor, squared: Tensor, *, weights: Tensor, factors: Regularisation
) -> Tensor:
    """The published residual of one object: everything at the labels' size. flat: project (3, 5) and filter (3, 9)."""
    project, taps = flat[:15].view(3, 5, 1, 1), flat[15:].view(1, 3, 3, 3)
    scores = F.conv2d(F.conv2d(features, project), taps, padding=1)
    resized = F.interpolate(scores, labels.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    data = (squared * weights[:, None, None]).sqrt() * (resized - labels)
    return torch.cat([data.flatten(), factors.project * flat[:15], factors.filter * flat[15:]])


def test_enough_steps_reach_the_dense_solution_of_each_object() -> None:
    start, samples, labels, squared = random_problem(torch.Generator().manual_seed(1))
    factors = Regularisation(0.3, 0.5)
    assert start.project is not None
    found, _ = fit(start, samples, factors, (80,), forgetting=ONCE)
    assert found.project is not None
    for number in range(2):
        flat = torch.cat([start.project[number].flatten(), start.filter[number].flatten()])
        residual_at = partial(
            residual_at_full_size,
            features=samples.features[number],
            labels=labels[number],
            squared=squared[number],
            weights=samples.weights[number],
            factors=factors,
        )
        residual, jacobian = residual_at(flat), torch.func.jacrev(residual_at)(flat)
        expected = flat - torch.linalg.solve(jacobian.T @ jacobian, jacobian.T @ residual)
        result = torch.cat([found.project[number].flatten(), found.filter[number].flatten()])
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-8)


def test_condensed_targets_hold_the_loss_at_full_size() -> None:
    generator = torch.Generator().manual_seed(2)
    labels, squared, scores = (
        torch.rand(size, generator=generator, dtype=torch.float64) for size in ((1, 37, 53), (1, 37, 53), (1, 5, 7))
    )
    targets = condense(labels, squared, (5, 7))
    resized = F.interpolate(scores[None], (37, 53), mode="bilinear", align_corners=False)[0]
    loss = (squared * (resized - labels) ** 2).sum()
    around = F.unfold(scores[:, None], 3, padding=1).view(1, 9, 5, 7)
    quadratic = (scores * (around * targets.stencil).sum(1)).sum() - 2 * (scores * targets.pull).sum()
    torch.testing.assert_close(quadratic + (squared * labels**2).sum(), loss)


def test_objects_together_are_fitted_as_they_are_alone() -> None:
    start, samples, *_ = random_problem(torch.Generator().manual_seed(3))
    assert start.project is not None
    together, _ = fit(start, samples, Regularisation(), (4, 5), forgetting=0.9**75)
    assert together.project is not None
    for number in range(2):
        one = slice(number, number + 1)
        targets = Targets(*(tensor[one] for tensor in samples.targets))
        mine = Samples(samples.features[one], targets, samples.weights[one])
        alone, _ = fit(
            Weights(start.project[one], start.filter[one]), mine, Regularisation(), (4, 5), forgetting=0.9**75
        )
        assert alone.project is not None
        torch.testing.assert_close(together.project[one], alone.project, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(together.filter[one], alone.filter, rtol=1e-9, atol=1e-12)


def test_scores_are_those_of_the_two_convolutions() -> None:
    start, samples, *_ = random_problem(torch.Generator().manual_seed(4))
    assert start.project is not None
    expected = F.conv2d(
        F.conv2d(samples.features[1], start.project[1][:, :, None, None]), start.filter[1].view(1, 3, 3, 3), padding=1
    )
    torch.testing.assert_close(scores_of(samples.features, start)[1], expected[:, 0])
    projected = project(samples.features, start)
    torch.testing.assert_close(scores_of(projected, Weights(None, start.filter))[1], expected[:, 0])


def test_a_zero_residual_leaves_the_weights_and_makes_no_nan() -> None:
    _, samples, *_ = random_problem(torch.Generator().manual_seed(5))
    nothing = Targets(torch.zeros_like(samples.targets.stencil), torch.zeros_like(samples.targets.pull))
    start = Weights(torch.zeros(2, 3, 5, dtype=torch.float64), torch.zeros(2, 3, 9, dtype=torch.float64))
    found, _ = fit(start, samples._replace(targets=nothing), Regularisation(), (3, 3), forgetting=ONCE)
    assert found.project is not None
    assert not found.project.any()
    assert not found.filter.any()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_and_full_masks_make_no_nan(value: float) -> None:
    masks = torch.full((1, 24, 32), value)
    squared = pixel_weights(masks)
    assert torch.equal(squared, torch.ones_like(masks))
    targets = Targets(*(tensor[None] for tensor in condense(masks, squared, (6, 8))))
    start = random_weights(1, 4, 2, torch.Generator().manual_seed(6))
    options = TargetOptions(num_channels=2)
    level = fit_first(features_at(0)[:, :1].float(), targets, start, options)
    assert level.weights.project is not None
    assert level.weights.project.isfinite().all()
    assert level.weights.filter.isfinite().all()


@pytest.mark.parametrize(("share", "inside", "outside"), [(0.01, 10, 0.90909), (0.0625, 1.6, 0.96), (0.1, 1, 1)])
def test_small_objects_weigh_a_tenth_of_the_loss(share: float, inside: float, outside: float) -> None:
    masks = torch.zeros(1, 40, 40, dtype=torch.float64)
    masks.view(-1)[: int(share * 1600)] = 1
    squared = pixel_weights(masks).view(-1)
    assert [squared[0].item(), squared[-1].item()] == pytest.approx([inside, outside], abs=1e-5)


def test_a_lost_object_keeps_its_memory_and_filter_while_the_other_is_refitted() -> None:
    options = TargetOptions(**{**VECTOR_OPTIONS, "refit_every": 1})
    targets, start = vector_targets(), vector_start()
    assert start.project is not None
    two = Targets(*(tensor.repeat(2, *(1,) * (tensor.dim() - 1)) for tensor in targets))
    both = Weights(start.project.repeat(2, 1, 1), start.filter.repeat(2, 1, 1))
    models = TargetModels([fit_first(features_at(0, 1, 2).repeat(2, 1, 1, 1, 1), two, both, options)], options)
    before = models.weights[0].filter.clone()
    slots = models.sample_weights[0].clone()
    models.score([features_at(4)[0]])
    masks = torch.zeros(2, 24, 32, dtype=torch.float64)
    masks[0, 7:13, 9:17] = 0.9
    masks[1, 7:10, 9:12] = 0.9  # nine pixels
    models.update(masks)
    after = models.weights[0].filter
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])
    assert torch.equal(models.sample_weights[1], slots)


def test_memory_takes_room_as_it_needs_it() -> None:
    options = TargetOptions(**{**VECTOR_OPTIONS, "capacity": 80})
    models = TargetModels([fit_first(features_at(0, 1, 2), vector_targets(), vector_start(), options)], options)
    empty = models.num_bytes
    per_slot = (2 + 9 + 1) * 6 * 8 * 8
    assert empty == 3 * per_slot
    for time in range(100):
        models.score([features_at(time)[0]])
        models.update(torch.ones(1, 24, 32, dtype=torch.float64))
    assert models.num_bytes == 80 * per_slot


def test_fast_has_fewer_iterations() -> None:
    fast = TargetOptions().faster()
    assert (fast.init_iterations, fast.update_iterations) == ((5, 10, 10, 10), (5,))


def test_regularisation_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="preconditioner"):
        TargetOptions(regularisation=Regularisation(0, 1))
