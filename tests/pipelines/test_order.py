"""Clip n of a stage is one and the same for ever: known plans, any order of asking, any number of ranks."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from pipelines.order.curriculum import Table
from pipelines.order.sampling import MixEntry
from pipelines.recipes import RdeVideo
from pipelines.source import ClipSource
from pipelines.types import ClipPlan
from tests.pipelines.fake_set import FakeSet, FakeVideo


def make_source(*, seed: int = 14159265, fingerprint: str = "f" * 64, steps: int = 100, batch_size: int = 4,
                **options) -> ClipSource:  # fmt: skip
    dense = FakeSet(
        [FakeVideo(f"dense{row}", num_frames=40 + row) for row in range(4)], name="dense", fingerprint=fingerprint
    )
    sparse = FakeSet(
        [FakeVideo(f"sparse{row}", num_frames=100, size=(720, 1280), annotated_every=5) for row in range(9)],
        name="sparse",
    )
    mix = [MixEntry(dense, "train", repeat=2), MixEntry(sparse, "train", gap_step=5)]
    return ClipSource(mix, RdeVideo(**options), seed=seed, steps=steps, batch_size=batch_size)


def same(one: ClipPlan, other: ClipPlan) -> bool:
    """Whether two plans agree in every number."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(ClipPlan)]
    pairs += [(getattr(one.steps, f.name), getattr(other.steps, f.name)) for f in dataclasses.fields(one.steps)]
    return all(np.array_equal(a, b) for a, b in pairs if not dataclasses.is_dataclass(a))


def facts(plan: ClipPlan) -> tuple:
    return plan.number, plan.dataset, plan.video, plan.frames, plan.object_ids, plan.trial


def test_the_first_plans_are_known():
    source = make_source()
    assert source.key == (14159265, 9301228722758694205)
    plans = [source.plan(number) for number in range(3)]
    assert [facts(plan) for plan in plans] == [
        (0, 1, 5, (540, 550, 555, 565, 570), (1, 2), 0),
        (1, 1, 3, (365, 375, 385, 390, 395), (2, 1), 0),
        (2, 0, 3, (149, 146, 140, 138, 135), (1, 2), 0),
    ]
    assert [plan.damage_key for plan in plans] == [
        (2205832932249729902, 7527542790615123633),
        (3303097686311412359, 17582312742840860047),
        (5643683773206528926, 6717324718755292527),
    ]
    assert [plan.damage_iou for plan in plans] == pytest.approx(
        [0.8615195255351719, 0.8853959641218778, 0.9109584066577133], abs=1e-12
    )
    assert [tuple(plan.steps.crop) for plan in plans] == [(7, 12, 708, 691), (78, 583, 594, 564), (22, 446, 441, 407)]
    assert [plan.steps.flip for plan in plans] == [False, False, True]
    assert [plan.steps.grayscale for plan in plans] == [False, False, False]
    assert np.allclose(
        [plan.matrices[0] for plan in plans],
        [
            [[1.73108, 0.5229, -75.26508], [-0.35607, 1.80904, 82.03017]],
            [[1.47486, -0.09823, 600.68646], [0.27576, 1.5221, 29.81173]],
            [[-1.04128, -0.21537, 445.77805], [-0.14166, 1.13967, 50.88174]],
        ],
        atol=1e-4,
    )
    assert np.allclose(
        [plan.colours[4] for plan in plans],
        [
            [
                [1.020378, -0.010168, -0.001975, 3.637113],
                [-0.005179, 1.015389, -0.001975, 3.637113],
                [-0.005179, -0.010168, 1.023582, 3.637113],
            ],
            [
                [0.925837, 0.01426, 0.002769, 3.831183],
                [0.007264, 0.932834, 0.002769, 3.831183],
                [0.007264, 0.01426, 0.921343, 3.831183],
            ],
            [
                [0.961956, 0.003733, 0.000725, 1.614179],
                [0.001901, 0.963787, 0.000725, 1.614179],
                [0.001901, 0.003733, 0.960779, 1.614179],
            ],
        ],
        atol=1e-5,
    )


def test_a_plan_does_not_depend_on_what_was_planned_before():
    numbers = [399, 0, 57, 3, 200, 58]
    together = make_source()
    asked = [together.plan(number) for number in numbers]
    assert all(same(make_source().plan(number), plan) for number, plan in zip(numbers, asked, strict=True))


def test_continuing_at_any_step_gives_the_plans_of_the_whole_run():
    whole = [make_source().plan(number) for number in range(40)]
    for start in (1, 17, 39):
        resumed = make_source()
        assert all(same(resumed.plan(number), whole[number]) for number in range(start, 40))


@pytest.mark.parametrize("change", [{"seed": 1}, {"fingerprint": "e" * 64}])
def test_another_seed_or_other_data_give_other_clips(change):
    one, other = make_source(), make_source(**change)
    assert not any(one.plan(n).damage_key == other.plan(n).damage_key for n in range(20))
    assert [one.plan(n).frames for n in range(20)] != [other.plan(n).frames for n in range(20)]


def test_a_change_of_size_or_jitter_leaves_videos_frames_and_objects_alone():
    one, other = make_source(), make_source(size=(64, 96), clip_jitter=(0, 0, 0), rotation=0)
    for number in range(50):
        a, b = one.plan(number), other.plan(number)
        assert (a.dataset, a.video, a.damage_key) == (b.dataset, b.video, b.damage_key)
        assert (a.frames, a.steps.flip) == (b.frames, b.steps.flip)


def test_the_gap_changes_with_the_step_of_the_global_batch_and_at_no_other_clip():
    table = Table(((0, 1), (0.5, 12)))
    changing = make_source(steps=10, batch_size=4, max_gap=table)
    small, large = (make_source(steps=10, batch_size=4, max_gap=Table(((0, gap),))) for gap in (1, 12))
    assert all(same(changing.plan(n), small.plan(n)) for n in range(20))
    assert all(same(changing.plan(n), large.plan(n)) for n in range(20, 40))
    assert not any(same(small.plan(n), large.plan(n)) for n in range(20) if small.plan(n).dataset == 0)


def test_the_mix_keeps_its_proportion_and_shows_every_video_once_per_pass():
    source = make_source()
    plans = [source.plan(number) for number in range(3 * 17)]
    for start in range(0, 51, 17):
        videos = sorted((plan.dataset, plan.video) for plan in plans[start : start + 17])
        assert videos == sorted([(0, v) for v in range(4)] * 2 + [(1, v) for v in range(9)])


def test_sources_planned_from_in_turn_do_not_disturb_each_other():
    generator = random.Random(0)
    one, other = make_source(), make_source(seed=2)
    expected = {(s, n): make_source(seed=s).plan(n) for s in (14159265, 2) for n in range(10)}
    for _ in range(60):
        source, seed = generator.choice([(one, 14159265), (other, 2)])
        number = generator.randrange(10)
        assert same(source.plan(number), expected[seed, number])


def test_a_description_names_data_set_video_and_frames():
    source = make_source()
    plan = source.plan(9)
    first = source.shard_set(plan).frame_rows(plan.video).start
    frames = " ".join(str(frame - first) for frame in plan.frames)
    name = f"{'dense' if plan.dataset == 0 else 'sparse'}{plan.video}"
    assert source.describe(plan) == f"clip 9 (step 2): {name[:-1]}, video {name}, frames {frames}"


def test_reading_a_clip_gives_the_bytes_of_its_frames_in_clip_order():
    source = make_source()
    clip = source.read(source.plan(5))
    name = source.shard_set(clip.plan).name
    assert [frame.image.decode() for frame in clip.frames] == [f"{name} image {frame}" for frame in clip.plan.frames]
    assert clip.mask_codec == "lz4"


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch_size": 0}])
def test_a_stage_without_steps_or_clips_is_refused(change):
    with pytest.raises(ValueError, match="at least one step and one clip"):
        make_source(**change)


def test_a_negative_clip_is_refused():
    with pytest.raises(ValueError, match="numbered from 0, got -1"):
        make_source().plan(-1)
