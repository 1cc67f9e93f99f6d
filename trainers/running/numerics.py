"""Kernels whose sums have one order, so that a GPU gives the same bits twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CUBLAS_WORKSPACE = ":4096:8"
"""Without a fixed workspace cuBLAS chooses its sums as memory happens to lie."""


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """torch's deterministic algorithms for the length of the block; to be entered before the GPU is first used."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
