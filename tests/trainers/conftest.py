"""Fixtures of the trainer tests."""

from __future__ import annotations

import pytest
import torch

from models.rde import Rde


@pytest.fixture(scope="session")
def model() -> Rde:
    """A small RDE whose bank matters: the frames it memorises change what it predicts. Shared; leave it as it is."""
    return Rde(width=0.125, generator=torch.Generator().manual_seed(5)).eval()
