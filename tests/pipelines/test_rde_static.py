"""Stage 0: three synthetic frames of one still image, from the plan's numbers to the batch."""

from __future__ import annotations

import colorsys
import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipelines.assembly import make_assembly
from pipelines.augmentation import Tone, affine_matrices, colour_matrices, hue_matrix
from pipelines.damage import damage_masks, damage_soft_mask, damage_together
from pipelines.executors import make_executor
from pipelines.executors.geometry import snap
from pipelines.order.sampling import MixEntry
from pipelines.order.streams import StreamName
from pipelines.recipes import ClipRequest, RdeStatic, make_recipe
from pipelines.source import ClipSource
from pipelines.types import ClipPixels, ClipPlan, EncodedClip
from shards.errors import DataError
from shards.masks import encode_soft_mask
from shards.reader import EncodedFrame
from tests.pipelines.clips import NO_COLOUR, clip, jpeg, picture, plan
from tests.pipelines.fake_set import FakeSet, FakeVideo
from tests.pipelines.test_cpu import linear

IMAGE = (120, 160)


def stills(size: tuple[int, int] = IMAGE) -> FakeSet:
    fake = FakeSet([FakeVideo("still", num_frames=1, size=size, boxes={1: (10, 10, 90, 90)})])
    fake.mask_codec = "soft.lz4"
    return fake


def request(number: int, size: tuple[int, int] = IMAGE) -> ClipRequest:
    return ClipRequest((5, 6), number, 0, stills(size), 0, 1, 0, 1)  # type: ignore[arg-type]


def levels(seed: int, height: int, width: int) -> np.ndarray:
    """A soft ellipse that reaches 255 inside."""
    mask = np.zeros((height, width), np.uint8)
    rng = np.random.default_rng(seed)
    centre = int(rng.integers(width // 3, 2 * width // 3)), int(rng.integers(height // 3, 2 * height // 3))
    cv2.ellipse(mask, centre, (width // 4, height // 4), float(rng.uniform(0, 180)), 0, 360, 255, -1)
    return cv2.GaussianBlur(mask, (0, 0), 1.2)


def soft_clip(seed: int, drawn: ClipPlan, size: tuple[int, int] = IMAGE) -> EncodedClip:
    frame = EncodedFrame(jpeg(picture(seed, *size)), encode_soft_mask(levels(seed, *size), "soft.lz4"))
    return EncodedClip(drawn, (frame,) * len(drawn.frames), "soft.lz4")


def render(name: str, clips: list[EncodedClip]) -> ClipPixels:
    executor = make_executor(name)
    try:
        return executor(clips)
    finally:
        executor.close()


def test_plans_keep_to_the_published_ranges() -> None:
    recipe = RdeStatic()
    plans = [recipe.plan(request(number)) for number in range(600)]
    bent = np.array([[spline is not None for spline in p.splines] for p in plans])
    assert bent.mean() == pytest.approx(0.33, abs=0.04)
    assert np.corrcoef(bent.T)[0, 1] == pytest.approx(0, abs=0.12)  # each frame for itself
    flips = np.array([np.linalg.det(p.matrices[0][:, :2]) < 0 for p in plans])
    assert flips.mean() == pytest.approx(0.5, abs=0.06)
    assert all(p.frames == (0, 0, 0) and p.object_ids == (1,) and p.size == (384, 384) for p in plans)
    # Area of the source that one output pixel covers: resizing, divided by both scales.
    resize = (120 / 384) ** 2
    zoom = np.sqrt([resize / abs(np.linalg.det(m[:, :2])) for p in plans for m in p.matrices])
    assert zoom.min() > 0.8 * 0.9 * 0.999
    assert zoom.max() < 1.5 * 1.1 * 1.001
    ious = [p.damage_iou for p in plans]
    assert (min(ious) >= 0.85, max(ious) < 1) == (True, True)


def test_the_matrix_is_the_published_steps_one_after_the_other() -> None:
    recipe = RdeStatic(size=96, flip=1.0)
    drawn = recipe.plan(request(3))
    stream = request(3).stream
    crops, affine = stream(StreamName.CROP), stream(StreamName.AFFINE)
    scale, _ = crops.uniform(0.8, 1.5), crops.uniform()
    corners = [(crops.integer(1), crops.integer(33)) for _ in range(3)]  # 96 x 128 after resizing
    numbers = affine.uniforms(9).reshape(3, 3)
    for t in range(3):
        for x, y in ((0.5, 0.5), (95.5, 17.5), (30.5, 80.5)):
            top, left = corners[t]
            x1, y1 = (x + left) * 160 / 128, (y + top) * 120 / 96  # out of the crop, out of the resized image
            angle, shear = np.radians(20 * (2 * numbers[0, t] - 1)), np.radians(10 * (2 * numbers[1, t] - 1))
            frame_scale = 0.9 + 0.2 * numbers[2, t]
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            forward = frame_scale * turn @ np.array([[1, -np.tan(shear)], [0, 1]])
            x2, y2 = np.linalg.solve(forward, [x1 - 80, y1 - 60]) + np.array([80, 60])
            x3, y3 = 160 - x2, y2
            expected = (x3 - 80) / scale + 80, (y3 - 60) / scale + 60
            assert drawn.matrices[t] @ [x, y, 1] == pytest.approx(expected, abs=1e-3)


def test_the_crop_is_cut_from_the_image_resized_as_torchvision_does() -> None:
    recipe = RdeStatic(size=100, clip_scale=(1, 1), flip=0, rotation=0, shear=0, frame_scale=(1, 1))
    lefts = set()
    for number in range(300):
        drawn = recipe.plan(request(number, size=(75, 133)))  # 100 x int(177.33)
        for matrix in drawn.matrices:
            assert matrix[0, 0] == pytest.approx(133 / 177)
            assert matrix[1] == pytest.approx([0, 0.75, 0])
            lefts.add(round(float(matrix[0, 2]) * 177 / 133))
    assert lefts == set(range(78))


def test_scaled_affines_grow_about_the_middle() -> None:
    matrix = affine_matrices([30.0], [5.0], (60, 80), scales=[2.0])[0]
    plain = affine_matrices([30.0], [5.0], (60, 80))[0]
    assert matrix @ [40, 30, 1] == pytest.approx([40, 30, 1])
    assert matrix[:2, :2] == pytest.approx(plain[:2, :2] / 2)


def test_no_linear_map_comes_nearer_to_the_hue_shift_of_hsv() -> None:
    rng = np.random.default_rng(0)
    colours = rng.uniform(0, 255, (2000, 3))
    moved = []
    for rgb in colours / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        moved.append(np.array(colorsys.hsv_to_rgb((hue + 0.05) % 1, saturation, value)) * 255)
    best, *_ = np.linalg.lstsq(colours, np.array(moved), rcond=None)
    assert np.abs(best.T - hue_matrix(0.05)).max() < 0.02
    assert hue_matrix(0.05) @ [90, 90, 90] == pytest.approx([90, 90, 90])
    assert (hue_matrix(0.05) @ [200, 20, 20])[1] > 40  # red turns towards yellow


def test_hue_comes_before_the_tone() -> None:
    tone, pixel = Tone(1.2, -0.15, 7.0), np.array([10.0, 200.0, 90.0])
    matrix = colour_matrices([tone], hue=-0.03)[0].astype(np.float64)
    turned = hue_matrix(-0.03) @ pixel
    expected = 1.2 * turned - 0.15 * np.dot((0.299, 0.587, 0.114), turned) + 7
    assert matrix @ [*pixel, 1] == pytest.approx(expected, abs=1e-3)


def test_soft_masks_are_sampled_linearly_and_marked() -> None:
    drawn = RdeStatic(size=96).plan(request(1))
    encoded = soft_clip(1, drawn)
    pixels = render("cpu", [encoded])
    assert pixels.soft
    matrices = snap(drawn.matrices, (96, 96)).matrices
    source = levels(1, *IMAGE)[..., None].repeat(3, axis=2)
    for t in range(3):
        expected = linear(source, matrices[t], (96, 96), np.zeros(3))[..., 0]
        assert np.abs(pixels.labels[0, t].numpy() - expected).max() <= 0.5001
    assert not render("cpu", [clip(0)]).soft


def test_dali_and_cpu_agree_on_soft_masks() -> None:
    pytest.importorskip("nvidia.dali", reason="no DALI in this environment")
    clips = [soft_clip(seed, RdeStatic(size=96).plan(request(seed))) for seed in range(8)]
    ours, theirs = render("cpu", clips), render("dali", clips)
    assert theirs.soft
    assert (ours.labels.int() - theirs.labels.int()).abs().max() <= 1
    assert (ours.images.int() - theirs.images.int()).abs().max() <= 2


def test_a_batch_of_both_kinds_of_masks_is_refused() -> None:
    drawn = dataclasses.replace(plan(0, num_frames=3, size=(96, 96)))
    with pytest.raises(ValueError, match="either label maps or soft masks"):
        render("cpu", [soft_clip(0, drawn), clip(0)])


def test_a_batch_has_soft_first_masks_and_hard_targets() -> None:
    recipe = RdeStatic(size=96, damage_iou=None, spline=0.0)
    clips = [soft_clip(seed, recipe.plan(request(seed))) for seed in range(3)]
    pixels = render("cpu", clips)
    batch, misses = make_assembly(recipe, torch.device("cpu"))(pixels, [c.plan for c in clips], step=0)
    shown = pixels.labels.numpy()
    assert batch.clean_masks is not None
    assert np.array_equal(batch.clean_masks[:, 0].numpy(), shown[:, 0].astype(np.float32) / 255)
    assert torch.equal(batch.first_masks, batch.clean_masks)
    assert np.array_equal(batch.masks.numpy(), (shown / 255 > 0.5).astype(np.uint8))
    assert ((batch.clean_masks > 0) & (batch.clean_masks < 1)).any()
    assert batch.num_objects.tolist() == [1, 1, 1]
    assert misses == 0


def test_splines_bend_image_and_mask_of_a_batch_alike() -> None:
    recipe = RdeStatic(size=96, damage_iou=None, spline=1.0, spline_deviation=0.05)
    colourless = dataclasses.replace(recipe.plan(request(2)), colours=np.tile(NO_COLOUR, (3, 1, 1)), fill=(0, 0, 0))
    mask = levels(2, *IMAGE)
    image = jpeg(np.repeat(mask[..., None], 3, axis=2), quality=100, subsampling="444")
    pixels = render(
        "cpu", [EncodedClip(colourless, (EncodedFrame(image, encode_soft_mask(mask, "soft.lz4")),) * 3, "soft.lz4")]
    )
    batch, _ = make_assembly(recipe, torch.device("cpu"))(pixels, [colourless], step=0)
    red = batch.images[0, :, 0] * 0.229 + 0.485
    seen, truth = red > 0.5, batch.masks[0] == 1
    assert ((seen & truth).sum(dim=(1, 2)) / (seen | truth).sum(dim=(1, 2))).min() > 0.97
    straight = pixels.labels[0] >= 128
    assert ((straight & truth).sum() / (straight | truth).sum()) < 0.97


def grown_slowly(mask: np.ndarray, element: np.ndarray) -> np.ndarray:
    reach_y, reach_x = element.shape[0] // 2, element.shape[1] // 2
    out = np.zeros_like(mask)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            found = [
                mask[y + i - reach_y, x + j - reach_x]
                for i, j in zip(*np.nonzero(element), strict=True)
                if 0 <= y + i - reach_y < mask.shape[0] and 0 <= x + j - reach_x < mask.shape[1]
            ]
            out[y, x] = max(found)
    return out


def test_damage_of_soft_masks_is_grey_growing_and_equal_on_devices() -> None:
    masks = np.stack([levels(seed, 60, 80) for seed in range(5)])
    masks[3] = masks[3] // 2  # reaches 255 nowhere: left alone, as published
    masks[4] = 0
    keys, ious = [(seed, 9) for seed in range(5)], [0.9, 0.8, None, 0.8, 0.9]
    tensor = torch.from_numpy(masks)
    together = damage_together(tensor, keys, ious, [0] * 5, soft=True)
    assert torch.equal(together, damage_masks(tensor, keys, ious, [0] * 5, soft=True))
    for row, changed in enumerate((True, True, False, False, False)):
        assert (not torch.equal(together[row], tensor[row])) == changed
    assert np.array_equal(together[0].numpy(), damage_soft_mask(masks[0], keys[0], 0.9))
    values = set(np.unique(masks[0]).tolist()) | {0, 255}
    assert set(together[0].unique().tolist()) <= values  # growing and shrinking make no new levels
    shared = ((together[1] > 0) & (tensor[1] > 0)).sum() / ((together[1] > 0) | (tensor[1] > 0)).sum()
    assert shared < 0.8


def test_one_grey_edit_is_the_largest_level_under_the_element() -> None:
    from pipelines.damage import _grow_levels, _kernels, structuring_elements

    mask = levels(1, 20, 24)
    for number in (0, 8, 15, 23):
        grown = _grow_levels(torch.from_numpy(mask)[None], _kernels()[number][None])[0]
        assert np.array_equal(grown.numpy(), grown_slowly(mask, structuring_elements()[number]))


def test_a_recipe_and_masks_of_the_other_kind_are_refused_together() -> None:
    entry = MixEntry(stills(), "train")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"expected label maps of video.*found soft masks.*another recipe"):
        ClipSource([entry], make_recipe("rde_video", {"min_frames": 1}), seed=1, steps=1, batch_size=1)
    with pytest.raises(DataError, match="expected soft masks of still images"):
        ClipSource([MixEntry(FakeSet([FakeVideo()]), "train")], RdeStatic(), seed=1, steps=1, batch_size=1)  # type: ignore[arg-type]
    source = ClipSource([entry], RdeStatic(), seed=1, steps=1, batch_size=4)
    encoded = source.read(source.plan(3))
    assert encoded.frames[0] is encoded.frames[2]  # one still, read once
    assert len(entry.dataset.reads) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": [384, 400]}, "size must be a square"),
        ({"spline_points": 3}, "spline_points must be a whole number of at least 4"),
        ({"size": 8, "spline_points": 9}, "at most size"),
        ({"hue": 0.7}, "hue must be a number within 0..0.5"),
        ({"num_slots": 2}, "has no 'num_slots'"),
    ],
)
def test_options_that_make_no_clip_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_recipe("rde_static", options)


def test_real_stills_become_clips(shared_data: Path, tmp_path: Path) -> None:
    from pipelines.loader import ClipLoader
    from shards.building.build import build, silent
    from shards.building.plan import BuildRequest, make_plan
    from shards.reader import ShardSet

    build_request = BuildRequest("static", (shared_data / "static_mini",), tmp_path)
    build(build_request, make_plan(build_request), silent)
    recipe = RdeStatic(size=96)
    with ShardSet.open(build_request.root) as shard_set:
        source = ClipSource([MixEntry(shard_set, "train")], recipe, seed=1, steps=4, batch_size=8)
        executor = make_executor("cpu")
        with ClipLoader(source, executor, make_assembly(recipe, torch.device("cpu"))) as loader:
            batches = list(loader)
        executor.close()
    assert len(batches) == 4
    found = torch.cat([batch.num_objects for batch in batches])
    assert found.float().mean() > 0.9
    moved = torch.cat([batch.first_masks - batch.clean_masks for batch in batches])
    assert (moved != 0).flatten(1).any(dim=1).float().mean() > 0.8
