"""Ids to slots, normalisation and first masks, against answers worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipelines.assembly import assemble, slots_by_comparing, slots_by_table
from pipelines.damage import damage_mask
from pipelines.types import VOID, AreaRule, Batch, ClipPixels, ClipPlan
from tests.pipelines.clips import blobs, plain_plan


def pixels_of(
    labels: list[list[list[list[int]]]] | np.ndarray, annotated: list[list[bool]] | None = None
) -> ClipPixels:
    """Pixels with the given labels (B, T, H, W) and images counting up."""
    label_maps = torch.tensor(np.asarray(labels), dtype=torch.uint8)
    images = torch.arange(label_maps.numel() * 3).remainder(256).to(torch.uint8).view(*label_maps.shape, 3)
    every = torch.ones(label_maps.shape[:2], dtype=torch.bool)
    return ClipPixels(images, label_maps, every if annotated is None else torch.tensor(annotated))


def plans_of(*object_ids: tuple[int, ...], **changes: object) -> list[ClipPlan]:
    return [
        dataclasses.replace(plain_plan((2, 3)), number=n, object_ids=ids, **changes) for n, ids in enumerate(object_ids)
    ]


def batch_of(pixels: ClipPixels, plans: list[ClipPlan], num_slots: int = 2) -> tuple[Batch, int]:
    batch, misses = assemble(pixels, plans, num_slots=num_slots, step=7, device="cpu")
    return batch, int(misses)


def test_ids_become_slots_in_the_plans_order_of_preference() -> None:
    labels = [[[[0, 4, 9], [5, 4, 255]], [[9, 9, 0], [4, 5, 255]]]]
    batch, misses = batch_of(pixels_of(labels), plans_of((9, 4, 5)))
    assert batch.masks.tolist() == [[[[0, 2, 1], [0, 2, 255]], [[1, 1, 0], [2, 0, 255]]]]
    assert batch.num_objects.tolist() == [2]
    assert misses == 0


def test_ids_that_did_not_survive_the_warp_are_passed_over() -> None:
    labels = [[[[0, 4, 0], [0, 4, 0]], [[8, 8, 7], [4, 7, 0]]]]  # 7 and 8 show up only in the second frame
    batch, misses = batch_of(pixels_of(labels), plans_of((8, 7, 4)))
    assert batch.masks.tolist() == [[[[0, 1, 0], [0, 1, 0]], [[0, 0, 0], [1, 0, 0]]]]
    assert batch.num_objects.tolist() == [1]
    assert batch.first_masks.tolist() == [[[[0, 1, 0], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]]]]
    assert misses == 0


def test_ids_the_plan_does_not_list_are_background() -> None:
    batch, _ = batch_of(pixels_of([[[[3, 4, 5], [3, 4, 5]]]]), plans_of((5,)), num_slots=4)
    assert batch.masks.tolist() == [[[[0, 0, 1], [0, 0, 1]]]]
    assert batch.first_masks.shape == (1, 4, 2, 3)


def test_clips_without_a_visible_object_are_counted_and_kept() -> None:
    labels = [[[[0, 0, 0], [0, 0, 255]]], [[[1, 0, 0], [0, 0, 0]]], [[[1, 0, 0], [0, 0, 0]]]]
    batch, misses = batch_of(pixels_of(labels), plans_of((1, 2), (), (1,)))
    assert misses == 2
    assert batch.num_objects.tolist() == [0, 0, 1]
    assert batch.first_masks[:2].sum() == 0
    assert batch.masks[0].tolist() == [[[0, 0, 0], [0, 0, 255]]]


def test_frames_without_annotation_are_void() -> None:
    labels = [[[[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]] * 2
    batch, misses = batch_of(pixels_of(labels, [[True, False], [False, True]]), plans_of((1,), (1,)))
    assert (batch.masks[0, 1] == VOID).all()
    assert (batch.masks[1, 0] == VOID).all()
    assert batch.masks[0, 0].tolist() == [[1, 1, 0], [0, 0, 0]]
    assert batch.annotated.tolist() == [[True, False], [False, True]]
    assert batch.num_objects.tolist() == [1, 0]
    assert misses == 1


def test_slots_agree_with_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 3, 40, 254, 255], (6, 3, 5, 7), p=[0.6, 0.1, 0.05, 0.05, 0.1, 0.05, 0.05])
    labels[:, 0][rng.random((6, 5, 7)) < 0.8] = 0
    lists = [tuple(int(i) for i in rng.permutation([1, 2, 3, 40, 254])[: rng.integers(1, 6)]) for _ in range(6)]
    batch, misses = batch_of(pixels_of(labels), plans_of(*lists), num_slots=3)
    for b, listed in enumerate(lists):
        chosen = [i for i in listed if (labels[b, 0] == i).any()][:3]
        slots = {VOID: VOID} | {object_id: slot + 1 for slot, object_id in enumerate(chosen)}
        assert batch.masks[b].tolist() == np.vectorize(lambda i, s=slots: s.get(i, 0))(labels[b]).tolist()
        assert batch.num_objects[b] == len(chosen)
    assert misses == int((batch.num_objects == 0).sum())


def test_images_are_normalised_as_imagenet_and_lie_channels_last() -> None:
    pixels = pixels_of(np.zeros((2, 3, 5, 7)))
    batch, _ = batch_of(pixels, plans_of((1,), (1,)))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (pixels.images.numpy() / 255 - mean) / deviation
    assert batch.images.shape == (2, 3, 3, 5, 7)
    assert batch.images.dtype == torch.float32
    assert np.abs(batch.images.permute(0, 1, 3, 4, 2).numpy() - expected).max() < 1e-5
    assert batch.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_first_masks_carry_the_plans_damage_slot_by_slot() -> None:
    labels = np.stack([blobs(seed, 60, 80, ids=(1, 2)) for seed in (1, 2)])[:, None]
    plans = plans_of((2, 1), (1, 2), damage_iou=0.8)
    plans[1] = dataclasses.replace(plans[1], damage_key=(3, 3), damage_iou=None)
    batch, _ = batch_of(pixels_of(labels), plans)
    for slot in (0, 1):
        clean = (batch.masks[0, 0] == slot + 1).numpy().astype(np.uint8)
        expected = damage_mask(clean, plans[0].damage_key, 0.8, slot=slot)
        assert np.array_equal(batch.first_masks[0, slot].numpy(), expected)
        assert not np.array_equal(expected, clean)
        assert torch.equal(batch.first_masks[1, slot], (batch.masks[1, 0] == slot + 1).float())


def test_the_order_of_clips_is_the_order_of_the_batch() -> None:
    labels = np.stack([blobs(seed, 30, 40) for seed in range(4)])[:, None]
    plans = plans_of((1, 2), (2, 3), (3,), (1,), damage_iou=0.9)
    pixels, order = pixels_of(labels), [2, 0, 3, 1]
    shuffled = ClipPixels(pixels.images[order], pixels.labels[order], pixels.annotated[order])
    one, _ = batch_of(pixels, plans)
    other, _ = batch_of(shuffled, [plans[i] for i in order])
    for name in ("images", "masks", "num_objects", "first_masks", "annotated"):
        assert torch.equal(getattr(one, name)[order], getattr(other, name))
    assert [p.number for p in other.plans] == order
    assert other.step == 7


def test_impossible_arguments_are_refused() -> None:
    pixels = pixels_of(np.zeros((1, 1, 2, 2)))
    with pytest.raises(ValueError, match=r"num_slots must be in 1\.\.254, got 255"):
        assemble(pixels, plans_of((1,)), num_slots=255, step=0, device="cpu")
    with pytest.raises(ValueError, match="2 plans for the pixels of 1 clips"):
        assemble(pixels, plans_of((1,), (1,)), num_slots=2, step=0, device="cpu")


@pytest.mark.parametrize(
    ("areas", "chosen"),
    [
        ((901, 2000, 2000), True),  # large
        ((900, 399, 399), True),  # small, and stays small
        ((900, 400, 0), False),  # grows in the second frame
        ((900, 0, 400), False),  # or in the third
        ((101, 0, 0), True),
        ((100, 0, 0), False),  # tiny
    ],
)
def test_bl30k_chooses_objects_by_area(areas: tuple[int, int, int], chosen: bool) -> None:
    labels = np.zeros((1, 4, 50, 50), np.uint8)
    for frame, area in enumerate((*areas, 2500)):  # the fourth frame is not looked at
        labels[0, frame].reshape(-1)[:area] = 7
    plans = [dataclasses.replace(plain_plan((50, 50), num_frames=4), object_ids=(9, 7))]
    rule = AreaRule(large=900, small=100, later=400)
    batch, misses = assemble(pixels_of(labels), plans, num_slots=2, step=0, device="cpu", area_rule=rule)
    assert batch.num_objects.tolist() == [int(chosen)]
    assert int(misses) == int(not chosen)
    assert (batch.masks == 1).sum() == (sum(areas) + 2500 if chosen else 0)


def test_an_area_rule_passes_over_ids_in_the_plans_order() -> None:
    labels = np.zeros((1, 3, 50, 50), np.uint8)
    labels[0, :, 0, :30], labels[0, :, 10:40, :20], labels[0, :, 10:40, 25:] = 4, 5, 6
    plans = [dataclasses.replace(plain_plan((50, 50), num_frames=3), object_ids=(4, 6, 5))]
    batch, _ = assemble(pixels_of(labels), plans, num_slots=2, step=0, device="cpu", area_rule=AreaRule(500, 100, 400))
    assert [int(batch.masks[0, 0, 20, column]) for column in (5, 30)] == [2, 1]
    assert int(batch.masks[0, 0, 0, 0]) == 0


def test_looking_labels_up_and_comparing_them_give_the_same_slots() -> None:
    rng = np.random.default_rng(3)
    labels = torch.from_numpy(rng.integers(0, 256, (3, 2, 40, 50)).astype(np.uint8))
    slot_ids = torch.tensor([[7, 200, 1], [9, 0, 0], [0, 0, 0]], dtype=torch.uint8)
    by_table = slots_by_table(labels, slot_ids)
    assert torch.equal(by_table, slots_by_comparing(labels, slot_ids))
    assert by_table[0].unique().tolist() == [0, 1, 2, 3, 255]
    assert by_table[1].unique().tolist() == [0, 1, 255]
