"""Files of tensors: read without running what is in them, refused in one message if they are something else."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch


def read_tensors(path: Path) -> Any:
    """What torch.save wrote into a file, plain values and tensors only, on the CPU.

    Raises ValueError for a file that torch cannot read or whose checksums do not match, OSError for one that
    cannot be opened.
    """
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


def _damaged_member(path: Path) -> str | None:
    """First damaged part of a file in the format of torch 1.6 and later; None where all is well or there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError):
        return None  # older formats have no checksums; what is no checkpoint at all is torch's to say
