"""The loop with a model of one weight: which rate each step uses, who is told what when, what stops it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from pipelines.loader import ClipLoader
from pipelines.order.curriculum import Table
from pipelines.types import Batch
from trainers.records.journal import Report
from trainers.running.distributed import Ranks
from trainers.running.loop import Ending, Hooks, NonFiniteLossError, RunningMeans, StageRun, train_stage
from trainers.running.stopping import StopRequest, catch_stop_signals

ONE = Ranks()


class OneWeight(nn.Module):
    """loss = weight * mean(images); with `root` the square root of it, whose gradient at 0 is infinite."""

    def __init__(self, *, root: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0 if root else 2.0))
        self.root = root

    def arguments(self, batch: Batch) -> dict[str, float]:
        return {"step": float(batch.step)}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        return means

    def forward(
        self, images: Tensor, _masks: Tensor, _num_objects: Tensor, _first_masks: Tensor, step: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.weight * images.mean()
        return (loss.sqrt() if self.root else loss), {"step": images.new_tensor(step)}


class FakeLoader:
    """Batches of steps first .. stop - 1; the images of step n are full of n + 1."""

    wait_seconds = 0.0

    def __init__(self, steps: range) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[Batch]:
        for step in self.steps:
            images = torch.full((2, 1, 1, 1, 1), step + 1.0)
            empty = torch.zeros(2, 1)
            yield Batch(step, images, empty, empty, empty, empty, cast(Any, (None, None)))


class Heard:
    """What the hooks were told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []
        self.reports: list[Report] = []
        self.saved: list[int] = []

    def hooks(self, *, report_every: int = 2, checkpoint_every: int = 3) -> Hooks:
        def on_step(step: int, loss: float) -> None:
            self.steps.append((step, loss))

        return Hooks(on_step, self.reports.append, self.saved.append, report_every, checkpoint_every)


def make_run(objective: OneWeight, steps: range, *, scaled: bool = False) -> StageRun:
    return StageRun(
        name="toy",
        steps=5,
        first_step=10,
        batch_size=2,
        learning_rate=Table(((0.0, 0.5), (0.6, 0.25))),
        loader=cast(ClipLoader, FakeLoader(steps)),
        objective=objective,
        module=objective,
        optimizer=torch.optim.SGD(objective.parameters(), lr=99.0),
        scaler=GradScaler("cpu", enabled=scaled),
        autocast=nullcontext,
        ranks=ONE,
        describe=lambda _batch, position: f"clip {position}",
        device=torch.device("cpu"),
    )


def test_each_step_moves_the_weight_by_its_own_rate_and_everyone_hears_of_it() -> None:
    objective, heard = OneWeight(), Heard()
    ending = train_stage(make_run(objective, range(5)), heard.hooks(), StopRequest())
    assert ending is Ending.FINISHED
    weights = [2.0, 1.5, 0.5, -1.0, -2.0, -3.25]  # minus rate * (step + 1)
    assert objective.weight.item() == weights[-1]
    assert heard.steps == [(11 + n, weights[n] * (n + 1)) for n in range(5)]
    assert [(r.stage_step, r.step, r.learning_rate) for r in heard.reports] == [
        (2, 12, 0.5),
        (4, 14, 0.25),
        (5, 15, 0.25),
    ]
    assert [r.metrics for r in heard.reports] == [
        {"loss": (2.0 + 3.0) / 2, "step": 0.5, "gradient_norm": 1.5},
        {"loss": (1.5 - 4.0) / 2, "step": 2.5, "gradient_norm": 3.5},
        {"loss": -10.0, "step": 4.0, "gradient_norm": 5.0},
    ]
    assert heard.saved == [12, 15]


def test_steps_that_are_done_are_not_taken_again() -> None:
    heard = Heard()
    train_stage(make_run(OneWeight(), range(3, 5)), heard.hooks(), StopRequest())
    assert [step for step, _ in heard.steps] == [14, 15]


def test_an_infinite_gradient_of_a_finite_loss_stops_before_the_update() -> None:
    objective, heard = OneWeight(root=True), Heard()
    with pytest.raises(NonFiniteLossError, match=r"step 11: .*\n  no clip alone: the gradients overflowed"):
        train_stage(make_run(objective, range(5)), heard.hooks(), StopRequest())
    assert objective.weight.item() == 0.0
    assert (heard.steps, heard.saved) == ([], [])


def test_under_fp16_an_overflow_is_left_to_the_scaler() -> None:
    objective, heard = OneWeight(root=True), Heard()
    run = make_run(objective, range(5), scaled=True)
    assert train_stage(run, heard.hooks(), StopRequest()) is Ending.FINISHED
    assert objective.weight.item() == 0.0
    assert run.scaler.get_scale() == 65536.0 / 2**5


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGUSR1, Ending.STOPPED), (signal.SIGINT, Ending.INTERRUPTED)])
def test_a_signal_ends_the_step_reports_and_saves(number: signal.Signals, ending: Ending) -> None:
    heard = Heard()
    with catch_stop_signals() as stop:
        os.kill(os.getpid(), number)
        assert train_stage(make_run(OneWeight(), range(5)), heard.hooks(), stop) is ending
    assert (heard.saved, [r.stage_step for r in heard.reports]) == ([11], [1])


def test_a_second_ctrl_c_does_not_wait_and_the_handlers_go_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), catch_stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_running_means_start_again_after_each_report() -> None:
    means = RunningMeans()
    for value in (1.0, 2.0, 6.0):
        means.add({"a": torch.tensor(value), "b": torch.tensor(2 * value)})
    assert means.take(ONE) == {"a": 3.0, "b": 6.0}
    means.add({"a": torch.tensor(5.0)})
    assert means.take(ONE) == {"a": 5.0}


def test_a_scalar_that_only_some_steps_have_is_the_mean_of_those() -> None:
    means = RunningMeans()
    means.add({"a": torch.tensor(1.0)})
    means.add({"a": torch.tensor(2.0), "of longer clips": torch.tensor(4.0)})
    assert means.take(ONE) == {"a": 1.5, "of longer clips": 4.0}
