"""Damage to the given masks of a clip's first frame: random growing and shrinking until the IoU falls below a target.

The edits are a table drawn in advance from the clip's damage key, so the CPU and the batched version apply the same
ones and end with equal masks. Soft masks are edited as grey pictures: growing takes the largest level around a pixel,
shrinking the smallest, and the IoU counts every level above 0.
Source: RDE, Li et al. 2022, mask perturbation (up to 250 rounds of 4 edits).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipelines.order.streams import Stream, StreamName

MAX_ROUNDS = 250
EDITS_PER_ROUND = 4
WORDS_PER_EDIT = 8
SPECK_PROBABILITY = 0.1
DILATE_PROBABILITY = 0.5
SIZES = range(3, 10)
IOU_EPSILON = 1e-6
FULL = 255
"""Level of a soft mask where the object is certain."""
ROUNDS_PER_CHECK = 8
"""Rounds between two questions to the device whether all masks are done; each costs a wait for it."""


class Damage(Protocol):
    """damage_mask or damage_soft_mask."""

    def __call__(
        self, mask: NDArray[np.uint8], key: tuple[int, int], iou: float, *, slot: int = 0
    ) -> NDArray[np.uint8]:
        """A damaged copy."""


class Edits(NamedTuple):
    """MAX_ROUNDS * EDITS_PER_ROUND edits, one per row.

    boxes (E, 4) int64: x0, y0, x1, y1, ends exclusive, never empty. specks (E,) int64: what the box centre is set to
    first, 0 or 1, or -1 to leave it. dilates (E,) bool: the content of the box grows, else it shrinks; nothing outside
    the box is looked at. elements (E,) int64: row of structuring_elements().
    """

    boxes: NDArray[np.int64]
    specks: NDArray[np.int64]
    dilates: NDArray[np.bool_]
    elements: NDArray[np.int64]


def damage_mask(mask: NDArray[np.uint8], key: tuple[int, int], iou: float, *, slot: int = 0) -> NDArray[np.uint8]:
    """Copy of `mask` (H, W; object where not 0) edited until its IoU with the original is below `iou`; values 0 and 1.

    key: the plan's damage_key; slot: which object of the clip, so that each gets edits of its own. An empty mask stays
    empty: the published code gives such a clip one random blob as its object.
    """
    return _edit((mask != 0).astype(np.uint8), draw_edits(key, slot, (mask.shape[0], mask.shape[1])), iou, full=1)


def damage_soft_mask(mask: NDArray[np.uint8], key: tuple[int, int], iou: float, *, slot: int = 0) -> NDArray[np.uint8]:
    """`damage_mask` for a soft mask: (H, W) levels, 0 background to 255 object, in and out.

    A mask that reaches 255 nowhere stays as it is, as published.
    """
    if not (mask == FULL).any():
        return mask.copy()
    return _edit(mask, draw_edits(key, slot, (mask.shape[0], mask.shape[1])), iou, full=FULL)


def _edit(original: NDArray[np.uint8], edits: Edits, iou: float, *, full: int) -> NDArray[np.uint8]:
    """Copy of `original` with round after round of edits, until the first round that ends below `iou`."""
    edited = original.copy()
    area = cv2.countNonZero(original)
    if area == 0:
        return edited
    for first in range(0, len(edits.specks), EDITS_PER_ROUND):
        for index in range(first, first + EDITS_PER_ROUND):
            _apply_edit(edited, edits, index, full)
        both = cv2.countNonZero(cv2.min(edited, original))
        if _is_below(both, area + cv2.countNonZero(edited) - both, iou):
            break
    return edited


def damage_masks(
    masks: torch.Tensor,
    keys: Sequence[tuple[int, int]],
    ious: Sequence[float | None],
    slots: Sequence[int],
    *,
    soft: bool = False,
) -> torch.Tensor:
    """`damage_mask` for N masks at once on their device, bit for bit equal to it; (N, H, W) uint8, values 0 and 1.

    masks (N, H, W), object where not 0; keys, ious, slots: N each, None leaves a mask as it is. On the CPU each mask
    goes through `damage_mask`, which is faster there. soft: masks are uint8 levels, and so is the result, by
    `damage_soft_mask`.
    """
    if not len(masks) == len(keys) == len(ious) == len(slots):
        raise ValueError(f"{len(masks)} masks, {len(keys)} keys, {len(ious)} ious, {len(slots)} slots: must be equal")
    if masks.device.type == "cpu":
        if soft:
            return _damage_one_by_one(masks, keys, ious, slots, damage_soft_mask)
        return _damage_one_by_one(masks != 0, keys, ious, slots, damage_mask)
    return damage_together(masks, keys, ious, slots, soft=soft)


def damage_together(
    masks: torch.Tensor,
    keys: Sequence[tuple[int, int]],
    ious: Sequence[float | None],
    slots: Sequence[int],
    *,
    soft: bool = False,
) -> torch.Tensor:
    """The batched form of `damage_masks`: all masks take each edit in one go, those that are done keep still."""
    original = masks if soft else masks != 0
    size = (masks.shape[1], masks.shape[2])
    wanted = torch.tensor([-1.0 if iou is None else iou for iou in ious], dtype=torch.float64)
    wanted = wanted.to(masks.device, non_blocking=True)
    table = _EditTable.of([draw_edits(key, slot, size) for key, slot in zip(keys, slots, strict=True)], masks.device)
    area = (original > 0).sum(dim=(1, 2))
    active = (area > 0) & (wanted >= 0)
    if soft:
        active = active & (original == FULL).any(dim=2).any(dim=1)
    edited = original
    for done in range(MAX_ROUNDS):
        if done % ROUNDS_PER_CHECK == 0 and not bool(active.any()):
            break
        for index in range(done * EDITS_PER_ROUND, (done + 1) * EDITS_PER_ROUND):
            edited = torch.where(active[:, None, None], table.apply(edited, index), edited)
        shared = ((edited > 0) & (original > 0)).sum(dim=(1, 2))
        union = area + (edited > 0).sum(dim=(1, 2)) - shared
        active = active & ((shared.double() + IOU_EPSILON) / (union.double() + IOU_EPSILON) >= wanted)
    return edited.to(torch.uint8)


def draw_edits(key: tuple[int, int], slot: int, size: tuple[int, int]) -> Edits:
    """All edits that damaging a mask of `size` (height, width) may need; the first ones do not depend on how many."""
    count = MAX_ROUNDS * EDITS_PER_ROUND
    numbers = Stream(key, StreamName.DAMAGE, slot).uniforms(count * WORDS_PER_EDIT).reshape(count, WORDS_PER_EDIT)
    left, top = _below(numbers[:, 0], size[1]), _below(numbers[:, 1], size[0])
    right = left + 1 + _below(numbers[:, 2], size[1] - left)
    bottom = top + 1 + _below(numbers[:, 3], size[0] - top)
    speck = numbers[:, 4] / SPECK_PROBABILITY  # below 1 for a speck, its two halves are the two values
    kind, length = _below(numbers[:, 6], 4), _below(numbers[:, 7], len(SIZES))
    return Edits(
        boxes=np.stack([left, top, right, bottom], axis=1),
        specks=np.where(speck < 1, (speck >= 0.5).astype(np.int64), -1),
        dilates=numbers[:, 5] < DILATE_PROBABILITY,
        elements=kind * len(SIZES) + length,
    )


@cache
def structuring_elements() -> tuple[NDArray[np.uint8], ...]:
    """Rectangles, ellipses, flat ellipses and tall ellipses, each in seven sizes."""
    square = [(cv2.MORPH_RECT, size, size) for size in SIZES]
    round_ = [(cv2.MORPH_ELLIPSE, size, size) for size in SIZES]
    flat = [(cv2.MORPH_ELLIPSE, size, size // 2) for size in SIZES]
    tall = [(cv2.MORPH_ELLIPSE, size // 2, size) for size in SIZES]
    kinds = [*square, *round_, *flat, *tall]
    return tuple(np.asarray(cv2.getStructuringElement(shape, (w, h)), np.uint8) for shape, w, h in kinds)


def _apply_edit(mask: NDArray[np.uint8], edits: Edits, index: int, full: int) -> None:
    x0, y0, x1, y1 = edits.boxes[index].tolist()
    if edits.specks[index] >= 0:
        mask[(y0 + y1) // 2, (x0 + x1) // 2] = edits.specks[index] * full
    # A copy, because OpenCV must not see the pixels around the box.
    box = mask[y0:y1, x0:x1].copy()
    element = structuring_elements()[edits.elements[index]]
    mask[y0:y1, x0:x1] = cv2.dilate(box, element) if edits.dilates[index] else cv2.erode(box, element)


class _EditTable(NamedTuple):
    """The edits of N masks on a device; tensors (E, N, ...), so that one edit of all masks is one row."""

    boxes: torch.Tensor
    specks: torch.Tensor
    dilates: torch.Tensor
    kernels: torch.Tensor  # (elements, 9, 9)
    elements: torch.Tensor

    @classmethod
    def of(cls, edits: Sequence[Edits], device: torch.device) -> _EditTable:
        columns = [torch.from_numpy(np.stack(column, axis=1)) for column in zip(*edits, strict=True)]
        boxes, specks, dilates, elements = (column.to(device, non_blocking=True) for column in columns)
        return cls(boxes, specks, dilates, _kernels().to(device, non_blocking=True), elements)

    def apply(self, masks: torch.Tensor, index: int) -> torch.Tensor:
        """Edit number `index` of every mask; masks (N, H, W) bool, or uint8 levels."""
        rows = torch.arange(masks.shape[1], device=masks.device)[None, :, None]
        columns = torch.arange(masks.shape[2], device=masks.device)[None, None, :]
        x0, y0, x1, y1 = self.boxes[index].t()[..., None, None]
        speck = self.specks[index][:, None, None]
        at_centre = (speck >= 0) & (rows == (y0 + y1) // 2) & (columns == (x0 + x1) // 2)
        levels = masks.dtype == torch.uint8
        masks = torch.where(at_centre, (speck == 1).to(torch.uint8) * FULL if levels else speck == 1, masks)
        inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
        # Shrinking is growing the background of the box.
        inverted = ~self.dilates[index][:, None, None]
        kernels = self.kernels[self.elements[index]]  # (N, 9, 9): one per mask
        if levels:
            inversion = inverted.to(torch.uint8) * FULL
            return torch.where(inside, _grow_levels((masks ^ inversion) * inside, kernels) ^ inversion, masks)
        growing = (inside & (masks ^ inverted)).float()[None]
        hits = F.conv2d(growing, kernels[:, None], padding=kernels.shape[-1] // 2, groups=len(masks))[0]
        return torch.where(inside, (hits > 0.5) ^ inverted, masks)


def _grow_levels(levels: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """The largest level under each mask's element around each pixel; levels (N, H, W) uint8, kernels (N, 9, 9)."""
    side, height = kernels.shape[-1], levels.shape[1]
    padded = F.pad(levels, (side // 2,) * 4)
    grown = torch.zeros_like(levels)
    for row in range(side):
        windows = padded[:, row : row + height].unfold(2, side, 1)  # (N, H, W, 9), a view
        under = windows * kernels[:, None, None, row].to(torch.uint8)
        grown = torch.maximum(grown, under.amax(dim=3))
    return grown


@cache
def _kernels() -> torch.Tensor:
    """The structuring elements in squares of one size, their anchors (OpenCV: half the side) in the middle."""
    reach = max(SIZES) // 2
    kernels = torch.zeros(len(structuring_elements()), 2 * reach + 1, 2 * reach + 1)
    for kernel, element in zip(kernels, structuring_elements(), strict=True):
        height, width = element.shape
        top, left = reach - height // 2, reach - width // 2
        kernel[top : top + height, left : left + width] = torch.from_numpy(element)
    return kernels


def _damage_one_by_one(
    masks: torch.Tensor,
    keys: Sequence[tuple[int, int]],
    ious: Sequence[float | None],
    slots: Sequence[int],
    damage: Damage,
) -> torch.Tensor:
    damaged = masks.to(torch.uint8, copy=True)
    for mask, key, iou, slot in zip(damaged.numpy(), keys, ious, slots, strict=True):
        if iou is not None:
            mask[:] = damage(mask, key, iou, slot=slot)
    return damaged


def _is_below(shared: int, union: int, iou: float) -> bool:
    return (shared + IOU_EPSILON) / (union + IOU_EPSILON) < iou


def _below(numbers: NDArray[np.float64], counts: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Numbers of [0, 1) -> whole numbers of 0 .. counts - 1."""
    return (numbers * counts).astype(np.int64)
