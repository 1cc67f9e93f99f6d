"""Weights and inputs made of arithmetic, so that two implementations can be compared without sharing a file."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


def uniform(count: int, stream: int, *, start: int = 0) -> np.ndarray:
    """`count` float32 numbers in [-1, 1) of a numbered stream, from flat index `start`: a hash of index and stream."""
    index = np.arange(start, start + count, dtype=np.uint64).astype(np.uint32)
    with np.errstate(over="ignore"):
        mixed = index * np.uint32(2654435761) + np.uint32((40503 * stream + 12345) % 2**32)
        mixed ^= mixed >> np.uint32(16)
        mixed *= np.uint32(2246822519)
        mixed ^= mixed >> np.uint32(13)
        mixed *= np.uint32(3266489917)
        mixed ^= mixed >> np.uint32(16)
    return (mixed / 2.0**31 - 1).astype(np.float32)


def filled(shape: tuple[int, ...], stream: int) -> Tensor:
    """A float32 tensor of a stream, in C order."""
    return torch.from_numpy(uniform(math.prod(shape), stream)).reshape(shape)


@torch.no_grad()
def fill_weights(model: nn.Module) -> None:
    """Set every weight and buffer of a model; the stream is the position of its name among all sorted names."""
    for stream, (name, tensor) in enumerate(sorted(model.state_dict().items())):
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(_scaled(name, filled(tuple(tensor.shape), stream)))


def _scaled(name: str, values: Tensor) -> Tensor:
    if name.endswith("running_mean"):
        return 0.1 * values
    if name.endswith("running_var"):
        return 1 + 0.5 * values
    if values.dim() > 1:
        return values * math.sqrt(3 / values[0].numel())
    return 0.05 * values if name.endswith("bias") else 0.6 + 0.2 * values
