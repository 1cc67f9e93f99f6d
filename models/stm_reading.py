"""Reading a memory whose keys belong to single objects, in pieces of bounded size where no gradient is wanted."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_AFFINITY = 2**25
"""Similarities (of 4 bytes) held at a time without gradients; the results do not depend on it."""


def read_own_memory(memory_key: Tensor, memory_value: Tensor, query_key: Tensor) -> Tensor:
    """Weighted sum of each object's own memory values for each query position.

    memory_key (N, C, M), memory_value (N, D, M), query_key (N, C, h, w), all float. Returns (N, D, h, w). Softmax over
    the M positions of k_m.q_p / sqrt(C), in float32 under autocast too. Without gradients at most LARGEST_AFFINITY
    similarities exist at a time, however long the memory is.
    Source: STM, Oh et al. 2019, eq. 2.
    """
    query = query_key.flatten(2)  # (N, C, P)
    num_objects, num_positions = query.shape[0], query.shape[2]
    piece = num_positions
    if not torch.is_grad_enabled():
        piece = max(1, min(num_positions, LARGEST_AFFINITY // max(1, num_objects * memory_key.shape[2])))
    pieces = [_read(memory_key, memory_value, part) for part in query.split(piece, dim=2)]
    readout = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)
    return readout.unflatten(2, query_key.shape[2:])


def _read(memory_key: Tensor, memory_value: Tensor, query: Tensor) -> Tensor:
    """As `read_own_memory`, for query (N, C, P); (N, D, P)."""
    with torch.autocast(memory_key.device.type, enabled=False):
        scaled = query.float() * memory_key.shape[1] ** -0.5
        weights = (scaled.transpose(1, 2) @ memory_key.float()).softmax(2)  # (N, P, M)
    return memory_value @ weights.transpose(1, 2).to(memory_value.dtype)
