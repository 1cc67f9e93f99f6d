"""Objects of several clips as rows of one batch, without rows for objects that are not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.masks import aggregate_probabilities


@dataclass(frozen=True, slots=True)
class ObjectRows:
    """Which object each of N rows is: clips (N,) int64 in 0..B-1, slots (N,) int64 in 0..K-1, in this order.

    num_clips is B, num_slots K.
    """

    clips: Tensor
    slots: Tensor
    num_clips: int
    num_slots: int

    @classmethod
    def of(cls, counts: Sequence[int], num_slots: int, device: torch.device) -> ObjectRows:
        """Rows for the first counts[b] slots of each clip b. Raises ValueError for a count not in 0..num_slots."""
        if not all(0 <= count <= num_slots for count in counts):
            raise ValueError(f"clips have {list(counts)} objects, expected 0 to {num_slots}")
        pairs = [(clip, slot) for clip, count in enumerate(counts) for slot in range(count)]
        clips, slots = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
        return cls(clips.to(device, non_blocking=True), slots.to(device, non_blocking=True), len(counts), num_slots)

    def take(self, masks: Tensor) -> Tensor:
        """(B, K, H, W) -> (N, H, W)."""
        return masks.flatten(0, 1) if self._is_full else masks[self.clips, self.slots]

    def aggregate(self, logits: Tensor) -> Tensor:
        """Object logits (N, H, W) -> logits (B, 1 + K, H, W) of background and objects, float32.

        Soft aggregation; slots without a row have probability 0 before it, so about 1e-7 after it.
        """
        found = logits.float().sigmoid()
        if not self._is_full:
            nobody = found.new_zeros(self.num_clips * self.num_slots, *found.shape[1:])
            found = nobody.index_copy(0, self.clips * self.num_slots + self.slots, found)
        return aggregate_probabilities(found.unflatten(0, (self.num_clips, self.num_slots)))

    @property
    def _is_full(self) -> bool:
        return len(self.clips) == self.num_clips * self.num_slots
