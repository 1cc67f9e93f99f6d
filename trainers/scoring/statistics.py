"""Mean, recall and decay of an object's per-frame values, as the DAVIS benchmarks define them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RECALL_THRESHOLD = 0.5


class Statistics(NamedTuple):
    """mean of all frames; recall, the share of frames above 0.5; decay, mean of the first quarter minus the last."""

    mean: float
    recall: float
    decay: float


def summarise(values: NDArray[np.float64]) -> Statistics:
    """Statistics of one object's values (n,), n >= 1, in time order; NaN is left out of means and is a miss in recall.

    Quarters share their border frames. Edges are wide integers: the official code keeps them in 8 bits, so its decay is
    NaN or wrong from 256 values on, which is the one intended difference.
    """
    if len(values) == 0:
        raise ValueError("no values to summarise: at least one scored frame is needed")
    edges = quarter_edges(len(values))
    decay = _mean(values[edges[0] : edges[1] + 1]) - _mean(values[edges[3] : edges[4] + 1])
    return Statistics(_mean(values), float(np.mean(values > RECALL_THRESHOLD)), decay)


def quarter_edges(num_values: int) -> tuple[int, ...]:
    """Five frame numbers; quarter k holds frames edge k to edge k+1, both included. Halves round up."""
    positions = np.round(np.linspace(1, num_values, 5) + 1e-10) - 1
    return tuple(int(position) for position in positions)


def _mean(values: NDArray[np.float64]) -> float:
    present = values[~np.isnan(values)]
    return float(np.mean(present)) if len(present) else float("nan")
