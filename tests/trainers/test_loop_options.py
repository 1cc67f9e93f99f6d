"""Accumulation, clipping, averages and optimisers, with a model of one weight whose numbers are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from tests.trainers.test_loop import Heard, OneWeight, make_run
from trainers.optimizers import OptimizerOptions, make_optimizer, restore_moments
from trainers.running.averaging import WeightAverage
from trainers.running.batches import split_batch
from trainers.running.failures import explain_failure
from trainers.running.loop import SMALLEST_SCALE, Ending, NonFiniteLossError, train_stage
from trainers.running.stopping import StopRequest


def test_parts_of_a_batch_add_up_to_the_update_of_the_whole() -> None:
    weights = []
    for accumulate in (1, 2):
        objective, heard = OneWeight(), Heard()
        run = dataclasses.replace(make_run(objective, range(5)), accumulate=accumulate)
        train_stage(run, heard.hooks(), StopRequest())
        weights.append(objective.weight.item())
        assert [report.metrics["loss"] for report in heard.reports] == [2.5, -1.25, -10.0]
    assert weights == [-3.25, -3.25]


def test_parts_keep_the_order_of_the_clips_and_must_divide() -> None:
    batch = next(iter(make_run(OneWeight(), range(1)).loader))
    batch = dataclasses.replace(batch, num_objects=torch.arange(2), plans=("first", "second"))  # type: ignore[arg-type]
    parts = split_batch(batch, 2)
    assert [part.plans for part in parts] == [("first",), ("second",)]
    assert [part.num_objects.tolist() for part in parts] == [[0], [1]]
    with pytest.raises(ValueError, match="2 clips of a rank do not divide into 3 parts"):
        split_batch(batch, 3)


def test_gradients_are_clipped_to_their_norm_and_reported_as_they_were() -> None:
    objective, heard = OneWeight(), Heard()
    run = dataclasses.replace(make_run(objective, range(5)), clip_gradients=2.0)
    train_stage(run, heard.hooks(), StopRequest())
    # Gradients 1, 2, 3, 4, 5 become 1, 2, 2, 2, 2 at rates of 0.5 and, from step 3 on, 0.25.
    assert objective.weight.item() == pytest.approx(2.0 - 0.5 * (1 + 2 + 2) - 0.25 * (2 + 2), abs=1e-5)
    assert [report.metrics["gradient_norm"] for report in heard.reports] == [1.5, 3.5, 5.0]


def test_scaled_gradients_are_clipped_at_their_true_size_and_overflows_are_left_out() -> None:
    objective = OneWeight()
    run = dataclasses.replace(make_run(objective, range(5), scaled=True), clip_gradients=2.0)
    train_stage(run, Heard().hooks(), StopRequest())
    assert objective.weight.item() == pytest.approx(2.0 - 0.5 * (1 + 2 + 2) - 0.25 * (2 + 2), abs=1e-4)
    objective = OneWeight(root=True)
    run = dataclasses.replace(make_run(objective, range(5), scaled=True), clip_gradients=2.0, accumulate=2)
    train_stage(run, Heard().hooks(), StopRequest())
    assert (objective.weight.item(), run.scaler.get_scale()) == (0.0, 65536.0 / 2**5)


def test_an_average_follows_the_weights_and_can_stand_in_for_them() -> None:
    objective, heard = OneWeight(), Heard()
    average = WeightAverage(objective, 0.75)
    train_stage(dataclasses.replace(make_run(objective, range(5)), average=average), heard.hooks(), StopRequest())
    expected = 2.0
    for weight in (1.5, 0.5, -1.0, -2.0, -3.25):
        expected = 0.75 * expected + 0.25 * weight
    assert average.state_dict()["weight"].item() == expected
    with average.in_place():
        assert objective.weight.item() == expected
        assert average.state_dict()["weight"].item() == -3.25
    assert (objective.weight.item(), average.state_dict()["weight"].item()) == (-3.25, expected)
    again = WeightAverage(OneWeight(), 0.75)
    again.load_state_dict(average.state_dict())
    assert again.state_dict()["weight"].item() == expected
    average.settle()
    assert objective.weight.item() == expected


def test_each_optimiser_is_torchs_with_the_options_named() -> None:
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    weight = nn.Parameter(torch.ones(1))
    adam = make_optimizer([weight, frozen], OptimizerOptions(betas=(0.8, 0.9), amsgrad=True), weight_decay=0.1)
    group = adam.param_groups[0]
    assert (type(adam), group["betas"], group["amsgrad"]) == (torch.optim.Adam, (0.8, 0.9), True)
    assert (group["weight_decay"], len(group["params"])) == (0.1, 1)
    assert type(make_optimizer([weight], OptimizerOptions("adamw"), weight_decay=0.1)) is torch.optim.AdamW
    descent = make_optimizer([weight], OptimizerOptions("sgd"), weight_decay=0.0)
    assert (type(descent), descent.param_groups[0]["momentum"]) == (torch.optim.SGD, 0.9)
    with pytest.raises(ValueError, match="sgd has no second moments"):
        OptimizerOptions("sgd", amsgrad=True)


def test_moments_go_on_and_options_are_the_configs() -> None:
    weight = nn.Parameter(torch.ones(3))

    def make(decay: float = 0.0, *, count: int = 1, **options: Any) -> torch.optim.Optimizer:
        weights = [weight, *(nn.Parameter(torch.ones(1)) for _ in range(count - 1))]
        return make_optimizer(weights, OptimizerOptions(**options), weight_decay=decay)

    first = make()
    weight.grad = torch.ones(3)
    first.step()
    saved = first.state_dict()
    second = make(0.5, betas=(0.8, 0.9))
    assert restore_moments(second, saved)
    assert torch.equal(second.state[weight]["exp_avg"], first.state[weight]["exp_avg"])
    assert (second.param_groups[0]["weight_decay"], second.param_groups[0]["betas"]) == (0.5, (0.8, 0.9))
    for other in (make(name="sgd"), make(amsgrad=True), make(count=2)):
        assert not restore_moments(other, saved)
        assert not other.state
    assert restore_moments(make(name="sgd", betas=(0.0, 0.9)), saved)  # which has no moments


def test_fp16_that_leaves_out_every_step_ends_the_run() -> None:
    objective, heard = OneWeight(root=True), Heard()
    run = dataclasses.replace(
        make_run(objective, range(5)), scaler=GradScaler("cpu", enabled=True, init_scale=SMALLEST_SCALE * 6)
    )
    with pytest.raises(NonFiniteLossError, match=r"step 14: fp16 leaves out its updates, .* scaled by 4e-05"):
        train_stage(run, heard.hooks(), StopRequest())
    assert [report.metrics["loss_scale"] for report in heard.reports] == pytest.approx([1.5e-4, 3.75e-5])
    assert objective.weight.item() == 0.0


def test_clips_of_a_failed_step_are_named_even_if_they_cannot_be_kept(caplog: pytest.LogCaptureFixture) -> None:
    def full_disk(*_: object) -> Path:
        raise OSError("No space left on device")

    objective = OneWeight()
    with torch.no_grad():
        objective.weight.fill_(torch.inf)
    hooks = dataclasses.replace(Heard().hooks(), keep_failure=full_disk)
    with pytest.raises(NonFiniteLossError, match=r"\n  clip 0\n  clip 1$"):
        train_stage(make_run(objective, range(5)), hooks, StopRequest())
    assert "clips of the failed step cannot be kept: No space left on device" in caplog.text


def test_a_rank_whose_clips_are_sound_names_those_of_another_and_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere: list[Any] = [["clip 7 on another rank"], Path("kept there.pt")]
    monkeypatch.setattr("trainers.running.failures.gather_objects", lambda value, _ranks: [value, elsewhere.pop(0)])
    run = make_run(OneWeight(), range(5))
    kept: list[object] = []
    error = explain_failure(run, next(iter(run.loader)), lambda *clips: kept.append(clips))
    assert str(error).endswith("\n  clip 7 on another rank\n  kept for tools/train.py --replay: kept there.pt")
    assert not kept


def test_a_validation_follows_a_checkpoint_and_comes_at_the_end_of_a_stage_too() -> None:
    heard, order = Heard(), []
    hooks = dataclasses.replace(
        heard.hooks(checkpoint_every=100),
        save=lambda step: order.append(("save", step)),
        validate=lambda step: order.append(("validate", step)),
        validate_every=4,
    )
    assert train_stage(make_run(OneWeight(), range(5)), hooks, StopRequest()) is Ending.FINISHED
    assert order == [("save", 12), ("validate", 12), ("save", 15), ("validate", 15)]


def test_every_phase_of_a_step_is_announced_and_waits_without_limit_are_named_so() -> None:
    phases: list[str] = []
    hooks = dataclasses.replace(Heard().hooks(), on_phase=phases.append)
    train_stage(make_run(OneWeight(), range(4, 5)), hooks, StopRequest())
    waiting = "waiting for the other ranks at the end of step 15"
    assert phases == ["waiting for data", "in the forward and backward passes of step 15", waiting, "", ""]
