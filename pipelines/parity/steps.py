"""The two steps after the warp, spline and damage, in each of their forms: CPU, batched for devices, published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.damage import IOU_EPSILON, damage_mask, damage_together
from pipelines.executors.paper_still import bend
from pipelines.order.streams import WORD, Stream, StreamName
from pipelines.spline import FrameBender, draw_points, sample_linear, sample_nearest, sampling_maps
from pipelines.types import VOID, ClipPixels, ClipPlan

POINTS, DEVIATION = 12, 0.02
DRAWS = 8
BATCHED, PUBLISHED = "batched", "paper"


class Counts(Protocol):
    """What a comparison is added to."""

    def add_images(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """Two images of one shape."""

    def add_labels(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """Two label maps of one shape."""


def compare_splines(pixels: ClipPixels, plan: ClipPlan, device: torch.device, counts: Callable[[str], Counts]) -> None:
    """Bend the frames of one clip by a spline each as stage 0 draws them, in all three forms."""
    size = pixels.labels.shape[2], pixels.labels.shape[3]
    bender = FrameBender(size)
    for frame, (image, labels) in enumerate(zip(pixels.images[0].numpy(), pixels.labels[0].numpy(), strict=True)):
        points = draw_points(Stream(plan.damage_key, StreamName.SPLINE, frame), POINTS, min(size), DEVIATION)
        ours, our_labels = image.copy(), labels.copy()
        bender(ours, our_labels, points)
        maps = sampling_maps([points], size, device)
        batched = sample_linear(torch.from_numpy(image)[None].to(device), maps)[0]
        batched_labels = sample_nearest(torch.from_numpy(labels)[None].to(device), maps)[0]
        published, published_labels = bend(image, labels, points)
        for name, bent, bent_labels in (
            (BATCHED, batched, batched_labels),
            (PUBLISHED, torch.from_numpy(published), torch.from_numpy(published_labels)),
        ):
            counts(name).add_images(torch.from_numpy(ours), bent)
            counts(name).add_labels(torch.from_numpy(our_labels), bent_labels)


def compare_damage(pixels: ClipPixels, plan: ClipPlan, device: torch.device, counts: Callable[[str], Counts]) -> None:
    """Damage the first masks of one clip on the CPU and batched; nothing is counted without an object."""
    masks = list(_first_masks(pixels, plan))
    if not masks or plan.damage_iou is None:
        return
    slots = range(len(masks))
    together = damage_together(
        torch.from_numpy(np.stack(masks)).to(device),
        [plan.damage_key] * len(masks),
        [plan.damage_iou] * len(masks),
        list(slots),
    )
    for slot, mask in enumerate(masks):
        ours = torch.from_numpy(damage_mask(mask, plan.damage_key, plan.damage_iou, slot=slot))
        counts(BATCHED).add_labels(ours, together[slot])


def damage_ious(pixels: ClipPixels, plan: ClipPlan) -> Iterator[tuple[float, float]]:
    """For each object of a clip's first frame: the IoU its damaged mask ends with here, and in the published loop.

    DRAWS times each, by keys that follow the plan's.
    """
    if plan.damage_iou is None:
        return
    generator = np.random.default_rng(plan.damage_key)
    for slot, mask in enumerate(_first_masks(pixels, plan)):
        for draw in range(DRAWS):
            key = ((plan.damage_key[0] + draw) % WORD, plan.damage_key[1])
            ours = damage_mask(mask, key, plan.damage_iou, slot=slot)
            yield overlap(ours, mask), overlap(published_damage(mask, plan.damage_iou, generator), mask)


def published_damage(mask: NDArray[np.uint8], iou: float, generator: np.random.Generator) -> NDArray[np.uint8]:
    """RDE's perturbation as its paper's code does it, one random number after the other; mask (H, W) of 0 and 1."""
    height, width = mask.shape
    edited = mask * np.uint8(255)
    for _ in range(250):
        for _ in range(4):
            left, top = int(generator.integers(width)), int(generator.integers(height))
            right, bottom = int(generator.integers(left + 1, width + 1)), int(generator.integers(top + 1, height + 1))
            if generator.random() < 0.1:
                edited[(top + bottom) // 2, (left + right) // 2] = 255 * int(generator.integers(2))
            change = cv2.dilate if generator.random() < 0.5 else cv2.erode
            size, kind = int(generator.integers(3, 10)), int(generator.integers(4))
            shape = cv2.MORPH_RECT if kind == 0 else cv2.MORPH_ELLIPSE
            sides = ((size, size), (size, size), (size, size // 2), (size // 2, size))[kind]
            element = cv2.getStructuringElement(shape, sides)
            edited[top:bottom, left:right] = change(edited[top:bottom, left:right].copy(), element)
        if overlap(edited, mask) < iou:
            break
    return (edited > 0).astype(np.uint8)


def overlap(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> float:
    """IoU of what is not 0."""
    both, either = ((ours > 0) & (theirs > 0)).sum(), ((ours > 0) | (theirs > 0)).sum()
    return float((both + IOU_EPSILON) / (either + IOU_EPSILON))


def _first_masks(pixels: ClipPixels, plan: ClipPlan) -> Iterator[NDArray[np.uint8]]:
    """Masks of 0 and 1 of the plan's objects that the first frame shows."""
    first = pixels.labels[0, 0].cpu().numpy()
    for object_id in plan.object_ids:
        if object_id != VOID and (first == object_id).any():
            yield (first == object_id).astype(np.uint8)
