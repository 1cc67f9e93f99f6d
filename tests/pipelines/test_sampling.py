"""Data sets come in exact proportion, every video once per pass, and no video is left out in silence."""

from __future__ import annotations

from collections import Counter

import pytest

from pipelines.order.curriculum import Table
from pipelines.order.pooled import Pooled
from pipelines.order.sampling import Mix, MixEntry, annotated_frames, select_videos
from pipelines.order.turns import Phase
from shards.errors import DataError
from tests.pipelines.fake_set import FakeSet, FakeVideo

KEY = (1, 2)


def make_set(name: str, count: int) -> FakeSet:
    return FakeSet([FakeVideo(f"{name}{row}", num_frames=10) for row in range(count)], name=name)


def make_mix(*entries: tuple[int, int]) -> Mix:
    return Mix(
        [MixEntry(make_set(f"set{i}", n), "train", repeat) for i, (n, repeat) in enumerate(entries)], min_frames=3
    )


def test_every_video_comes_exactly_once_per_pass():
    mix = make_mix((5, 3), (13, 1))
    picks = [mix.pick(KEY, n) for n in range(2 * 28)]
    times = Counter((pick.dataset, pick.video_pass, pick.video) for pick in picks)
    assert set(times.values()) == {1}
    assert {key for key in times if key[0] == 0} == {(0, e, v) for e in range(6) for v in range(5)}
    assert {key for key in times if key[0] == 1} == {(1, e, v) for e in range(2) for v in range(13)}


def test_passes_and_keys_have_orders_of_their_own():
    mix = make_mix((30, 1))
    orders = [[mix.pick(key, 30 * e + n).video for n in range(30)] for key in (KEY, (1, 3)) for e in range(2)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(30)) for order in orders)


def test_a_pick_does_not_depend_on_the_picks_before_it():
    numbers = [70, 3, 1_000_003, 0, 69, 71, 10**12]
    fresh = [make_mix((5, 2), (60, 1)).pick(KEY, n) for n in numbers]
    mix = make_mix((5, 2), (60, 1))
    assert [mix.pick(KEY, n) for n in numbers] == fresh


def test_videos_without_frames_annotation_or_objects_are_left_out_by_name_and_reason():
    dataset = FakeSet(
        [
            FakeVideo("good"),
            FakeVideo("short", num_frames=2),
            FakeVideo("blank", annotated_every=0),
            FakeVideo("empty", boxes={}),
            FakeVideo("sparse", num_frames=10, annotated_every=5),
            FakeVideo("other", splits=("val",)),
        ]
    )
    mix = Mix([MixEntry(dataset, "train", repeat=5)], min_frames=3)
    assert mix.selections[0].videos.tolist() == [0]
    assert mix.selections[0].excluded == (
        ("fewer than 3 annotated frames", "short"),
        ("no annotated frame", "blank"),
        ("no object in any frame", "empty"),
        ("fewer than 3 annotated frames", "sparse"),
    )
    assert mix.report() == (
        "fake train: 1 video x 5 = 5 of 5 clips; left out 2 with fewer than 3 annotated frames (first: short); "
        "1 with no annotated frame (first: blank); 1 with no object in any frame (first: empty)",
    )


def test_a_report_of_a_sound_set_says_that_none_is_left_out():
    assert make_mix((4, 2), (3, 1)).report() == (
        "set0 train: 4 videos x 2 = 8 of 11 clips; none left out",
        "set1 train: 3 videos x 1 = 3 of 11 clips; none left out",
    )


def test_a_set_with_nothing_to_train_on_is_refused_with_the_reasons():
    dataset = FakeSet([FakeVideo("a", num_frames=2), FakeVideo("b", boxes={})])
    with pytest.raises(DataError, match="found 2 videos: 1 with fewer than 3 annotated frames") as caught:
        select_videos(MixEntry(dataset, "train"), 3)
    assert caught.value.path == str(dataset.path)
    with pytest.raises(DataError, match="found no video in it"):
        select_videos(MixEntry(dataset, "val"), 3)


def test_positions_are_the_annotated_frames_where_only_some_are():
    dataset = FakeSet([FakeVideo(num_frames=7), FakeVideo(num_frames=12, annotated_every=5)])
    assert annotated_frames(dataset, 0).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert annotated_frames(dataset, 1).tolist() == [7, 12, 17]


def test_the_fingerprint_names_the_data_and_their_proportions():
    one, other = make_set("one", 3), FakeSet([FakeVideo()], name="one", fingerprint="a" * 64)
    mixes = [[MixEntry(one, "train")], [MixEntry(other, "train")], [MixEntry(one, "train", repeat=2)]]
    assert len({Mix(entries, min_frames=3).fingerprint for entries in mixes}) == 3
    assert make_mix((3, 1)).fingerprint == make_mix((3, 1)).fingerprint


@pytest.mark.parametrize("field", ["repeat", "gap_step"])
def test_a_repeat_or_step_below_one_is_refused(field: str):
    with pytest.raises(ValueError, match=f"{field} of set must be at least 1, got 0"):
        MixEntry(make_set("set", 1), "train", **{field: 0})


def test_an_empty_mix_is_refused():
    with pytest.raises(ValueError, match="at least one entry"):
        Mix([], min_frames=3)


def changing_mix(**options) -> Mix:
    """5 videos twice, then not at all, then once; 7 videos twice, then once: 6, 5 and 9 steps of 4 clips."""
    first = Table(((0, 2), (0.3, 0), (0.55, 1)))
    entries = [
        MixEntry(make_set("a", 5), "train", first),
        MixEntry(make_set("b", 7), "train", Table(((0, 2), (0.3, 1)))),
    ]
    return Mix(entries, min_frames=3, steps=20, batch_size=4, **options)


def test_weights_change_at_their_step_and_each_set_goes_on_where_it_was():
    mix = changing_mix()
    assert mix.phases == (Phase(0, (10, 14)), Phase(6, (0, 7)), Phase(11, (5, 7)))
    picks = [mix.pick(KEY, n) for n in range(80)]
    assert {pick.dataset for pick in picks[24:44]} == {1}
    alone = [make_mix((5, 1)), Mix([MixEntry(make_set("b", 7), "train")], min_frames=3)]
    for position, count in enumerate((5, 7)):
        own = [pick for pick in picks if pick.dataset == position]
        assert [pick.video_pass for pick in own] == [n // count for n in range(len(own))]
        for video_pass in range(len(own) // count):
            videos = [pick.video for pick in own if pick.video_pass == video_pass]
            assert sorted(videos) == list(range(count))
    # The order within a set is that of its position alone, whatever it is mixed with.
    assert [p.video for p in picks if p.dataset == 0][:10] == [alone[0].pick(KEY, n).video for n in range(10)]


@pytest.mark.parametrize("pooled", [None, Pooled(2, 2, 2)])
def test_counts_are_those_of_the_picks_at_every_clip(pooled: Pooled | None):
    mix = changing_mix(pooled=pooled)
    seen: Counter[int] = Counter()
    for number in range(90):
        assert mix.counts(number) == (seen[0], seen[1])
        seen[mix.pick(KEY, number).dataset] += 1
    for first, weights in mix.phases[1:2]:
        assert [mix.pick(KEY, n).dataset for n in range(4 * first, 4 * first + 20)] == [1] * 20, weights


def test_passes_go_by_the_weights_of_their_time():
    mix = changing_mix()
    assert [mix.passes(clips) for clips in (0, 12, 24, 31, 44, 80)] == pytest.approx(
        [0, 0.5, 1, 2, 1 + 20 / 7, 1 + 20 / 7 + 3]
    )
    assert make_mix((5, 3), (13, 1)).passes(42) == pytest.approx(1.5)


def test_a_report_says_from_which_step_a_weight_holds():
    assert changing_mix().report() == (
        "a train: 5 videos x 2 = 10 of 24 clips, from step 6 x 0 = 0 of 7 clips, from step 11 x 1 = 5 of 12 clips; "
        "none left out",
        "b train: 7 videos x 2 = 14 of 24 clips, from step 6 x 1 = 7 of 7 clips, from step 11 x 1 = 7 of 12 clips; "
        "none left out",
    )


def test_clips_of_a_pass_may_be_a_table_too():
    entries = [
        MixEntry(make_set("a", 5), "train", clips_per_pass=Table(((0, 3), (0.5, 9)))),
        MixEntry(make_set("b", 7), "train"),
    ]
    mix = Mix(entries, min_frames=3, steps=10)
    assert mix.phases == (Phase(0, (3, 7)), Phase(5, (9, 7)))
    assert mix.report()[0] == (
        "a train: 5 videos in 3 clips = 3 of 10 clips, from step 5 in 9 clips = 9 of 16 clips; none left out"
    )


def test_a_table_of_one_value_is_that_value():
    entries = [
        MixEntry(make_set("set0", 5), "train", Table(((0, 3), (0.5, 3)))),
        MixEntry(make_set("set1", 13), "train"),
    ]
    constant, mix = make_mix((5, 3), (13, 1)), Mix(entries, min_frames=3, steps=9)
    assert mix.fingerprint == constant.fingerprint
    assert mix.phases == constant.phases
    assert [mix.pick(KEY, n) for n in range(60)] == [constant.pick(KEY, n) for n in range(60)]


def test_another_table_of_weights_is_another_mix():
    names = {changing_mix().fingerprint, make_mix((5, 2), (7, 2)).fingerprint}
    other = MixEntry(make_set("a", 5), "train", Table(((0, 2), (0.3, 0))))
    names.add(Mix([other, MixEntry(make_set("b", 7), "train")], min_frames=3, steps=20).fingerprint)
    assert len(names) == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, -1], [0.5, 2]], "repeat of set must be at least 0, and above 0 somewhere, got -1"),
        ([[0, 0], [0.5, 0]], "repeat of set must be at least 0, and above 0 somewhere, got 0"),
        ([[0, 1], [0.5, 1.5]], "repeat of set must be a whole number, got 1.5"),
    ],
)
def test_tables_that_are_no_counts_are_refused(rows: list[list[float]], message: str):
    with pytest.raises(ValueError, match=message):
        MixEntry(make_set("set", 1), "train", Table(rows))  # type: ignore[arg-type]


def test_a_step_at_which_nothing_has_a_weight_is_refused():
    with pytest.raises(ValueError, match="not all 0"):
        Mix([MixEntry(make_set("set", 1), "train", Table(((0, 1), (0.5, 0))))], min_frames=3, steps=4)
