"""The work of a step, counted by hand."""

from __future__ import annotations

import pytest
import torch

from trainers.benchmarks.work import count_work

pytestmark = pytest.mark.usefixtures("one_thread")


def test_arithmetic_and_operations_of_a_forward_and_a_backward_pass_are_counted() -> None:
    weight = torch.ones(3, 2, 1, 1, requires_grad=True)
    images = torch.ones(4, 2, 5, 6)

    def step() -> None:
        found = torch.nn.functional.conv2d(images, weight)
        (found.flatten(1)[:, None].detach() + 1).relu_()
        found.sum().backward()

    work = count_work(step)
    # Both passes: 4 * 5 * 6 positions of 3 * 2 weights; images need no gradient.
    assert work.gflop == pytest.approx(2 * (4 * 5 * 6) * (3 * 2) * 2 / 1e9)
    # convolution, add, relu_, sum; ones_like of the loss's gradient (its fill), convolution_backward. Views are none.
    assert work.operations == 6


def test_a_step_that_looks_only_is_no_work() -> None:
    work = count_work(lambda: torch.empty(3, 4).view(4, 3).transpose(0, 1).detach())
    assert (work.gflop, work.operations) == (0.0, 0)
