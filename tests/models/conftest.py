"""Fixtures of the model tests: one thread, and one model of each size."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from models.rde import Rde
from models.stm import Stm
from tests.models.deterministic_fill import fill_weights

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def every_test_on_one_thread(one_thread: None) -> None:
    """The fixture, without asking for it."""


@pytest.fixture(scope="session")
def paper_model() -> Rde:
    """RDE at the paper's size with deterministic weights; shared, so tests leave it as it is."""
    model = Rde(initialise=False)
    fill_weights(model)
    return model.eval()


@pytest.fixture
def small_model(caplog: pytest.LogCaptureFixture) -> Rde:
    """RDE with 16 of 64 channels, random."""
    with caplog.at_level(logging.ERROR):
        return Rde(width=0.25)


@pytest.fixture
def small_stm() -> Stm:
    """STM-Cycle on ResNet-18 with 4 of 64 channels, random."""
    return Stm(arch="resnet18", width=0.0625)


@pytest.fixture
def spec_state_dict() -> Path:
    """The list of names and shapes of the authors' network; tests that use it skip where it does not exist."""
    path = REPOSITORY.parent / "shared" / "spec" / "rde_state_dict.txt"
    if not path.is_file():
        pytest.skip("no ../shared/spec beside the checkout")
    return path
