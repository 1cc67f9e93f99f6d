"""Parts share turns in exact proportion, in windows across changes of the proportions too."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.order.turns import Phase, Turns


def shares(*weights: int) -> Turns:
    return Turns([Phase(0, weights)])


def test_davis_five_times_and_youtube_once_is_300_to_3464_in_every_window():
    turns = shares(300, 3464)
    taken = np.array([turns.take(n)[0] == 0 for n in range(3 * 3764)])
    counted = np.concatenate([[0], np.cumsum(taken)])
    ends = np.arange(len(counted))
    for length in (1, 8, 12, 13, 100, 3763, 3764, 5000):
        counts = counted[length:] - counted[: len(ends) - length]
        assert np.abs(counts - length * 300 / 3764).max() < 1
    assert counted[3764] == 300


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 10**9), st.integers(1, 60))
def test_counts_in_a_window_are_within_one_per_split_level(weights: list[int], start: int, length: int):
    turns = shares(*weights)
    counts = Counter(turns.take(n)[0] for n in range(start, start + length))
    for level, weight in enumerate(weights):
        assert abs(counts[level] - Fraction(length * weight, sum(weights))) < level + 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_turns_of_each_part_count_up_by_one_and_fill_the_period_exactly(weights: list[int]):
    turns, seen = shares(*weights), Counter[int]()
    for number in range(2 * sum(weights)):
        part, index = turns.take(number)
        assert index == seen[part]
        seen[part] += 1
    assert [seen[part] for part in range(len(weights))] == [2 * weight for weight in weights]


def test_constant_weights_are_shared_as_they_always_were():
    """The order of every run there is: the formula without phases, by hand."""
    turns = shares(7, 0, 5, 11)
    for number in [*range(200), 10**9, 10**12 + 7]:
        left, rest = 23, number
        for part, weight in enumerate((7, 0, 5, 11)):
            before = rest * weight // left
            if (rest + 1) * weight // left > before:
                assert turns.take(number) == (part, before)
                break
            rest, left = rest - before, left - weight


@st.composite
def phases(draw: st.DrawFn) -> list[Phase]:
    """One to four phases of 1 to 30 turns, of two to four parts, weights of 0 among them."""
    parts = draw(st.integers(2, 4))
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    weights = st.lists(st.sampled_from([0, 0, 1, 2, 3, 5, 8]), min_size=parts, max_size=parts).filter(any)
    return [Phase(sum(lengths[:row]), tuple(draw(weights))) for row in range(len(lengths))]


@settings(max_examples=60)
@given(phases())
def test_windows_across_a_change_are_as_exact_as_those_without(rows: list[Phase]):
    turns, end = Turns(rows), rows[-1].first + 40
    num_parts = len(rows[0].weights)
    taken, due = np.zeros((end + 1, num_parts)), np.zeros((end + 1, num_parts))
    for number in range(end):
        weights = np.array(next(row.weights for row in reversed(rows) if row.first <= number))
        part, index = turns.take(number)
        assert weights[part] > 0
        assert index == taken[number, part]
        assert turns.counts(number) == tuple(taken[number])
        taken[number + 1] = taken[number] + np.eye(num_parts)[part]
        due[number + 1] = due[number] + weights / weights.sum()
    off = taken - due
    windows = np.abs(off[None] - off[:, None])  # (from, to, part)
    changes = np.array([sum(row.first < number for row in rows[1:]) for number in range(end + 1)])
    one_change = np.abs(changes[None] - changes[:, None]) <= 1
    for part in range(num_parts):
        assert windows[one_change, part].max() < part + 1
    assert windows[..., 0].max() < 1
    if num_parts == 2:
        assert windows.max() < 1


def test_a_part_that_pauses_goes_on_from_its_own_count():
    turns = Turns([Phase(0, (1, 1)), Phase(10, (0, 3)), Phase(30, (4, 0))])
    assert [turns.take(n) for n in (10, 29, 30, 31)] == [(1, 5), (1, 24), (0, 5), (0, 6)]
    assert all(a[1] + 1 == b[1] for a, b in pairwise(turns.take(n) for n in range(10, 30)))


@pytest.mark.parametrize(
    "rows", [[Phase(1, (1,))], [Phase(0, (0, 0))], [Phase(0, (1, -1))], [Phase(0, (1,)), Phase(3, (0,))]]
)
def test_phases_that_share_nothing_are_refused(rows: list[Phase]):
    with pytest.raises(ValueError, match="begin at turn 0, with weights of at least 0 and not all 0"):
        Turns(rows)
