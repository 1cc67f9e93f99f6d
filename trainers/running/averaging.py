"""An exponential moving average of the weights in training, which is smoother than they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average = decay * average + (1 - decay) * weights after every update, of floating-point parameters.

    It begins as the weights are. Buffers are not averaged: they are the model's own. On the model's device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        parameters = {name: p.detach() for name, p in model.named_parameters() if p.is_floating_point()}
        self._averaged = {name: parameter.clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Count in the weights as they are now."""
        parameters = dict(self._model.named_parameters())
        new = [parameters[name].detach() for name in self._averaged]
        torch._foreach_lerp_(list(self._averaged.values()), new, 1 - self._decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state with averaged parameters."""
        return {**self._model.state_dict(), **self._averaged}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        for name, tensor in self._averaged.items():
            tensor.copy_(state[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights for the length of the block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def settle(self) -> None:
        """Give the model the averaged weights for good."""
        for name, parameter in self._model.named_parameters():
            if name in self._averaged:
                parameter.copy_(self._averaged[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._model.named_parameters():
            if name in self._averaged:
                held = parameter.detach().clone()
                parameter.copy_(self._averaged[name])
                self._averaged[name].copy_(held)
