"""STM-Cycle's weights from files: the authors' checkpoints in both their containers, and our own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from models.stm import Stm
from models.weight_files import load_strictly, read_state, require_finite

UNUSED = re.compile(r"Encoder_[MQ]\.(mean|std)$|num_batches_tracked$")
"""Entries that nothing in the network reads; a file may lack them."""
OFFICIAL_STEM = "Encoder_M.conv1_o.weight"


def load(path: Path) -> Stm:
    """The network with the weights of a checkpoint file, ready to segment (`eval()`), on the CPU.

    The file is an authors' checkpoint (a state dict, or a dict with one under "state_dict") or one of ours (under
    "model"); arch and width are read from it. Raises ValueError, in one message, for every key that is missing or
    unexpected and every other shape, but for those nothing reads; for the official STM's weights; for a width that no
    model has; for the first tensor that is not finite; and for files that are no checkpoint.
    """
    state = _read(path)
    try:
        model = Stm(initialise=False, **Stm.options_of(state))
    except ValueError as error:
        raise ValueError(f"{path}: no weights of a model 'stm' ({error}); give the file of one") from error
    _fill(model, state, path)
    return model.eval()


def start_from(model: nn.Module, path: Path) -> None:
    """Fill `model` with the weights of a file, strictly. Raises ValueError as `load` does."""
    _fill(model, _read(path), path)


def _read(path: Path) -> dict[str, Tensor]:
    state = read_state(path)
    if OFFICIAL_STEM in state or f"module.{OFFICIAL_STEM}" in state:
        raise ValueError(
            f"{path}: expected weights of STM-Cycle, found those of the official STM ({OFFICIAL_STEM}). That stem was "
            "trained on the other objects' masks, STM-Cycle's conv1_bg on what is not the object: renaming would fit "
            "and give a wrong network, and that one expects frames that are not normalised; give a file of STM-Cycle"
        )
    return state


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    missing = {name: _unused_value(name, own[name]) for name in own.keys() - state.keys() if UNUSED.search(name)}
    load_strictly(model, {**state, **missing}, path)
    require_finite(model.state_dict(), path)


def _unused_value(name: str, like: Tensor) -> Tensor:
    """What an entry that a file lacks is set to; it changes nothing."""
    return torch.ones_like(like) if name.endswith("std") else torch.zeros_like(like)
