"""From an executor's pixels to a training batch: object ids to slots, normalisation, damaged first masks.

Runs on the training device without waiting for it, except inside the first-mask damage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipelines.damage import damage_masks
from pipelines.types import VOID, Batch, ClipPixels, ClipPlan

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_DEVIATION = (0.229, 0.224, 0.225)
"""Of ImageNet's RGB on the 0..1 scale, which every backbone here was pretrained with."""

NUM_LABELS = 256


def assemble(
    pixels: ClipPixels,
    plans: Sequence[ClipPlan],
    *,
    num_slots: int,
    step: int,
    device: torch.device | str,
) -> tuple[Batch, torch.Tensor]:
    """The batch on `device`, and how many of its clips show no object, a () int64 tensor there.

    The first `num_slots` ids of plan.object_ids that are present in the first warped frame become slots 1, 2, ...; all
    other objects become background. Raises ValueError unless there is one plan per clip and 1 <= num_slots < 255.
    """
    if not 1 <= num_slots < VOID:
        raise ValueError(f"num_slots must be in 1..{VOID - 1}, got {num_slots}")
    if len(plans) != len(pixels.images):
        raise ValueError(f"{len(plans)} plans for the pixels of {len(pixels.images)} clips")
    device = torch.device(device)
    images, labels, annotated = (move(t, device) for t in (pixels.images, pixels.labels, pixels.annotated))
    first_labels = torch.where(annotated[:, :1, None], labels[:, 0], 0)
    slot_ids = choose_objects(first_labels, plans, num_slots)
    masks = torch.where(annotated[:, :, None, None], slot_masks(labels, slot_ids), VOID)
    batch = Batch(
        step=step,
        images=normalise(images),
        masks=masks,
        num_objects=(slot_ids > 0).sum(dim=1),
        first_masks=_first_masks(masks[:, 0], plans, num_slots),
        annotated=annotated,
        plans=tuple(plans),
    )
    return batch, (batch.num_objects == 0).sum()


def choose_objects(first_labels: torch.Tensor, plans: Sequence[ClipPlan], num_slots: int) -> torch.Tensor:
    """(B, K) uint8: the data set's id of slot k + 1, 0 for unused slots, which come last.

    first_labels (B, H, W) uint8. Present means at least one pixel, as RDE counts for DAVIS and YouTube-VOS.
    """
    listed = _listed_ids(plans).to(first_labels.device, non_blocking=True)  # (B, P)
    areas = torch.zeros(len(plans), NUM_LABELS, dtype=torch.int32, device=first_labels.device)
    flat = first_labels.flatten(1).long()  # (B, H * W)
    areas.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.int32))
    present = (areas.gather(1, listed) > 0) & (listed > 0)
    slots = torch.where(present, present.cumsum(dim=1), 0).clamp(max=num_slots + 1)
    # Column 0 takes the absent ids, the last one the surplus; both are cut off.
    chosen = torch.zeros(len(plans), num_slots + 2, dtype=torch.long, device=first_labels.device)
    return chosen.scatter_(1, slots, listed)[:, 1:-1].to(torch.uint8)


def slot_masks(labels: torch.Tensor, slot_ids: torch.Tensor) -> torch.Tensor:
    """Object ids (B, T, H, W) to slots of the same shape: 0 background, 1..K, 255 where the label is void.

    slot_ids (B, K) uint8 from choose_objects.
    """
    masks = (labels == VOID) * torch.tensor(VOID, dtype=torch.uint8)
    for slot in range(slot_ids.shape[1]):
        object_id = slot_ids[:, slot, None, None, None]
        masks += (labels == object_id) * ((object_id > 0) * torch.tensor(slot + 1, dtype=torch.uint8))
    return masks


def normalise(images: torch.Tensor) -> torch.Tensor:
    """(B, T, H, W, 3) uint8 -> (B, T, 3, H, W) float32 with ImageNet mean and deviation; channels last in memory."""
    width = images.shape[3]
    mean, deviation = torch.tensor(IMAGE_MEAN) * 255, torch.tensor(IMAGE_DEVIATION) * 255
    # Whole rows of numbers: a CPU loop over the last dimension of 3 would take ten times as long.
    scale, shift = ((1 / deviation).repeat(width), (-mean / deviation).repeat(width))
    rows = _empty_floats(images.flatten(3)).copy_(images.flatten(3))  # (B, T, H, W * 3)
    rows.mul_(scale.to(rows.device, non_blocking=True)).add_(shift.to(rows.device, non_blocking=True))
    return rows.view(images.shape).permute(0, 1, 4, 2, 3)


def _empty_floats(like: torch.Tensor) -> torch.Tensor:
    if like.device.type == "cpu":
        # NumPy asks for huge pages: faulting in 35 MB of small ones costs more than the arithmetic.
        return torch.from_numpy(np.empty(like.shape, np.float32))
    return torch.empty(like.shape, device=like.device)


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`, from pinned memory where that lets the copy run beside the device's work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _first_masks(first: torch.Tensor, plans: Sequence[ClipPlan], num_slots: int) -> torch.Tensor:
    """(B, K, H, W) float32 {0, 1}: the slots of first (B, H, W), each damaged as its plan says."""
    slots = torch.arange(1, num_slots + 1, device=first.device)[None, :, None, None]
    masks = first[:, None] == slots
    if all(plan.damage_iou is None for plan in plans):
        return masks.float()
    each = [(plan, slot) for plan in plans for slot in range(num_slots)]
    damaged = damage_masks(
        masks.flatten(0, 1),
        keys=[plan.damage_key for plan, _ in each],
        ious=[plan.damage_iou for plan, _ in each],
        slots=[slot for _, slot in each],
    )
    return damaged.view(masks.shape).float()


def _listed_ids(plans: Sequence[ClipPlan]) -> torch.Tensor:
    """(B, P) int64: object_ids of each plan, zeros behind the shorter ones; P >= 1."""
    longest = max(1, *(len(plan.object_ids) for plan in plans))
    return torch.tensor([[*plan.object_ids, *(0,) * (longest - len(plan.object_ids))] for plan in plans])
