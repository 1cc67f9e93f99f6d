"""The authors' released files by the name of their model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from models import released_rde, released_stm

LOADERS: dict[str, Callable[[Path], nn.Module]] = {"rde": released_rde.load, "stm": released_stm.load}


def load(name: str, path: Path) -> nn.Module:
    """The model `name` with the weights of a file, the authors' or one of ours, in eval mode on the CPU.

    Loading is strict and executes nothing that a file holds. Raises ValueError for an unknown name, naming those that
    there are, and as the model's own reader does.
    """
    if name not in LOADERS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(sorted(LOADERS))}")
    return LOADERS[name](path)
