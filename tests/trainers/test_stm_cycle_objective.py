"""STM-Cycle's training step: the published numbers, equality with a loop over clips, and what every switch changes."""

from __future__ import annotations

import pytest
import torch

from models.stm import Stm
from tests.models import stm_fill
from tests.trainers.stm_clips import Clips, first_masks_of, make_clips, small_stm
from trainers.benchmarks.published_stm import PublishedStmStep
from trainers.objectives.stm_cycle import StmCycleObjective, StmCycleOptions, WayBack, open_gates, unroll
from trainers.objectives.stm_cycle_losses import hardest_cross_entropy, present_labels, soft_iou_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def published_clip(*, gone: int | None) -> Clips:
    """The clip of the published numbers; object `gone` has left the picture in frame 2."""
    images = torch.stack([stm_fill.frame(shift=0.1 * time) for time in range(3)])[None]
    here = tuple(slot for slot in (1, 2) if slot != gone)
    masks = [stm_fill.labels(), stm_fill.labels(right=5), stm_fill.labels(right=10, objects=here)]
    batch = torch.stack(masks)[None]
    return Clips(images, batch, torch.tensor([2]), first_masks_of(batch, 3))


@pytest.fixture(scope="module")
def filled() -> Stm:
    model = Stm(arch="resnet18", initialise=False)
    stm_fill.fill_weights(model)
    return model


@pytest.mark.parametrize(
    ("gone", "forward", "cycle", "total"),
    [
        (None, (2.480824, 2.502860), (2.496400, 2.494524), 4.987304),
        (2, (2.480824, 2.524754), (2.496400, 0.0), 3.750989),
        (1, (2.480824, 2.217753), (2.496400, 2.283749), 4.739363),
    ],
)
def test_the_loss_of_a_clip_has_the_published_value(
    gone: int | None, forward: tuple[float, float], cycle: tuple[float, float], total: float, filled: Stm
) -> None:
    with torch.no_grad():
        loss, metrics = StmCycleObjective(filled)(*published_clip(gone=gone))
    assert loss.item() == pytest.approx(total, abs=3e-6)
    assert metrics["forward"].item() == pytest.approx(sum(forward) / 2, abs=3e-6)
    assert metrics["cycle"].item() == pytest.approx(sum(cycle) / 2, abs=3e-6)
    assert metrics["gates_open"].item() == (0.5 if gone == 2 else 1.0)


def without(clips: Clips, gone: list[tuple[int, int, int]]) -> Clips:
    """The clips without some objects: (clip, frame, slot) of each."""
    masks = clips.masks.clone()
    for clip, time, slot in gone:
        masks[clip, time][masks[clip, time] == slot] = 0
    return clips._replace(masks=masks)


@pytest.mark.parametrize(
    "clips",
    [
        pytest.param(make_clips(num_frames=2), id="two frames"),
        pytest.param(make_clips(num_frames=4), id="four frames"),
        pytest.param(make_clips().clip(1), id="slots that no clip uses"),
        pytest.param(without(make_clips(), [(0, 1, 3), (1, 2, 1)]), id="some ways back are closed"),
        pytest.param(without(make_clips(num_frames=2), [(0, 1, 3), (1, 1, 1)]), id="all ways back are closed"),
    ],
)
def test_a_batch_equals_the_published_loop_over_clips_in_loss_and_every_gradient(clips: Clips) -> None:
    model = small_stm()
    results = []
    for step in (StmCycleObjective(model), PublishedStmStep(model)):
        model.zero_grad()
        loss, _ = step(*clips)
        loss.backward()
        results.append((loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}))
    (ours, our_gradients), (published, published_gradients) = results
    assert ours == pytest.approx(published, rel=1e-6)
    for name, gradient in published_gradients.items():
        found = our_gradients[name]
        assert found is not None
        assert gradient is not None
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-6 + 1e-4 * float(gradient.abs().max()), msg=name)


def test_gradients_reach_the_masks_that_the_first_frame_is_remembered_with() -> None:
    clips = make_clips()
    first = clips.first_masks.clone().requires_grad_()
    loss, _ = StmCycleObjective(small_stm())(clips.images, clips.masks, clips.num_objects, first)
    loss.backward()
    assert first.grad is not None
    assert first.grad[0, :3].abs().sum((1, 2)).min() > 0
    assert first.grad[0, 3].abs().max() == 0  # no object has this slot


def test_which_object_is_which_comes_from_the_masks_of_the_first_frame_alone() -> None:
    model, clips = small_stm(), make_clips().clip(0)
    exchanged = clips.first_masks[:, [1, 0, 2, 3]]
    with torch.no_grad():
        seen, other, alike = (
            unroll(model, clips.images, first, [3], [WayBack(2, 0)])
            for first in (clips.first_masks, exchanged, torch.zeros_like(exchanged))
        )
    torch.testing.assert_close(other.forward[:, :, [0, 2, 1, 3]], seen.forward)
    assert other.back is not None
    assert seen.back is not None
    torch.testing.assert_close(other.back[:, [0, 2, 1, 3]], seen.back)
    assert (seen.forward[:, :, 1] - seen.forward[:, :, 2]).abs().max() > 1e-4
    torch.testing.assert_close(alike.forward[:, :, 1], alike.forward[:, :, 2])


def test_the_step_takes_bfloat16() -> None:
    model, clips = small_stm(), make_clips()
    with torch.no_grad():
        exact, _ = StmCycleObjective(model)(*clips)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = StmCycleObjective(model)(*clips)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_without_the_cycle_only_the_way_forward_counts() -> None:
    model, clips = small_stm(), make_clips()
    with torch.no_grad():
        both, parts = StmCycleObjective(model)(*clips)
        forward, _ = StmCycleObjective(model, StmCycleOptions(cycle_weight=0))(*clips)
        weighted, _ = StmCycleObjective(model, StmCycleOptions(cycle_weight=0.5))(*clips)
    assert forward.item() == pytest.approx(parts["forward"].item(), rel=1e-6)
    assert both.item() == pytest.approx((parts["forward"] + parts["cycle"]).item(), rel=1e-6)
    assert weighted.item() == pytest.approx((parts["forward"] + 0.5 * parts["cycle"]).item(), rel=1e-6)


def test_without_ways_back_no_first_frame_is_encoded_as_a_query_and_no_last_one_to_be_remembered() -> None:
    model, clips, seen = small_stm(), make_clips(), []
    for part in (model.Encoder_Q.conv1, model.Encoder_M.conv1):
        part.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        for weight in (0.0, 1.0):
            StmCycleObjective(model, StmCycleOptions(cycle_weight=weight))(*clips)
    forward = [torch.cat(part.unbind(1)) for part in (clips.images[:, 1:], clips.images[:, :-1])]
    both = torch.cat(clips.images.unbind(1))
    for found, expected in zip(seen, [*forward, both, both], strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("gate", "expected"),
    [("highest", [[True, True], [False, True]]), ("all", [[True, False], [False, True]])],
)
def test_the_gate_looks_at_the_highest_object_or_at_all(gate: str, expected: list[list[float]]) -> None:
    present = torch.tensor(
        [
            [[True, True, True], [True, True, True], [True, False, True]],
            [[True, True, True], [True, True, False], [True, True, True]],
        ]
    )
    options = StmCycleOptions(cycle_gate=gate)  # type: ignore[arg-type]
    assert open_gates(present, torch.tensor([2, 2]), options.cycle_gate).tolist() == expected
    one_object = present.clone()
    one_object[:, :, 2] = False
    assert open_gates(one_object, torch.tensor([1, 1]), options.cycle_gate).tolist() == [[True, False], [True, True]]


def test_each_switch_of_the_losses_reaches_them() -> None:
    model, clips = small_stm(), make_clips()
    with torch.no_grad():
        seen = unroll(model, clips.images, clips.first_masks, [3, 1], [])
        options = StmCycleOptions(
            cycle_weight=0, cross_entropy_weight=0.25, iou_weight=3, hard_share=0.1, count_void=False
        )
        loss, _ = StmCycleObjective(model, options)(*clips)
    present = present_labels(clips.masks, clips.num_objects[:, None], 3)
    terms = [
        0.25 * hardest_cross_entropy(found, clips.masks[:, time], present[:, 0], share=0.1, count_void=False)
        + 3 * soft_iou_loss(found, clips.masks[:, time], present[:, 0], count_void=False)
        for time, found in enumerate(seen.forward, start=1)
    ]
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-6)


def test_a_clip_without_an_object_adds_nothing_and_is_counted() -> None:
    model, clips = small_stm(), make_clips()
    empty = clips.masks.clone()
    empty[1][empty[1] == 1] = 0
    batch = Clips(clips.images, empty, torch.tensor([3, 0]), first_masks_of(empty, 4))
    with torch.no_grad():
        alone, _ = StmCycleObjective(model)(*clips.clip(0))
        both, metrics = StmCycleObjective(model)(*batch)
    assert both.item() == pytest.approx(alone.item() / 2, rel=1e-5)
    assert metrics["clips_without_object"].item() == 0.5
    loss, _ = StmCycleObjective(model)(*batch.clip(1))
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_report_holds_the_iou_of_the_predicted_masks() -> None:
    means = {"loss": 2.0, "intersection_1": 30.0, "union_1": 40.0, "intersection_2": 0.0, "union_2": 0.0}
    assert StmCycleObjective.summarise(means) == {"loss": 2.0, "iou_1": 0.75}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hard_share": 0.0}, "hard_share must lie"),
        ({"cycle_weight": -1.0}, "no weight may be negative"),
        ({"iou_weight": float("inf")}, "no weight may be negative or infinite"),
    ],
)
def test_options_outside_their_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StmCycleOptions(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("clip", "message"), [((1, (64, 64)), "2 frames or more"), ((3, (64, 8)), "16 pixels")])
def test_clips_it_cannot_train_on_are_refused(clip: tuple[int, tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StmCycleOptions.require_clips(*clip)
