"""From an executor's pixels to a training batch: object ids to slots, normalisation, damaged first masks.

Runs on the training device without waiting for it, except inside the first-mask damage.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np
import torch

from pipelines.damage import FULL, damage_masks
from pipelines.recipes.request import Recipe
from pipelines.spline import bend
from pipelines.types import IMAGENET, VOID, AreaRule, Batch, ClipPixels, ClipPlan, Normalisation
from shards.masks import SOFT_THRESHOLD

IMAGE_MEAN = IMAGENET.mean
IMAGE_DEVIATION = IMAGENET.deviation
"""Of ImageNet's RGB on the 0..1 scale."""

NUM_LABELS = 256


def make_assembly(recipe: Recipe, device: torch.device) -> partial[tuple[Batch, torch.Tensor]]:
    """`assemble` for the clips of a recipe."""
    return partial(
        assemble,
        num_slots=recipe.num_slots,
        area_rule=recipe.area_rule,
        normalisation=recipe.normalisation,
        device=device,
    )


def assemble(
    pixels: ClipPixels,
    plans: Sequence[ClipPlan],
    *,
    num_slots: int,
    step: int,
    device: torch.device | str,
    area_rule: AreaRule | None = None,
    normalisation: Normalisation = IMAGENET,
) -> tuple[Batch, torch.Tensor]:
    """The batch on `device`, and how many of its clips show no object in frame 0, a () int64 tensor there.

    Frames not bent yet are bent by the splines of their plans. The first `num_slots` ids of plan.object_ids that are
    present in the first frame, or fulfil area_rule, or whose plan lists its slots, become slots 1, 2, ...; all other
    objects become background. A soft mask is slot 1 where its level is at least 128. Outside plan.content all is black
    and void.
    Raises ValueError unless there is one plan per clip and 1 <= num_slots < 255.
    """
    if not 1 <= num_slots < VOID:
        raise ValueError(f"num_slots must be in 1..{VOID - 1}, got {num_slots}")
    if len(plans) != len(pixels.images):
        raise ValueError(f"{len(plans)} plans for the pixels of {len(pixels.images)} clips")
    device = torch.device(device)
    images, labels, annotated = (move(t, device) for t in (pixels.images, pixels.labels, pixels.annotated))
    given = ClipPixels(images, _where_annotated(labels, annotated, 0), annotated, pixels.soft)
    bent = _blank(given if pixels.bent else bend(given, plans), plans)
    if bent.soft:
        masks = (bent.labels >= SOFT_THRESHOLD).to(torch.uint8)
        num_objects = masks[:, 0].flatten(1).amax(dim=1).long()
        first, clean = bent.labels[:, :1], bent.labels[:, :1].float() / FULL
    else:
        slot_ids = choose_objects(bent.labels, plans, num_slots, area_rule)
        masks, num_objects = slot_masks(bent.labels, slot_ids), (slot_ids > 0).sum(dim=1)
        first, clean = masks[:, :1] == torch.arange(1, num_slots + 1, device=device)[None, :, None, None], None
    batch = Batch(
        step=step,
        images=normalise(bent.images, normalisation),
        masks=_where_annotated(masks, annotated, VOID),
        num_objects=num_objects,
        first_masks=_damaged(first, plans, soft=bent.soft),
        annotated=annotated,
        plans=tuple(plans),
        clean_masks=clean,
        normalisation=normalisation,
    )
    return batch, (~_shows_object(masks, num_objects, plans)).sum()


def choose_objects(
    labels: torch.Tensor, plans: Sequence[ClipPlan], num_slots: int, area_rule: AreaRule | None = None
) -> torch.Tensor:
    """(B, K) uint8: the data set's id of slot k + 1, 0 for unused slots, which come last.

    labels (B, T, H, W) uint8. Without area_rule an id needs one pixel in frame 0, as RDE counts for DAVIS and
    YouTube-VOS; BL30K has a rule. Of a plan that lists its slots every id is one.
    """
    listed = _listed_ids(plans).to(labels.device, non_blocking=True)  # (B, P)
    areas = count_labels(labels[:, : 1 if area_rule is None else 3])
    areas = areas.gather(2, listed[:, None].expand(-1, areas.shape[1], -1))  # (B, 1 or 3, P)
    eligible = areas[:, 0] > 0
    if area_rule is not None:
        stays_small = areas[:, 1:].amax(dim=1) < area_rule.later
        eligible = (areas[:, 0] > area_rule.large) | ((areas[:, 0] > area_rule.small) & stays_small)
    given = torch.tensor([plan.labels.listed for plan in plans]).to(labels.device, non_blocking=True)
    eligible = (eligible | given[:, None]) & (listed > 0)
    slots = torch.where(eligible, eligible.cumsum(dim=1), 0).clamp(max=num_slots + 1)
    # Column 0 takes the ids that are passed over, the last one the surplus; both are cut off.
    chosen = torch.zeros(len(plans), num_slots + 2, dtype=torch.long, device=labels.device)
    return chosen.scatter_(1, slots, listed)[:, 1:-1].to(torch.uint8)


def count_labels(labels: torch.Tensor) -> torch.Tensor:
    """(B, T, 256) int32: pixels of every label in labels (B, T, H, W) uint8."""
    flat = labels.flatten(2).long()  # (B, T, H * W)
    counts = torch.zeros(*flat.shape[:2], NUM_LABELS, dtype=torch.int32, device=labels.device)
    return counts.scatter_add_(2, flat, torch.ones_like(flat, dtype=torch.int32))


def slot_masks(labels: torch.Tensor, slot_ids: torch.Tensor) -> torch.Tensor:
    """Object ids (B, T, H, W) to slots of the same shape: 0 background, 1..K, 255 where the label is void.

    slot_ids (B, K) uint8 from choose_objects.
    """
    return (slots_by_table if labels.device.type == "cpu" else slots_by_comparing)(labels, slot_ids)


def slots_by_comparing(labels: torch.Tensor, slot_ids: torch.Tensor) -> torch.Tensor:
    """`slot_masks` with one comparison for each slot."""
    masks = (labels == VOID) * torch.tensor(VOID, dtype=torch.uint8)
    for slot in range(slot_ids.shape[1]):
        object_id = slot_ids[:, slot, None, None, None]
        masks += (labels == object_id) * ((object_id > 0) * torch.tensor(slot + 1, dtype=torch.uint8))
    return masks


def slots_by_table(labels: torch.Tensor, slot_ids: torch.Tensor) -> torch.Tensor:
    """`slot_masks` on the CPU, where looking labels up costs an eighth of comparing them."""
    masks = torch.empty_like(labels)
    tables = np.zeros((len(labels), NUM_LABELS), np.uint8)
    np.put_along_axis(tables, slot_ids.numpy()[:, ::-1], np.arange(slot_ids.shape[1], 0, -1)[None].astype(np.uint8), 1)
    tables[:, 0], tables[:, VOID] = 0, VOID
    for table, label_maps, out in zip(tables, labels.numpy(), masks.numpy(), strict=True):
        cv2.LUT(label_maps.reshape(-1, labels.shape[-1]), table, dst=out.reshape(-1, labels.shape[-1]))
    return masks


def _where_annotated(labels: torch.Tensor, annotated: torch.Tensor, otherwise: int) -> torch.Tensor:
    """labels (B, T, H, W) where the frame is annotated (B, T), else this level; on the CPU no copy if all are."""
    if annotated.device.type == "cpu" and bool(annotated.all()):
        return labels
    return torch.where(annotated[:, :, None, None], labels, otherwise)


def _shows_object(masks: torch.Tensor, num_objects: torch.Tensor, plans: Sequence[ClipPlan]) -> torch.Tensor:
    """(B,) bool: whether frame 0 shows a slot. Slots that were chosen because they are seen need no second look."""
    if not any(plan.labels.listed for plan in plans):
        return num_objects > 0
    return ((masks[:, 0] > 0) & (masks[:, 0] < VOID)).flatten(1).any(dim=1)


def normalise(images: torch.Tensor, normalisation: Normalisation = IMAGENET) -> torch.Tensor:
    """(B, T, H, W, 3) uint8 -> (B, T, 3, H, W) float32, mean and deviation taken out; channels last in memory."""
    width = images.shape[3]
    mean, deviation = torch.tensor(normalisation.mean) * 255, torch.tensor(normalisation.deviation) * 255
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


def _blank(pixels: ClipPixels, plans: Sequence[ClipPlan]) -> ClipPixels:
    """The pixels with black and void outside of each plan's content; copies where anything changes."""
    if all(plan.content is None for plan in plans):
        return pixels
    images, labels = pixels.images.clone(), pixels.labels.clone()
    for image, label_map, plan in zip(images, labels, plans, strict=True):
        if plan.content is None:
            continue
        top, left, height, width = plan.content
        rows, columns = slice(top, top + height), slice(left, left + width)
        for target, level in ((image, 0), (label_map, VOID)):
            kept = target[:, rows, columns].clone()
            target.fill_(level)
            target[:, rows, columns] = kept
    return ClipPixels(images, labels, pixels.annotated, pixels.soft)


def _damaged(first: torch.Tensor, plans: Sequence[ClipPlan], *, soft: bool) -> torch.Tensor:
    """(B, K, H, W) float32 in 0..1: masks of first (B, K, H, W), bool or soft levels, damaged as the plans say."""
    if all(plan.damage_iou is None for plan in plans):
        return first.float() / (FULL if soft else 1)
    each = [(plan, slot) for plan in plans for slot in range(first.shape[1])]
    damaged = damage_masks(
        first.flatten(0, 1),
        keys=[plan.damage_key for plan, _ in each],
        ious=[plan.damage_iou for plan, _ in each],
        slots=[slot for _, slot in each],
        soft=soft,
    )
    damaged = damaged.view(first.shape).float()
    return damaged / FULL if soft else damaged


def _listed_ids(plans: Sequence[ClipPlan]) -> torch.Tensor:
    """(B, P) int64: object_ids of each plan, zeros behind the shorter ones; P >= 1."""
    longest = max(1, *(len(plan.object_ids) for plan in plans))
    return torch.tensor([[*plan.object_ids, *(0,) * (longest - len(plan.object_ids))] for plan in plans])
