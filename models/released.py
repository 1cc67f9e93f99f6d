"""The authors' released files by the name of their model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from models import released_mtmfi, released_rde, released_stm

LOADERS: dict[str, Callable[[Path], nn.Module]] = {"rde": released_rde.load, "stm": released_stm.load}
TRUNKLESS: dict[str, Callable[[Path, Path | None], nn.Module]] = {"mtmfi": released_mtmfi.load}
"""Those whose released files lack the trunk, which comes from a second file."""


def load(name: str, path: Path, *, trunk_weights: Path | None = None) -> nn.Module:
    """The model `name` with the weights of a file, the authors' or one of ours, in eval mode on the CPU.

    trunk_weights: of models in TRUNKLESS. Loading is strict and executes nothing that a file holds. Raises ValueError
    for an unknown name, naming those that there are, and as the model's own reader does.
    """
    if name in TRUNKLESS:
        return TRUNKLESS[name](path, trunk_weights)
    if name not in LOADERS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(sorted({*LOADERS, *TRUNKLESS}))}")
    if trunk_weights is not None:
        raise ValueError(f"{path}: weights of {name} hold their trunks; leave the trunk's weights out")
    return LOADERS[name](path)
