"""Files of tensors: read without running what is in them, refused in one message if they are something else."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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


def _damaged_member(path: Path) -> str | None:
    """First damaged part of a file in the format of torch 1.6 and later; None where all is well or there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError):
        return None  # older formats have no checksums; what is no checkpoint at all is torch's to say
