"""Parts of a step by a clock that is turned by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trainers.throughput.runs import Marks
from trainers.throughput.timeline import Timeline


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Model(nn.Module):
    """Its forward pass takes one second."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self._clock = clock

    def forward(self) -> torch.Tensor:
        self._clock.now += 1.0
        return self.weight * 2


class Optimizer(torch.optim.SGD):
    """An update takes a quarter of a second."""

    clock: Clock

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.clock.now += 0.25


@pytest.fixture
def clock() -> Clock:
    return Clock()


def take_steps(clock: Clock, steps: int, *, passes: int = 1, update: bool = True) -> tuple[Marks, Timeline]:
    """Steps of a wait of 4 s, passes of 1 s forward and 2 s backward, an update, and 0.5 s of other things."""
    model, timeline = Model(clock), Timeline(clock)
    optimizer = Optimizer(model.parameters(), lr=0.1)
    optimizer.clock = clock
    marks = Marks(SimpleNamespace(module=model, optimizer=optimizer), timeline)  # type: ignore[arg-type]
    with marks.attached():
        for step in range(steps):
            clock.now += 4.0
            for _ in range(passes):
                model()
                clock.now += 2.0
            if update:
                optimizer.step()
            clock.now += 0.5
            marks.end_step(step, 0.0)
    model()  # after the block nobody looks any more
    return marks, timeline


def test_a_step_is_forward_backward_optimizer_and_the_rest(clock: Clock) -> None:
    marks, timeline = take_steps(clock, 4)
    assert marks.parts(1) == {"forward": 1.0, "backward": 2.0, "optimizer": 0.25, "rest": 4.5}
    assert marks.step_seconds() == [3.75, 7.75, 7.75, 7.75]
    assert marks.idle_seconds() == [4.0, 4.0, 4.0]
    assert [(span.name, span.seconds) for span in timeline.spans[:3]] == [
        ("forward", 1.0),
        ("backward", 2.0),
        ("optimizer", 0.25),
    ]


def test_passes_that_accumulate_are_added_up(clock: Clock) -> None:
    marks, _ = take_steps(clock, 3, passes=3)
    assert marks.parts(1) == {"forward": 3.0, "backward": 6.0, "optimizer": 0.25, "rest": 4.5}


def test_a_step_that_the_scaler_left_out_has_no_optimizer(clock: Clock) -> None:
    marks, _ = take_steps(clock, 3, update=False)
    assert marks.parts(1) == {"forward": 1.0, "backward": 2.5, "optimizer": 0.0, "rest": 4.0}
