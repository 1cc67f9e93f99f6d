"""The two losses of STM-Cycle, for training and for gradient correction. They know nothing of models or steps.

Source: Li et al. 2020, as the released code computes them; docs/stm_cycle.md lists what it does oddly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HARD_SHARE = 0.4
SMALLEST_UNION = 1e-9
"""Only where no pixel counts; else a softmax over all pixels is far above it."""


def hardest_cross_entropy(
    found: Tensor, labels: Tensor, judged: Tensor, *, share: float = HARD_SHARE, count_void: bool = True
) -> Tensor:
    """Mean of the hardest `share` of each sample's pixel losses, (B,) float32.

    found (B, 1 + K, H, W) float32 probabilities, background first, above 0 as soft aggregation leaves them; labels
    (B, H, W) uint8, more than K = void; judged (B, 1 + K) bool: pixels of another label have loss 0. count_void: the
    share is one of all H * W pixels, of which void ones have loss 0 (published); else of those that are not void. A
    sample that is void everywhere has loss 0.
    """
    known = labels < found.shape[1]
    index = torch.where(known, labels, 0).long()
    losses = -found.gather(1, index[:, None])[:, 0].log()  # (B, H, W)
    counted = known & judged.gather(1, index.flatten(1)).view_as(known)
    losses = (losses * counted).flatten(1)
    num_kept = max(1, math.floor(share * losses.shape[1]))
    hardest = losses.topk(num_kept, dim=1).values
    if count_void:
        return hardest.mean(1)
    num_wanted = (known.flatten(1).sum(1).double() * share).floor().long()  # (B,)
    wanted = torch.arange(num_kept, device=losses.device) < num_wanted[:, None]
    return (hardest * wanted).sum(1) / num_wanted.clamp(min=1)


def soft_iou_loss(found: Tensor, labels: Tensor, judged: Tensor, *, count_void: bool = True) -> Tensor:
    """1 - sum(min(p, g)) / sum(max(p, g)) of each judged object, averaged over them, (B,) float32.

    Arguments as `hardest_cross_entropy`; p: probability, g: 0 or 1; the background is not judged. Void pixels
    count against an object (published) or, without count_void, not at all. 0 where no object is judged.
    """
    slots = torch.arange(1, found.shape[1], device=labels.device)
    truth = (labels[:, None] == slots[:, None, None]).float()  # (B, K, H, W)
    objects = found[:, 1:]
    if not count_void:
        objects = objects * (labels < found.shape[1])[:, None]
    both = (objects * truth).sum((2, 3))  # sum of the smaller ones, because g is 0 or 1
    either = objects.sum((2, 3)) + truth.sum((2, 3)) - both
    losses = 1 - both / either.clamp(min=SMALLEST_UNION)  # (B, K)
    weights = judged[:, 1:].float()
    return (losses * weights).sum(1) / weights.sum(1).clamp(min=1)


def present_labels(labels: Tensor, num_objects: Tensor, num_slots: int) -> Tensor:
    """Which of background and objects have a pixel: labels (..., H, W) -> (..., 1 + num_slots) bool.

    num_objects: as labels without H and W; slots beyond it are not there, whatever the labels say.
    """
    slots = torch.arange(1 + num_slots, device=labels.device)
    found = torch.stack([(labels == slot).flatten(-2).any(-1) for slot in range(1 + num_slots)], -1)
    return found & (slots <= num_objects[..., None])
