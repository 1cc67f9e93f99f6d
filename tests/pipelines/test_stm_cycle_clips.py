"""STM-Cycle's clips: frames, objects and numbers of both published backends, against their steps written out."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from pipelines.assembly import assemble, make_assembly
from pipelines.executors import make_executor
from pipelines.order.streams import Stream, StreamName
from pipelines.recipes import ClipRequest, StmCycle, StmCycleDali, StmCyclePaper, make_recipe
from pipelines.recipes.stm_cycle import choose_positions, fit
from pipelines.types import VOID, ClipPixels, Content, EncodedClip, LabelRules
from tests.pipelines.clips import blobs, frame, picture, plain_plan
from tests.pipelines.fake_set import FakeSet, FakeVideo

KEY = (11, 13)
EVERYWHERE = (0, 0, 480, 854)


def request(shard_set: FakeSet, number: int = 0, **changes: int) -> ClipRequest:
    fields = {"key": KEY, "number": number, "dataset": 0, "shard_set": shard_set, "video": 0, "gap_step": 1, "step": 0,
              "steps": 240}  # fmt: skip
    return ClipRequest(**{**fields, **changes})


# Frames


def published_positions(generator: random.Random, n: int, max_skip: int) -> list[int]:
    """The published formulas for three frames."""
    frames = [generator.randint(0, n - 3)]
    for i in (1, 2):
        frames.append(generator.randint(frames[-1] + 1, min(frames[-1] + max_skip, n - 3 + i)))
    return frames


@pytest.mark.parametrize(("count", "max_gap"), [(70, 50), (90, 100), (25, 10), (5, 3), (3, 50)])
def test_each_frame_is_distributed_as_in_the_published_formulas(count: int, max_gap: int) -> None:
    draws, generator = 6000, random.Random(1)
    theirs = np.array([published_positions(generator, count, max_gap) for _ in range(draws)])
    ours = np.array([choose_positions(Stream(KEY, StreamName.FRAMES, n), count, max_gap, 3) for n in range(draws)])
    for column in range(3):
        cumulative = [(drawn[:, column, None] <= np.arange(count)).mean(axis=0) for drawn in (ours, theirs)]
        assert np.abs(cumulative[0] - cumulative[1]).max() < 1.95 * math.sqrt(2 / draws)
    gaps = np.diff(ours, axis=1)
    assert gaps.min() >= 1
    assert gaps.max() <= max_gap


@pytest.mark.parametrize("passes", [0, 4, 5, 49, 50, 120, 235, 239])
def test_gaps_grow_by_five_for_davis_and_by_one_for_youtube_vos_every_five_passes(passes: int) -> None:
    recipe, grown = StmCycle(), passes // 5
    davis, youtube = FakeVideo(num_frames=400), FakeVideo(num_frames=1500, annotated_every=5)
    for video, gap_step, expected in ((davis, 1, min(50 + 5 * grown, 100)), (youtube, 5, 10 + grown)):
        plans = [recipe.plan(request(FakeSet([video]), n, gap_step=gap_step, step=passes)) for n in range(300)]
        gaps = {(b - a) // gap_step for plan in plans for a, b in pairwise(plan.frames)}
        assert max(gaps) <= expected
        assert max(gaps) > 0.93 * expected


@pytest.mark.parametrize("kind", [StmCycle, StmCycleDali])
def test_clips_grow_at_an_exact_step_and_share_their_first_numbers(kind: type[StmCycle]) -> None:
    recipe, fakes = kind(num_frames=4, clip_length=[[0, 2], [0.25, 4]]), FakeSet([FakeVideo(num_frames=30)])
    short, grown = (recipe.plan(request(fakes, 7, step=step)) for step in (59, 60))
    assert (len(short.frames), short.matrices.shape, short.colours.shape) == (2, (2, 2, 3), (2, 3, 4))
    assert (len(grown.frames), grown.matrices.shape, grown.colours.shape) == (4, (4, 2, 3), (4, 3, 4))
    assert np.array_equal(short.matrices, grown.matrices[:2])
    assert np.array_equal(grown.matrices, kind(num_frames=4).plan(request(fakes, 7, step=60)).matrices)


def test_frames_are_chosen_again_until_the_first_shows_an_object_but_not_by_the_dali_backend() -> None:
    boxes = [{} if position % 2 else {1: EVERYWHERE} for position in range(60)]
    shard_set = FakeSet([FakeVideo(boxes=boxes)])
    for recipe in (StmCycle(), StmCyclePaper()):
        assert all(recipe.plan(request(shard_set, n)).object_ids == (1,) for n in range(100))
    unlucky = [StmCycleDali().plan(request(shard_set, n)).object_ids == () for n in range(200)]
    assert 70 < sum(unlucky) < 130


# Objects


def ids_of(recipe: StmCycle, ids: tuple[int, ...], number: int = 0) -> tuple[int, ...]:
    shard_set = FakeSet([FakeVideo(boxes=dict.fromkeys(ids, EVERYWHERE))])
    return recipe.plan(request(shard_set, number)).object_ids


def test_labels_up_to_the_highest_are_slots_even_where_one_is_missing() -> None:
    for recipe in (StmCycleDali(), StmCyclePaper()):
        assert ids_of(recipe, (1, 2)) == (1, 2)
        assert ids_of(recipe, (1, 3)) == (1, 2, 3)
        assert ids_of(recipe, (2,)) == (1, 2)
    assert sorted(ids_of(StmCycle(), (1, 3))) == [1, 3]


def test_of_more_than_five_labels_five_are_chosen_in_order() -> None:
    dali = Counter(ids_of(StmCycleDali(), (1, 2, 3, 5, 7), n) for n in range(400))
    assert len(dali) == 21  # all choices of five of seven, absent labels included
    assert all(list(ids) == sorted(ids) for ids in dali)
    paper = Counter(ids_of(StmCyclePaper(), (1, 2, 3, 4, 5, 6), n) for n in range(300))
    assert len(paper) == 6
    # Only the run before the first gap counts, and it is short enough here.
    assert ids_of(StmCyclePaper(), (1, 2, 3, 5, 6, 7)) == (1, 2, 3, 4, 5)


def test_listed_labels_are_slots_whether_seen_or_not_and_unseen_clips_are_counted() -> None:
    labels = torch.tensor([[[[3, 3], [0, 1]]], [[[7, 7], [7, 7]]]], dtype=torch.uint8)  # (B, T, H, W)
    pixels = ClipPixels(torch.zeros(2, 1, 2, 2, 3, dtype=torch.uint8), labels, torch.ones(2, 1, dtype=torch.bool))
    plan = dataclasses.replace(plain_plan((2, 2)), object_ids=(1, 2, 3), labels=LabelRules(listed=True))
    batch, misses = assemble(pixels, [plan, plan], num_slots=5, step=0, device="cpu")
    assert batch.masks.tolist() == [[[[3, 3], [0, 1]]], [[[0, 0], [0, 0]]]]
    assert batch.num_objects.tolist() == [3, 3]
    assert int(misses) == 1


# Geometry


@pytest.mark.parametrize(
    ("source", "imgaug", "dali"),
    [
        ((480, 854), (240, 427), (240, 427)),
        ((720, 1280), (240, 426), (240, 427)),
        ((480, 910), (225, 427), (225, 427)),
        ((1280, 720), (240, 135), (240, 135)),
        ((480, 1152), (177, 427), (178, 427)),
    ],
)
def test_frames_keep_their_aspect_cut_off_or_rounded_to_whole_pixels(
    source: tuple[int, int], imgaug: tuple[int, int], dali: tuple[int, int]
) -> None:
    for expected, whole_part in ((imgaug, True), (dali, False)):
        content = fit(source, (240, 427), whole_part=whole_part)
        assert content[2:] == expected
        assert content[:2] == ((240 - expected[0]) // 2, (427 - expected[1]) // 2)


def dali_forward(plan: object, index: int, x: float, y: float) -> tuple[float, float]:
    """Where the published operators take a point of a 480 x 910 frame, one after the other."""
    steps = plan.steps  # type: ignore[attr-defined]
    x, y = x + steps.corner_shear[0] * y, y + steps.corner_shear[1] * x
    angle = math.radians(steps.rotations[index])
    dx, dy = x - 455, y - 240
    x, y = 455 + math.cos(angle) * dx - math.sin(angle) * dy, 240 + math.sin(angle) * dx + math.cos(angle) * dy
    x, y = x * 427 / 910, y * 225 / 480
    return (427 - x if steps.flip else x), y + 7  # (240 - 225) // 2 rows above


def test_the_dali_backends_operators_compose_to_the_plans_matrices() -> None:
    shard_set = FakeSet([FakeVideo(size=(480, 910))])
    for number in range(20):
        plan = StmCycleDali().plan(request(shard_set, number))
        assert abs(plan.steps.corner_shear[0]) <= 0.04
        assert abs(plan.steps.corner_shear[1]) <= 0.025
        assert max(map(abs, plan.steps.rotations)) <= 10
        assert len(set(plan.steps.rotations)) == 3  # one per frame
        for index, matrix in enumerate(plan.matrices):
            for point in ((0.0, 0.0), (900.0, 10.0), (77.0, 300.0)):
                assert np.allclose(matrix @ [*dali_forward(plan, index, *point), 1], point, atol=1e-2)


def imgaug_forward(plan: object, x: float, y: float) -> tuple[float, float]:
    """Where the published steps take a point of a 1280 x 720 portrait frame: axes, cut, affine, mirror, resize, pad."""
    steps = plan.steps  # type: ignore[attr-defined]
    x, y = y, x
    top, right, bottom, left = steps.cut
    x, y = (x - left) * 1280 / (1280 - left - right), (y - top) * 720 / (720 - top - bottom)
    angle, tilted = math.radians(steps.rotations[0]), math.radians(steps.rotations[0] + steps.shear)
    dx, dy = x - 640, y - 360
    x = 640 + steps.scale * (math.cos(angle) * dx - math.sin(tilted) * dy)
    y = 360 + steps.scale * (math.sin(angle) * dx + math.cos(tilted) * dy)
    x = 1280 - x if steps.flip else x
    return x * 426 / 1280, y * 240 / 720


def test_the_imgaug_backends_steps_compose_to_the_plans_matrices() -> None:
    shard_set = FakeSet([FakeVideo(size=(1280, 720))])
    flips = 0
    for number in range(40):
        plan = StmCyclePaper().plan(request(shard_set, number))
        steps = plan.steps
        assert steps.transpose
        assert plan.content == Content(0, 0, 240, 426)
        assert max(steps.cut[0], steps.cut[2]) <= 72
        assert max(steps.cut[1], steps.cut[3]) <= 128
        assert 0.95 <= steps.scale <= 1.05
        assert len(set(steps.rotations)) == 1  # the whole clip turns
        flips += steps.flip
        for matrix in plan.matrices:
            for point in ((0.0, 0.0), (700.0, 10.0), (77.0, 1200.0)):
                assert np.allclose(matrix @ [*imgaug_forward(plan, *point), 1], point, atol=2e-2)
    assert 8 < flips < 32


def test_colours_are_multiplied_and_shifted_by_one_number_each() -> None:
    shard_set = FakeSet([FakeVideo()])
    for number in range(20):
        plan = StmCyclePaper().plan(request(shard_set, number))
        factor, level = plan.colours[0][0, 0], plan.colours[0][0, 3]
        assert 0.97 <= factor <= 1.03
        assert -5 <= level <= 5
        assert np.array_equal(plan.colours, np.tile(np.column_stack([factor * np.eye(3), [level] * 3]), (3, 1, 1)))
    assert np.array_equal(StmCycleDali().plan(request(shard_set)).colours, np.tile(np.eye(3, 4), (3, 1, 1)))


def test_switching_one_thing_off_moves_nothing_else() -> None:
    shard_set = FakeSet([FakeVideo()])
    for number in range(10):
        full = StmCyclePaper().plan(request(shard_set, number))
        plain = StmCyclePaper(cut=0, rotation=0, contrast=0).plan(request(shard_set, number))
        assert plain.frames == full.frames
        assert (plain.steps.scale, plain.steps.shear, plain.steps.flip) == (
            full.steps.scale, full.steps.shear, full.steps.flip)  # fmt: skip
        assert plain.steps.brightness == full.steps.brightness


# Pixels


def render(name: str, clip: EncodedClip) -> ClipPixels:
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="no DALI in this environment")
    executor = make_executor(name)
    try:
        return executor([clip])
    finally:
        executor.close()


def encoded(recipe: StmCycle, number: int, *, source: tuple[int, int] = (120, 228)) -> EncodedClip:
    plan = recipe.plan(request(FakeSet([FakeVideo(size=source)]), number))
    return EncodedClip(plan, tuple(frame(picture(t, *source), blobs(t, *source)) for t in range(3)), "lz4")


@pytest.mark.parametrize("kind", [StmCycle, StmCyclePaper, StmCycleDali])
def test_cpu_and_dali_agree_on_all_three(kind: type[StmCycle]) -> None:
    recipe = kind(size=(60, 107))
    for number in range(4):
        clip = encoded(recipe, number)
        ours, theirs = render("cpu", clip), render("dali", clip)
        assert torch.equal(ours.labels, theirs.labels)
        assert (ours.images.int() - theirs.images.int()).abs().max() <= 2


def test_nearest_images_show_the_pixel_under_the_sampling_point() -> None:
    clip = encoded(StmCycleDali(size=(60, 107)), 1)
    pixels = render("cpu", clip).images[0, 0].numpy()
    matrix = clip.plan.matrices[0].astype(np.float64)
    source = cv2.cvtColor(cv2.imdecode(np.frombuffer(clip.frames[0].image, np.uint8), 1), cv2.COLOR_BGR2RGB)
    rows, columns = np.mgrid[:60, :107]
    x, y = np.floor(np.tensordot(matrix, [columns + 0.5, rows + 0.5, np.ones_like(rows)], axes=1)).astype(int)
    inside = (x >= 0) & (x < 228) & (y >= 0) & (y < 120)
    expected = np.where(inside[..., None], source[y.clip(0, 119), x.clip(0, 227)], 0)
    assert (pixels != expected).any(axis=-1).mean() < 0.01  # matrices are snapped: 0.05 px


def test_eroded_masks_are_what_linear_resizing_and_cutting_off_leaves() -> None:
    source, size = (120, 228), (45, 85)
    labels = blobs(4, *source)
    matrix = np.array([[[228 / 85, 0, 0], [0, 120 / 45, 0]]], np.float32)
    plan = dataclasses.replace(plain_plan(size), matrices=matrix, labels=LabelRules(unanimous=True))
    ours = render("cpu", EncodedClip(plan, (frame(picture(0, *source), labels),), "lz4")).labels[0, 0].numpy()
    expected = np.full(size, VOID, np.uint8)
    for label in range(4):
        part = cv2.resize((labels == label).astype(np.float32), (85, 45), interpolation=cv2.INTER_LINEAR)
        expected[part.astype(np.uint8) == 1] = label
    # Rows of 120 / 45 = 8 / 3 meet pixel centres, where cutting off asks two pixels and we ask four.
    differ = ours != expected
    assert not (differ & (ours != VOID)).any()
    assert differ[[row for row in range(45) if row % 3 != 1]].sum() == 0
    assert 0.02 < (ours == VOID).mean() < 0.3


def test_void_of_the_source_is_background_and_outside_the_content_all_is_void_and_black() -> None:
    source = (120, 160)
    labels = blobs(1, *source)
    labels[50:60] = VOID
    recipe = StmCycle(size=(60, 107), scale=(2, 2))
    plan = recipe.plan(request(FakeSet([FakeVideo(size=source)]), 3))
    assert plan.content == Content(0, 13, 60, 80)
    clip = EncodedClip(plan, (frame(picture(0, *source), labels),) * 3, "lz4")
    batch, _ = make_assembly(recipe, torch.device("cpu"))(render("cpu", clip), [plan], step=0)
    inside = torch.zeros(60, 107, dtype=torch.bool)
    inside[:, 13:93] = True
    assert (batch.masks[0, 0][inside] < VOID).all()
    assert (batch.masks[0, :, ~inside] == VOID).all()
    black = -torch.tensor(batch.normalisation.mean) / torch.tensor(batch.normalisation.deviation)
    assert torch.allclose(batch.images[0, 0][:, ~inside], black[:, None].expand(3, int((~inside).sum())), atol=1e-5)


def test_the_dali_backend_normalises_all_channels_alike() -> None:
    recipe = StmCycleDali(size=(60, 107))
    clip = encoded(recipe, 2)
    pixels = render("cpu", clip)
    batch, _ = make_assembly(recipe, torch.device("cpu"))(pixels, [clip.plan], step=0)
    # 120 x 228 fills 56 of the 60 rows.
    expected = (pixels.images[0, 1, 2:58].permute(2, 0, 1).float() / 255 - 0.45) / 0.226
    assert torch.allclose(batch.images[0, 1, :, 2:58], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": "some"}, "slots must be one of visible, all, leading, got 'some'"),
        ({"normalise": "none"}, "normalise must be one of imagenet, scalar"),
        ({"eroded_masks": 1}, "eroded_masks must be true or false, got 1"),
        ({"cut": 0.5}, "cut must be a number within 0..0.45"),
        ({"clip_length": [[0, 1]]}, "clip_length must be a whole number within 2..3, got 1"),
        ({"clip_length": [[0, 2.5]]}, "clip_length must be a whole number within 2..3, got 2.5"),
        ({"max_gap": [[0, 0]]}, "max_gap must be a number of at least 1"),
    ],
)
def test_options_that_make_no_clip_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_recipe("stm_cycle_paper", options)
