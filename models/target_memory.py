"""The samples that target models are refitted on: which there are, what each weighs, which one gives way to a new one.

Source: MTMFI and FRTM, Robinson et al. 2020. Both levels of a method make the same decisions, so they share them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from models.target_fitting import Samples, Targets

Growth = Literal["mtmfi", "frtm"]
LEARNING_RATE = 0.1
FIRST_SAMPLE = 2.0
"""Weight of the first frame as it is, against 1 for each augmentation of it."""
GROWTH = {"mtmfi": 1 + LEARNING_RATE, "frtm": 1 / (1 - LEARNING_RATE)}


class SlotWeights:
    """Sample weights (O, N) of O objects and the slot each takes next; the weights of an object sum to 1.

    Nothing protects the first frame: in a full memory the lightest sample gives way, whatever it is.
    """

    def __init__(self, num_objects: int, num_first: int, capacity: int, growth: Growth = "mtmfi") -> None:
        if not 1 <= num_first < capacity:
            raise ValueError(f"{num_first} samples of the first frame in a memory of {capacity}")
        if growth not in GROWTH:
            raise ValueError(f"unknown growth {growth!r}; choose one of {', '.join(GROWTH)}")
        first = torch.zeros(capacity)
        first[:num_first] = 1
        first[0] = FIRST_SAMPLE
        self.weights = (first / first.sum()).repeat(num_objects, 1)
        self._growth = GROWTH[growth]
        self._previous = torch.full((num_objects,), -1)

    def to(self, device: torch.device, dtype: torch.dtype) -> SlotWeights:
        """Moved in place, and returned."""
        self.weights, self._previous = self.weights.to(device, dtype), self._previous.to(device)
        return self

    def insert(self, active: Tensor) -> Tensor:
        """Make room for a new sample of each object that is active (O,) bool; slots (O,) int64, of all objects."""
        slots = self.weights.argmin(1)  # of equal ones, such as empty slots, the first
        begun = self._previous >= 0
        at_previous = self.weights.gather(1, self._previous.clamp(min=0)[:, None])[:, 0]
        # The first insertion scales the others up instead, and takes the learning rate.
        scaled = torch.where(begun[:, None], self.weights, self.weights * self._growth)
        value = torch.where(begun, at_previous * self._growth, LEARNING_RATE)
        grown = scaled.scatter(1, slots[:, None], value[:, None])
        grown = grown / grown.sum(1, keepdim=True)
        self.weights = torch.where(active[:, None], grown, self.weights)
        self._previous = torch.where(active, slots, self._previous)
        return slots


class LevelMemory:
    """Samples of one level in slots: features (O, N, c, h, w) and their targets; N grows with the samples."""

    def __init__(self, features: Tensor, targets: Targets, capacity: int) -> None:
        self._capacity = capacity
        self._features, self._targets = features, targets

    @property
    def num_slots(self) -> int:
        """Slots there is memory for now."""
        return self._features.shape[1]

    def write(self, slots: Tensor, features: Tensor, targets: Targets, active: Tensor, *, needed: int) -> None:
        """Put a sample of each active object into its slot, all below `needed`.

        slots (O,) int64, features (O, c, h, w), targets (O, 9, h, w) and (O, h, w), active (O,) bool.
        """
        if self.num_slots < needed:
            size = min(self._capacity, max(needed, 2 * self.num_slots))
            self._features = _grown(self._features, size)
            self._targets = Targets(*(_grown(tensor, size) for tensor in self._targets))
        pairs = zip((self._features, *self._targets), (features, *targets), strict=True)
        for kept, new in pairs:
            _put(kept, slots, new, active)

    def samples(self, weights: Tensor, num_used: int) -> Samples:
        """The first `num_used` slots with their weights (O, N); empty ones weigh nothing."""
        targets = Targets(*(tensor[:, :num_used] for tensor in self._targets))
        return Samples(self._features[:, :num_used], targets, weights[:, :num_used])

    @property
    def num_bytes(self) -> int:
        """Bytes that the samples take."""
        return sum(tensor.nbytes for tensor in (self._features, *self._targets))


def _grown(tensor: Tensor, size: int) -> Tensor:
    """`tensor` (O, N, ...) with zeros behind it up to N = size."""
    larger = tensor.new_zeros(tensor.shape[0], size, *tensor.shape[2:])
    larger[:, : tensor.shape[1]] = tensor
    return larger


def _put(kept: Tensor, slots: Tensor, new: Tensor, active: Tensor) -> None:
    rows = torch.arange(len(kept), device=kept.device)
    each = active.view(-1, *(1,) * (new.dim() - 1))
    kept[rows, slots] = torch.where(each, new, kept[rows, slots])


def sum_bytes(levels: Sequence[LevelMemory]) -> int:
    """Bytes of all levels together."""
    return sum(level.num_bytes for level in levels)
