"""Gradient correction: change the masks of a frame until, remembered with it, they lead back to the reference masks.

Source: Li et al. 2020, section 3.3, as the released code does it: plain gradient descent on the probabilities, which
may leave [0, 1] on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.object_rows import ObjectRows
from models.stm import Query, Stm
from trainers.objectives.stm_cycle_losses import hardest_cross_entropy, soft_iou_loss


@dataclass(frozen=True, slots=True)
class CorrectionOptions:
    """How masks are corrected; the defaults are the published ones.

    iterations: gradient steps. rate: their length. clamp: keep probabilities in [0, 1] after each (published: no).
    objects_at_once: objects whose activations are held together. The result does not depend on it; where there are more
    objects, memory is bounded by it and the forward pass is computed twice.
    """

    iterations: int = 10
    rate: float = 180.0
    clamp: bool = False
    objects_at_once: int = 8

    def __post_init__(self) -> None:
        """Raise ValueError for values outside their range."""
        if self.iterations < 1 or self.rate < 0 or self.objects_at_once < 1:
            raise ValueError(
                f"iterations {self.iterations} and objects_at_once {self.objects_at_once} must be at least 1, rate "
                f"{self.rate} must not be negative"
            )


class Reference(NamedTuple):
    """A frame whose masks are known: its query (of one frame), labels (1, H, W) uint8, 0..N or 255 = void."""

    query: Query
    labels: Tensor


class Iteration(NamedTuple):
    """One step: the loss () before it, its gradient (N, H, W), the masks (N, H, W) after it; all detached."""

    loss: Tensor
    gradient: Tensor
    masks: Tensor


@dataclass(frozen=True, slots=True)
class Correction:
    """What stays the same while the masks of one frame change.

    stem: of that frame (`Stm.look`), (1, 64, H/2, W/2). num_slots: K of the aggregation; None: the number of objects.
    """

    model: Stm
    reference: Reference
    stem: Tensor
    options: CorrectionOptions
    num_slots: int | None = None

    def apply(self, masks: Tensor) -> Tensor:
        """Corrected masks of all N objects, from probabilities of slots 1..N; both (N, H, W)."""
        *_, last = self.iterations(masks)
        return last.masks

    def iterations(self, masks: Tensor) -> Iterator[Iteration]:
        """The steps from masks (N, H, W). Gradients are computed even where the caller has them turned off."""
        rows = ObjectRows.of([len(masks)], self.num_slots or len(masks), masks.device)
        masks = masks.detach().float()
        for _ in range(self.options.iterations):
            with torch.enable_grad():
                masks.requires_grad_()
                loss = self._loss(masks, rows)
                (gradient,) = torch.autograd.grad(loss, masks)
            masks = masks.detach() - self.options.rate * gradient
            if self.options.clamp:
                masks = masks.clamp(0, 1)
            yield Iteration(loss.detach(), gradient, masks)

    def _loss(self, masks: Tensor, rows: ObjectRows) -> Tensor:
        """Of the reference frame, as read from the masks: all its labels count, seen or not, as published."""
        found = rows.aggregate(self._lead_back(masks)).softmax(1)
        judged = torch.arange(found.shape[1], device=masks.device)[None] <= len(masks)
        labels = self.reference.labels
        return (hardest_cross_entropy(found, labels, judged) + soft_iou_loss(found, labels, judged)).sum()

    def _lead_back(self, masks: Tensor) -> Tensor:
        """Object logits (N, H, W) of the reference frame, read from a memory of `masks` alone."""
        at_once = self.options.objects_at_once
        if len(masks) <= at_once:
            return self._lead_some_back(masks)
        # Only what enters is kept; the backward pass holds the activations of one piece at a time.
        return torch.cat(
            [
                checkpoint(self._lead_some_back, some, use_reentrant=False, preserve_rng_state=False)
                for some in masks.split(at_once)
            ]
        )

    def _lead_some_back(self, masks: Tensor) -> Tensor:
        clips = torch.zeros(len(masks), dtype=torch.int64, device=masks.device)
        memory = self.model.memorise(self.stem, masks, clips)
        return self.model.segment(self.reference.query, memory, clips, (masks.shape[1], masks.shape[2]))


def cycle_erf(correction: Correction, num_objects: int) -> Tensor:
    """Where a frame's masks matter for the way back: corrections of empty masks, largest over objects, (H, W) >= 0.

    Source: cyclic effective receptive field, Li et al. 2020, eq. 6.
    """
    labels = correction.reference.labels
    empty = torch.zeros(num_objects, *labels.shape[1:], device=labels.device)
    return correction.apply(empty).relu().amax(0)
