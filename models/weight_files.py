"""Files of tensors: read without running what is in them, refused in one message if they are something else."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class NoWeightsError(ValueError):
    """A state dict is not of the kind of network that it was read for."""


def read_tensors(path: Path) -> Any:
    """What torch.save wrote into a file, plain values and tensors only, on the CPU.

    Raises ValueError for a file that torch cannot read or whose checksums do not match, OSError for one that is not
    there or cannot be opened.
    """
    if not path.is_file():
        kind, found = (IsADirectoryError, "a folder") if path.is_dir() else (FileNotFoundError, "nothing")
        raise kind(f"{path}: expected a file of weights, found {found}; give the path of a .pt or .pth file")
    damaged = _damaged_member(path)  # torch does not compare checksums: flipped bits would be weights
    if damaged is not None:
        raise ValueError(f"{path}: expected an undamaged file, found a wrong checksum in {damaged}; copy it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # Its unpickler runs over whatever bytes there are and trips over them in all these ways.
    except (
        AssertionError,
        AttributeError,
        EOFError,
        LookupError,
        OverflowError,
        RuntimeError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        raise ValueError(
            f"{path}: expected a checkpoint of tensors written by torch.save, found a file torch cannot read; "
            "copy or download it again"
        ) from error


def require_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise ValueError naming the first of the tensors (read from `path`) with a NaN or an infinity."""
    for name, tensor in tensors.items():
        count = int((~torch.isfinite(tensor)).sum())
        if count:
            found = f"NaN or infinity in {name} ({count} of {tensor.numel()} values)"
            raise ValueError(f"{path}: expected finite weights, found {found}; give another file")


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file: flat, under "state_dict", or ours, under "model". On the CPU.

    Raises ValueError for a file that is not one, OSError for one that cannot be read.
    """
    content = read_tensors(path)
    state = content
    if isinstance(content, Mapping):
        state = content.get("model", content.get("state_dict", content))
    if not _is_state(state):
        raise ValueError(
            f"{path}: expected a state dict (names to tensors), or a checkpoint with one under 'model', "
            f"found {_described(content)}; give the file with the network's weights"
        )
    return dict(state)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy `state` (read from `path`) into `model`; ValueError lists all differences in names and shapes, if any.

    Of weights with less than a quarter of the model's names, which are another network's, it shows three names alone.
    """
    differences = list_differences(model.state_dict(), state)
    if differences:
        wrapped = any(key.startswith("module.") for key in state)
        hint = "; names begin with 'module.': save the module inside the DDP wrapper" if wrapped else ""
        # Not none: readers have put in what authors' files lack.
        others = sorted(state.keys() - model.state_dict().keys())
        if len(state) - len(others) < len(model.state_dict()) / 4:
            lines = f" the names are others, the file has {', '.join(others[:3]) or 'none'}"
        else:
            lines = "".join(f"\n  {line}" for line in differences)
        raise ValueError(
            f"{path}: expected the {len(model.state_dict())} entries of {type(model).__name__}, "
            f"found {len(differences)} difference{'s' * (len(differences) != 1)}{hint}; give weights of the same "
            f"model:{lines}"
        )
    model.load_state_dict(state)


def list_differences(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, optional: Collection[str] = ()
) -> list[str]:
    """One line for each name that is missing or unexpected and each tensor of another shape, sorted; empty if equal.

    optional: names that may be missing.
    """
    missing = expected.keys() - found.keys() - set(optional)
    lines = [f"missing {key} {_shape(expected[key])}" for key in sorted(missing)]
    lines += [f"unexpected {key} {_shape(found[key])}" for key in sorted(found.keys() - expected.keys())]
    return lines + [
        f"{key} is {_shape(found[key])}, expected {_shape(expected[key])}"
        for key in sorted(expected.keys() & found.keys())
        if expected[key].shape != found[key].shape
    ]


def _damaged_member(path: Path) -> str | None:
    """First damaged part of a file in the format of torch 1.6 and later; None where all is well or there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError):
        return None  # older formats have no checksums; what is no checkpoint at all is torch's to say


def _is_state(content: object) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        return "a dict with " + (", ".join(sorted(map(str, content))[:8]) or "no entries")
    return f"a {type(content).__name__}"
