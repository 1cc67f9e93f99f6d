"""The optimiser of the published recipes. Its learning rate is set from outside at every step: no scheduler."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import Parameter


def make_adam(parameters: Iterable[Parameter], *, weight_decay: float) -> torch.optim.Adam:
    """Adam with default betas and coupled L2 decay, one group, the affine weights of batch norm included."""
    return torch.optim.Adam(list(parameters), lr=0.0, weight_decay=weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use `value` from the next update on."""
    for group in optimizer.param_groups:
        group["lr"] = value
