"""Mask damage: equal on CPU and device, true to the published distribution, edits as defined."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from pipelines.damage import Edits, damage_mask, damage_masks, damage_together, draw_edits, structuring_elements


def ellipse(height: int, width: int, shape: tuple[int, int]) -> np.ndarray:
    """An ellipse of height x width pixels in the middle of a mask of `shape`."""
    mask = np.zeros(shape, np.uint8)
    cv2.ellipse(mask, (shape[1] // 2, shape[0] // 2), (width // 2, height // 2), 0, 0, 360, 1, -1)
    return mask


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def final_ious(height: int, width: int, count: int) -> np.ndarray:
    mask = ellipse(height, width, (384, 384))
    targets = 0.85 + 0.15 * np.random.default_rng(0).random(count)
    return np.array([overlap(mask, damage_mask(mask, (n, 1), t)) for n, t in enumerate(targets)])


def test_large_objects_end_with_the_published_overlap() -> None:
    ious = final_ious(180, 120, 600)
    assert np.mean(ious) == pytest.approx(0.905, abs=0.012)
    assert np.percentile(ious, [5, 50, 95]) == pytest.approx([0.837, 0.904, 0.976], abs=0.02)


def test_small_objects_end_with_the_published_overlap() -> None:
    assert np.mean(final_ious(20, 16, 600)) == pytest.approx(0.65, abs=0.03)


def test_damage_stops_at_the_first_round_below_the_target() -> None:
    mask = ellipse(60, 40, (96, 96))
    for number in range(40):
        for target in (0.99, 0.9, 0.8):
            assert overlap(mask, damage_mask(mask, (number, 2), target)) < target


def test_damage_gives_up_after_250_rounds() -> None:
    mask = ellipse(6, 5, (10, 12))
    assert np.array_equal(damage_mask(mask, (0, 2), 0.0), _slow_damage(mask, (0, 2), 0.0))


def _slow_damage(mask: np.ndarray, key: tuple[int, int], target: float, slot: int = 0) -> np.ndarray:
    """Section 2.4 of the RDE description written out pixel by pixel."""
    edited = mask.astype(int)
    table = draw_edits(key, slot, mask.shape)
    for index in range(1000):
        _slow_edit(edited, table, index)
        inside, either = ((edited & mask) > 0).sum(), ((edited | mask) > 0).sum()
        if index % 4 == 3 and (inside + 1e-6) / (either + 1e-6) < target:
            break
    return edited.astype(np.uint8)


def _slow_edit(edited: np.ndarray, table: Edits, index: int) -> None:
    x0, y0, x1, y1 = table.boxes[index]
    if table.specks[index] >= 0:
        edited[(y0 + y1) // 2, (x0 + x1) // 2] = table.specks[index]
    box = edited[y0:y1, x0:x1].copy()
    element = structuring_elements()[table.elements[index]]
    offsets = np.argwhere(element) - np.array(element.shape) // 2
    limit = max if table.dilates[index] else min
    for y in range(box.shape[0]):
        for x in range(box.shape[1]):
            near = [(y + dy, x + dx) for dy, dx in offsets]
            values = [box[p] for p in near if 0 <= p[0] < box.shape[0] and 0 <= p[1] < box.shape[1]]
            if values:
                edited[y0 + y, x0 + x] = limit(values)


def test_edits_are_what_the_description_says_pixel_by_pixel() -> None:
    for number, shape in enumerate([(20, 26), (9, 14), (31, 8)]):
        mask = ellipse(shape[0] // 2, shape[1] // 2, shape)
        for slot in (0, 1):
            expected = _slow_damage(mask, (number, 3), 0.7, slot)
            assert np.array_equal(damage_mask(mask, (number, 3), 0.7, slot=slot), expected)


@pytest.mark.parametrize("shape", [(50, 70), (64, 64), (17, 33), (5, 5)])
def test_batched_damage_is_bit_equal_to_the_damage_of_each_mask(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[0])
    masks = np.stack([ellipse(*rng.integers(1, min(shape), 2), shape) for _ in range(10)])
    masks[3] = 0
    targets = [*(0.8 + 0.2 * rng.random(9)), None]
    keys, slots = [(n, 9) for n in range(10)], [n % 2 for n in range(10)]
    together = damage_together(torch.from_numpy(masks), keys, targets, slots)
    for n, target in enumerate(targets):
        expected = masks[n] if target is None else damage_mask(masks[n], keys[n], target, slot=slots[n])
        assert np.array_equal(together[n].numpy(), expected)
    assert torch.equal(damage_masks(torch.from_numpy(masks), keys, targets, slots), together)


def test_a_mask_does_not_depend_on_the_masks_beside_it() -> None:
    masks = torch.from_numpy(np.stack([ellipse(20 + n, 30, (48, 64)) for n in range(4)]))
    keys, targets = [(n, 1) for n in range(4)], [0.9, 0.6, 0.95, 0.85]
    together = damage_together(masks, keys, targets, [0, 1, 0, 1])
    for n in range(4):
        alone = damage_together(masks[n : n + 1], [keys[n]], [targets[n]], [n % 2])
        assert torch.equal(alone[0], together[n])


def test_the_slots_of_a_clip_get_different_edits() -> None:
    mask = ellipse(60, 40, (96, 96))
    first, second = (damage_mask(mask, (5, 5), 0.9, slot=slot) for slot in (0, 1))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, damage_mask(mask, (5, 5), 0.9, slot=0))


def test_an_empty_mask_stays_empty_and_the_input_stays_as_it_is() -> None:
    empty = np.zeros((40, 40), np.uint8)
    assert not damage_mask(empty, (1, 1), 0.9).any()
    mask = ellipse(20, 20, (40, 40)) * 255
    before = mask.copy()
    assert set(np.unique(damage_mask(mask, (1, 1), 0.9)).tolist()) == {0, 1}
    assert np.array_equal(mask, before)


def test_edits_have_the_published_probabilities_and_stay_inside() -> None:
    tables = [draw_edits((n, 4), 0, (30, 50)) for n in range(20)]
    boxes = np.concatenate([table.boxes for table in tables])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes[:, 2].max() == 50
    assert boxes[:, 3].max() == 30
    assert boxes[:, 0].max() == 49
    specks = np.concatenate([table.specks for table in tables])
    assert [(specks == value).mean() for value in (0, 1)] == pytest.approx([0.05, 0.05], abs=0.01)
    assert np.concatenate([table.dilates for table in tables]).mean() == pytest.approx(0.5, abs=0.02)
    counts = np.bincount(np.concatenate([table.elements for table in tables]), minlength=28)
    assert counts / len(boxes) == pytest.approx(np.full(28, 1 / 28), abs=0.006)
    assert {element.shape for element in structuring_elements()} == {
        shape for s in range(3, 10) for shape in ((s, s), (s, s // 2), (s // 2, s))
    }


def test_the_first_edits_of_a_key_are_known() -> None:
    table = draw_edits((1, 2), 0, (384, 384))
    assert table.boxes[:2].tolist() == [[374, 38, 382, 273], [180, 311, 230, 383]]
    assert table.elements[:4].tolist() == [26, 0, 15, 9]


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 masks, 1 keys, 2 ious, 2 slots"):
        damage_masks(torch.zeros(2, 8, 8), [(0, 0)], [0.9, 0.9], [0, 1])
