"""Data sets come in exact proportion, every video once per pass, and no video is left out in silence."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.order.sampling import Mix, MixEntry, annotated_frames, select_videos, share
from shards.errors import DataError
from tests.pipelines.fake_set import FakeSet, FakeVideo

KEY = (1, 2)


def make_set(name: str, count: int) -> FakeSet:
    return FakeSet([FakeVideo(f"{name}{row}", num_frames=10) for row in range(count)], name=name)


def make_mix(*entries: tuple[int, int]) -> Mix:
    return Mix(
        [MixEntry(make_set(f"set{i}", n), "train", repeat) for i, (n, repeat) in enumerate(entries)], min_frames=3
    )


def test_davis_five_times_and_youtube_once_is_300_to_3464_in_every_window():
    turns = np.array([share(n, (300, 3464))[0] == 0 for n in range(3 * 3764)])
    counted = np.concatenate([[0], np.cumsum(turns)])
    ends = np.arange(len(counted))
    for length in (1, 8, 12, 13, 100, 3763, 3764, 5000):
        counts = counted[length:] - counted[: len(ends) - length]
        assert np.abs(counts - length * 300 / 3764).max() < 1
    assert counted[3764] == 300


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 10**9), st.integers(1, 60))
def test_counts_in_a_window_are_within_one_per_split_level(weights: list[int], start: int, length: int):
    counts = Counter(share(n, weights)[0] for n in range(start, start + length))
    for level, weight in enumerate(weights):
        assert abs(counts[level] - Fraction(length * weight, sum(weights))) < level + 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_turns_of_each_part_count_up_by_one_and_fill_the_period_exactly(weights: list[int]):
    seen: Counter[int] = Counter()
    for number in range(2 * sum(weights)):
        part, index = share(number, weights)
        assert index == seen[part]
        seen[part] += 1
    assert [seen[part] for part in range(len(weights))] == [2 * weight for weight in weights]


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
        "fake train: 1 videos x 5 = 5 of 5 clips; left out 2 with fewer than 3 annotated frames (first: short); "
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
