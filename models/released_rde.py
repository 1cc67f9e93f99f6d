"""RDE's weights from files: the authors' checkpoints, our own, and the step from stage 0 to the later stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from models.backbones import orthogonal_stem
from models.layers import initialise_layers
from models.rde import Rde
from models.weight_files import load_strictly, read_state, require_finite

VALUE_STEM = "value_encoder.conv1.weight"
SAM_PREFIX = "mem_compress."
"""The only weights that a stage-0 model lacks."""


def load(path: Path) -> Rde:
    """The network with the weights of a checkpoint file, ready to segment (`eval()`), on the CPU.

    The file is an authors' checkpoint (a flat state dict) or one of ours (a dict whose "model" is the state dict);
    its width is read from it. Raises ValueError, in one message, for every key that is missing or unexpected and
    every other shape; for a width that no model has; for stage-0 weights, which cannot segment several objects; for
    the first tensor that is not finite; and for files that are no checkpoint.
    """
    state = read_state(path)
    if _stem_channels(state) == 4:
        raise ValueError(
            f"{path}: expected weights of stages 1 to 3, found stage 0 (4-channel value stem, no SAM); "
            "train a later stage from it (tools/train.py with start_from=<this file>) and give its checkpoint"
        )
    try:
        model = Rde(initialise=False, **Rde.options_of(state))
    except ValueError as error:
        raise ValueError(f"{path}: no weights of a model 'rde' ({error}); give the file of one") from error
    load_strictly(model, state, path)
    require_finite(model.state_dict(), path)
    return model.eval()


def start_from(model: nn.Module, path: Path, generator: torch.Generator) -> None:
    """Fill `model` with the weights of an earlier stage.

    From stage 0 to a later stage the value stem grows by one channel, drawn from `generator`, and the SAM keeps the
    start it has in `model`; from any other stage every weight must be there. Raises ValueError as `load` does.
    """
    state = read_state(path)
    own = model.state_dict()
    if _stem_channels(state) == 4 and _stem_channels(own) == 5:
        state = grow_value_stem(state, generator)
        state |= {key: tensor for key, tensor in own.items() if key.startswith(SAM_PREFIX)}
    load_strictly(model, state, path)
    require_finite(model.state_dict(), path)


def advance(earlier: Rde, generator: torch.Generator) -> Rde:
    """The network of the later stages with the weights of a stage-0 one, on the CPU; `earlier` is left alone.

    As `start_from`, for stages of one run: a fifth stem channel and a fresh SAM, both drawn from `generator`. Raises
    ValueError unless `earlier` is of stage 0.
    """
    state = grow_value_stem({key: tensor.cpu() for key, tensor in earlier.state_dict().items()}, generator)
    later = Rde(initialise=False, **(earlier.options_of(state) | {"stage0": False}))
    assert later.mem_compress is not None
    initialise_layers(later.mem_compress, generator)
    sam = {key: tensor for key, tensor in later.state_dict().items() if key.startswith(SAM_PREFIX)}
    later.load_state_dict(state | sam)
    return later


def grow_value_stem(state: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """A stage-0 state dict with a fifth channel in the value stem, for the other objects' masks.

    The channel is orthogonal, drawn from `generator`; nothing else changes. Raises ValueError unless the stem has 4
    channels.
    """
    if _stem_channels(state) != 4:
        raise ValueError(f"{VALUE_STEM} has {_stem_channels(state)} input channels, expected the 4 of stage 0")
    stem = state[VALUE_STEM]
    extra = orthogonal_stem(stem.shape[0], 1, generator).to(stem)
    return {**state, VALUE_STEM: torch.cat([stem, extra], 1)}


def _stem_channels(state: Mapping[str, Tensor]) -> int | None:
    stem = state.get(VALUE_STEM)
    return None if stem is None or stem.dim() < 2 else stem.shape[1]
