"""RDE's clips: frames as published, objects that can be seen, numbers that do not depend on each other's trials."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.order.curriculum import Table
from pipelines.order.streams import Stream, StreamName
from pipelines.recipes import RECIPES, ClipRequest, RdeBl30k, RdeVideo, make_recipe
from pipelines.recipes.rde import choose_positions
from pipelines.types import AreaRule
from tests.pipelines.fake_set import FakeSet, FakeVideo

KEY = (11, 13)


def positions(number: int, count: int, max_gap: int, num_frames: int = 5) -> list[int]:
    return choose_positions(Stream(KEY, StreamName.FRAMES, number), count, max_gap, num_frames)


def request(shard_set: FakeSet, number: int = 0, **changes) -> ClipRequest:
    fields = {"key": KEY, "number": number, "dataset": 0, "shard_set": shard_set, "video": 0, "gap_step": 1, "step": 0,
              "steps": 100}  # fmt: skip
    return ClipRequest(**{**fields, **changes})


# Frames


def published_positions(generator: random.Random, n: int, J: int) -> list[int]:
    """The formulas of the published code, frame by frame, for five frames."""
    t = min(n, J)
    f0 = generator.randrange(0, max(J // 2 + 1, n - 5 * t + 1))
    f1 = min(f0 + 1 + generator.randint(0, t), n - t, n - 1)
    f2 = min(f1 + 1 + generator.randint(0, t), n - t // 2, n - 1)
    f3 = min(f2 + 1 + generator.randint(0, t), n - t // 3, n - 1)
    f4 = min(f3 + 1 + generator.randint(0, t), n - t // 4, n - 1)
    return [f0, f1, f2, f3, f4]


@pytest.mark.parametrize(("count", "max_gap"), [(70, 5), (160, 25), (25, 25), (8, 5), (20, 1), (3, 5), (36, 15)])
def test_each_frame_is_distributed_as_in_the_published_formulas(count, max_gap):
    draws = 6000
    generator = random.Random(1)
    theirs = np.array([published_positions(generator, count, max_gap) for _ in range(draws)])
    ours = np.array([positions(n, count, max_gap) for n in range(draws)])
    values = np.arange(count + 1)
    for frame in range(5):
        cumulative = [(drawn[:, frame, None] <= values).mean(axis=0) for drawn in (ours, theirs)]
        assert np.abs(cumulative[0] - cumulative[1]).max() < 1.95 * math.sqrt(2 / draws)
    gaps = [np.diff(drawn, axis=1) for drawn in (ours, theirs)]
    assert set(gaps[0].ravel()) == set(gaps[1].ravel())


@pytest.mark.parametrize(("max_gap", "span"), [(5, 14), (10, 24), (15, 34), (20, 44), (25, 54)])
def test_mean_spans_on_long_videos_are_the_measured_ones(max_gap, span):
    spans = [drawn[-1] - drawn[0] for drawn in (positions(n, 400, max_gap) for n in range(3000))]
    deviation = math.sqrt(4 * ((max_gap + 1) ** 2 - 1) / 12 / 3000)
    assert abs(np.mean(spans) - span) < 4 * deviation


def test_gaps_on_long_videos_are_one_to_max_gap_plus_one():
    gaps = Counter(b - a for n in range(3000) for a, b in pairwise(positions(n, 400, 5)))
    assert set(gaps) == {1, 2, 3, 4, 5, 6}
    assert max(abs(count - 2000) for count in gaps.values()) < 5 * math.sqrt(2000)


@pytest.mark.parametrize(("count", "max_gap", "share"), [(20, 1, 0.09), (8, 5, 0.89)])
def test_short_videos_repeat_frames_as_often_as_measured(count, max_gap, share):
    repeats = [len(set(positions(n, count, max_gap))) < 5 for n in range(4000)]
    assert np.mean(repeats) == pytest.approx(share, abs=0.02)


def test_clips_of_25_frames_at_gap_25_go_backwards_in_92_percent():
    backwards = [any(a > b for a, b in pairwise(positions(n, 25, 25))) for n in range(4000)]
    assert np.mean(backwards) == pytest.approx(0.92, abs=0.02)


def test_starts_of_long_videos_at_gap_25_are_confined_to_the_first_36_frames():
    starts = {positions(n, 160, 25)[0] for n in range(3000)}
    assert starts == set(range(36))


@given(st.integers(3, 300), st.integers(1, 40), st.integers(1, 9), st.integers(0, 10**6))
def test_frames_never_leave_the_video(count, max_gap, num_frames, number):
    drawn = positions(number, count, max_gap, num_frames)
    assert len(drawn) == num_frames
    assert all(0 <= position < count for position in drawn)


def test_half_of_the_clips_run_backwards():
    dataset, recipe = FakeSet([FakeVideo(num_frames=200)]), RdeVideo()
    plans = [recipe.plan(request(dataset, n)) for n in range(600)]
    backwards = [plan.frames[0] > plan.frames[-1] for plan in plans]
    assert all(list(plan.frames) == sorted(plan.frames, reverse=turned)
               for plan, turned in zip(plans, backwards, strict=True))  # fmt: skip
    assert abs(sum(backwards) - 300) < 4 * math.sqrt(150)
    forward = [RdeVideo(reverse=0).plan(request(dataset, n)).frames for n in range(50)]
    assert all(list(frames) == sorted(frames) for frames in forward)


@pytest.mark.parametrize(("step", "largest"), [(0, 2), (10, 3), (20, 4), (30, 5), (40, 6), (90, 2)])
def test_gaps_of_a_sparsely_annotated_set_count_annotated_frames(step, largest):
    dataset, recipe = FakeSet([FakeVideo(num_frames=500, annotated_every=5)]), RdeVideo(reverse=0)
    gaps = set()
    for number in range(150):
        plan = recipe.plan(request(dataset, number, gap_step=5, step=step))
        assert all(frame % 5 == 0 for frame in plan.frames)
        gaps |= {(b - a) // 5 for a, b in pairwise(plan.frames)}
    # Gap 0 repeats the last frame: the published code does that at the end of a video when the gap is 1.
    assert gaps - {0} == set(range(1, largest + 1))


def test_a_gap_step_above_the_gap_still_moves_on_frame_by_frame():
    dataset, recipe = FakeSet([FakeVideo(num_frames=60)]), RdeVideo(reverse=0, max_gap=Table(((0, 3),)))
    plans = [recipe.plan(request(dataset, n, gap_step=5)) for n in range(100)]
    assert {b - a for plan in plans for a, b in pairwise(plan.frames)} - {0} == {1, 2}


# Objects and trials


def test_the_order_of_objects_is_a_uniform_choice_among_those_of_the_first_clip_frame():
    boxes = [dict.fromkeys((3, 7, 9) if frame < 30 else (9,), (0, 0, 480, 854)) for frame in range(60)]
    dataset, recipe = FakeSet([FakeVideo(boxes=boxes)]), RdeVideo()
    plans = [recipe.plan(request(dataset, n)) for n in range(900)]
    for plan in plans:
        assert sorted(plan.object_ids) == ([3, 7, 9] if plan.frames[0] < 30 else [9])
    orders = Counter(plan.object_ids for plan in plans if plan.frames[0] < 30)
    total = sum(orders.values())
    assert len(orders) == 6
    assert max(abs(count - total / 6) for count in orders.values()) < 4 * math.sqrt(total / 6)


def test_frames_without_objects_are_passed_over_and_the_number_of_trials_kept():
    boxes = [{} if frame % 2 else {1: (0, 0, 480, 854)} for frame in range(60)]
    dataset, recipe = FakeSet([FakeVideo(boxes=boxes)]), RdeVideo()
    trials = Counter(recipe.plan(request(dataset, n)).trial for n in range(1000))
    # Each trial fails about every second time, and five failures in a row end with the fifth choice.
    for trial, probability in enumerate((0.5, 0.25, 0.125, 0.0625, 0.0625)):
        assert abs(trials[trial] - 1000 * probability) < 4.5 * math.sqrt(1000 * probability)
    shown = [recipe.plan(request(dataset, n)) for n in range(200)]
    assert all(plan.object_ids == (1,) for plan in shown if plan.trial < 4)
    assert {plan.object_ids for plan in shown if plan.trial == 4} == {(1,), ()}


def test_an_object_outside_the_view_makes_another_trial_and_the_chosen_view_shows_it():
    dataset = FakeSet([FakeVideo(boxes={1: (0, 0, 40, 40)})])
    plans = [RdeVideo().plan(request(dataset, n)) for n in range(300)]
    assert {plan.trial for plan in plans} == {0, 1, 2, 3, 4}
    for plan in plans:
        inverse = np.linalg.inv(np.vstack([plan.matrices[0], [0, 0, 1]]).astype(np.float64))
        corners = inverse @ [[0, 40, 0, 40], [0, 0, 40, 40], [1, 1, 1, 1]]
        on_canvas = corners[0].min() < 384 and corners[0].max() > 0 and corners[1].min() < 384 and corners[1].max() > 0
        assert on_canvas or plan.trial == 4


def test_a_later_trial_equals_a_first_trial_of_its_own_numbers_and_moves_no_other_stream():
    blank, shown = FakeSet([FakeVideo(boxes={1: (0, 0, 1, 1)})]), FakeSet([FakeVideo(boxes={1: (0, 0, 480, 854)})])
    recipe = RdeVideo(rotation=0, shear=0, crop_area=(0.3, 0.5))
    for number in range(50):
        late, first = recipe.plan(request(blank, number)), recipe.plan(request(shown, number))
        assert (late.damage_key, late.damage_iou) == (first.damage_key, first.damage_iou)
        assert first.trial == 0
        assert (late.trial == 0) == (late.frames == first.frames) == np.array_equal(late.matrices, first.matrices)


# What a plan holds


def test_a_plan_has_the_shapes_and_types_it_promises():
    shard_set = FakeSet([FakeVideo()])
    plan = RdeVideo(size=(96, 128), num_frames=4).plan(request(shard_set, 5, dataset=2))
    assert (plan.number, plan.dataset, plan.video, plan.size, len(plan.frames)) == (5, 2, 0, (96, 128), 4)
    assert (plan.matrices.shape, plan.matrices.dtype) == ((4, 2, 3), np.float32)
    assert (plan.colours.shape, plan.colours.dtype) == ((4, 3, 4), np.float32)
    assert plan.fill == (124.0, 116.0, 104.0)
    assert all(0 <= word < 1 << 64 for word in plan.damage_key)


def test_the_recorded_steps_compose_to_the_matrices_of_the_plan():
    dataset = FakeSet([FakeVideo()])
    for number in range(20):
        plan = RdeVideo().plan(request(dataset, number))
        top, left, height, width = plan.steps.crop
        for affine, matrix in zip(plan.steps.affines, plan.matrices, strict=True):
            for point in ((0.0, 0.0), (384.0, 10.0), (77.0, 300.0)):
                x, y = affine @ (*point, 1)
                source = np.array([left + x * width / 384, top + y * height / 384])
                if plan.steps.flip:
                    source[0] = 854 - source[0]
                assert np.allclose(matrix @ (*point, 1), source, atol=1e-3)


def test_without_any_chance_a_plan_is_the_centre_crop_in_its_own_colours():
    still = RdeVideo(flip=0, rotation=0, shear=0, grayscale=0, clip_jitter=(0, 0, 0), frame_jitter=(0, 0, 0),
                     crop_area=(1, 1), damage_iou=None, num_frames=2)  # fmt: skip
    plan = still.plan(request(FakeSet([FakeVideo(size=(480, 854))])))
    assert plan.damage_iou is None
    assert np.array_equal(plan.colours, np.stack([np.eye(3, 4)] * 2))
    assert np.allclose(plan.matrices, [[[640 / 384, 0, 107], [0, 480 / 384, 0]]] * 2)


def test_flips_greys_and_damage_come_at_their_published_rates():
    dataset = FakeSet([FakeVideo()])
    plans = [RdeVideo().plan(request(dataset, n)) for n in range(1500)]
    assert abs(sum(plan.steps.flip for plan in plans) - 750) < 4 * math.sqrt(375)
    assert abs(sum(plan.steps.grayscale for plan in plans) - 75) < 4 * math.sqrt(75)
    targets = np.array([plan.damage_iou for plan in plans])
    assert 0.85 <= targets.min() < 0.852
    assert 0.998 < targets.max() < 1.0
    assert len({plan.damage_key for plan in plans}) == 1500


def test_frame_angles_cover_their_ranges_and_differ_within_a_clip():
    dataset = FakeSet([FakeVideo()])
    linear = np.array([RdeVideo().plan(request(dataset, n)).steps.affines[:, :, :2] for n in range(400)])
    rotation = np.degrees(np.arctan2(-linear[:, :, 1, 0], linear[:, :, 1, 1])).ravel()
    assert (-15 <= rotation.min() < -14.8, 14.8 < rotation.max() <= 15) == (True, True)
    # det 1 and row 1 = (-sin, cos): undoing the rotation leaves (1, tan shear; 0, 1).
    sine, cosine = -linear[:, :, 1, 0], linear[:, :, 1, 1]
    shear = np.degrees(np.arctan(linear[:, :, 0, 1] * cosine - linear[:, :, 0, 0] * sine)).ravel()
    assert np.abs(shear).max() <= 10.0001
    assert len(np.unique(rotation)) == 2000


# Options


def test_the_smallest_crop_switches_at_its_step_and_moves_nothing_else():
    fakes, plain = FakeSet([FakeVideo(num_frames=40)]), RdeVideo()
    recipe = make_recipe("rde_video", {"smallest_crop": [[0, 0.6], [0.5, 0.04]]})
    areas = {}
    for step in (49, 50):
        plans = [recipe.plan(request(fakes, n, step=step, steps=100)) for n in range(200)]
        heights, widths = np.array([plan.steps.crop[2:] for plan in plans]).T
        areas[step] = heights * widths / (480 * 854)
        same = [plain.plan(request(fakes, n, step=step, steps=100)).frames for n in range(200)]
        assert [plan.frames for plan in plans if not plan.trial] == [
            frames for plan, frames in zip(plans, same, strict=True) if not plan.trial
        ]
    assert areas[49].min() > 0.59 and 0.04 <= areas[50].min() < 0.1


def test_options_from_yaml_become_a_recipe():
    recipe = make_recipe("rde_video", {"size": 96, "max_gap": [[0.0, 3]], "crop_area": [0.25, 1], "damage_iou": None,
                                       "clip_jitter": [0, 0.1, 0.2]})  # fmt: skip
    assert recipe == RdeVideo(size=(96, 96), max_gap=Table(((0, 3),)), crop_area=(0.25, 1), damage_iou=None,
                              clip_jitter=(0, 0.1, 0.2))  # fmt: skip
    assert recipe.size == (96, 96)
    assert recipe.clip_jitter.saturation == 0.2


def test_defaults_are_the_published_values():
    recipe = make_recipe("rde_video", {})
    assert (recipe.num_frames, recipe.size, recipe.trials, recipe.num_slots) == (5, (384, 384), 5, 2)
    assert [recipe.max_gap.at(s, 10) for s in range(10)] == [5, 10, 15, 20, 25, 25, 25, 25, 25, 5]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rde_vide", {}, "no recipe 'rde_vide', did you mean 'rde_video'; there are: rde_static, rde_bl30k, rde_video"),
        ("rde_video", {"rotatoin": 3}, "has no 'rotatoin', did you mean 'rotation'; it has: num_frames"),
        ("rde_video", {"crop_area": [0.5, 0.3]}, "crop_area must be 2 numbers within .*, the lower first, got"),
        ("rde_video", {"crop_area": [0, 1]}, "crop_area must be 2 numbers within 1e-06..1"),
        ("rde_video", {"damage_iou": [0.85, 1.5]}, "damage_iou must be 2 numbers within 0..1"),
        ("rde_video", {"flip": 1.5}, "flip must be a number within 0..1, got 1.5"),
        ("rde_video", {"flip": "often"}, "flip must be a number within 0..1, got 'often'"),
        ("rde_video", {"num_frames": 0}, "num_frames must be a whole number of at least 1, got 0"),
        ("rde_video", {"num_frames": 2.5}, "num_frames must be a whole number of at least 1, got 2.5"),
        ("rde_video", {"max_gap": [[0, 0.5]]}, "max_gap must be a number of at least 1, got 0.5"),
        ("rde_video", {"max_gap": [[0, 5], [0.5, 0]]}, "max_gap must be a number of at least 1, got 0.0"),
        ("rde_video", {"num_frames": True}, "num_frames must be a whole number of at least 1, got True"),
        ("rde_video", {"size": [True, 8]}, "size must be 2 whole numbers of at least 1, got"),
        ("rde_video", {"smallest_crop": [[0, 2]]}, "smallest_crop must be a number within 1e-06..1"),
        ("rde_video", {"max_gap": 5}, "a table is a list of rows"),
        ("rde_video", {"clip_length": [[0, 6]]}, "clip_length must be a whole number within 1..5, got 6"),
        ("rde_video", {"clip_length": 5}, "clip_length: a table is a list of rows"),
        ("rde_bl30k", {"clip_length": [[0, 2]]}, "clip_length must be a whole number within 3..5, got 2"),
        ("rde_static", {"clip_length": [[0, 2.5]]}, "clip_length must be a whole number within 1..3, got 2.5"),
        ("mtmfi", {"clip_length": [[0, 1]]}, "clip_length must be a whole number within 2..3, got 1"),
        ("rde_video", {"max_gap": [[0.5, 5]]}, "starts with a row at progress 0"),
        ("rde_video", {"size": [1, 2, 3]}, "size must be 2 whole numbers of at least 1, got"),
        ("rde_video", {"fill": [1, 2]}, "fill must be 3 numbers within 0..255"),
        ("rde_video", {"clip_jitter": [1, 2]}, "clip_jitter must be 3 numbers within 0..1"),
    ],
)
def test_options_that_make_no_clip_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_recipe(name, options)


def test_every_recipe_of_the_catalogue_can_be_made_by_its_name():
    assert {name: type(make_recipe(name, {})) for name in RECIPES} == RECIPES


# BL30K


def test_bl30k_differs_from_video_where_the_paper_says_so():
    bl30k, video = RdeBl30k(), RdeVideo()
    assert bl30k.crop_area == (0.25, 1.0)
    assert bl30k.max_gap.switches(500_000)[-1] == (400_000, 5)
    assert video.max_gap.switches(500_000)[-1] == (450_000, 5)
    assert bl30k.area_rule == AreaRule(large=900, small=100, later=400)
    same = dataclasses.replace(bl30k, crop_area=(0.36, 1.0), max_gap=video.max_gap, area_rule=None)
    assert dataclasses.asdict(same) == dataclasses.asdict(video)


def test_bl30k_draws_again_where_no_object_can_be_large_enough():
    tiny = FakeSet([FakeVideo(num_frames=160, size=(512, 768), boxes={1: (200, 200, 205, 205)})])
    large = FakeSet([FakeVideo(num_frames=160, size=(512, 768), boxes={1: (100, 100, 400, 600)})])
    assert {RdeBl30k().plan(request(tiny, n)).trial for n in range(20)} == {4}
    assert {RdeBl30k().plan(request(large, n)).trial for n in range(20)} == {0}
    assert 0 in {RdeVideo().plan(request(tiny, n)).trial for n in range(20)}


def test_an_area_rule_comes_from_yaml_as_three_numbers():
    assert make_recipe("rde_bl30k", {"area_rule": [90, 10, 40]}).area_rule == AreaRule(90, 10, 40)
    with pytest.raises(ValueError, match="area_rule must be 3 whole numbers of at least 0"):
        make_recipe("rde_bl30k", {"area_rule": [90, 10]})
    with pytest.raises(ValueError, match="num_frames must be a whole number of at least 3"):
        make_recipe("rde_bl30k", {"num_frames": 2})
