"""Files of tensors: read without running what is in them, refused in one message if they are something else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch


def read_tensors(path: Path) -> Any:
    """What torch.save wrote into a file, plain values and tensors only, on the CPU.

    Raises ValueError for a file that torch cannot read, OSError for one that cannot be opened.
    """
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
