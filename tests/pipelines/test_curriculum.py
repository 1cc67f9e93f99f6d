"""A table changes its value at one exact step, whatever floats make of its progress."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.order.curriculum import Table, first_step

GAPS = Table(((0, 5), (0.1, 10), (0.2, 15), (0.3, 20), (0.4, 25), (0.9, 5), (1.0, 5)))


@given(st.integers(0, 1000), st.integers(1, 1_000_000))
def test_a_decimal_progress_switches_at_the_integer_ceiling(thousandths: int, steps: int):
    assert first_step(thousandths / 1000, steps) == (thousandths * steps + 999) // 1000


@given(st.integers(1, 1_000_000), st.data())
def test_a_step_divided_by_the_steps_switches_at_that_step(steps: int, data: st.DataObject):
    step = data.draw(st.integers(0, steps))
    assert first_step(step / steps, steps) == step


def test_published_gap_table_switches_at_exact_steps():
    expected = ((0, 5), (15_000, 10), (30_000, 15), (45_000, 20), (60_000, 25), (135_000, 5))
    assert GAPS.switches(150_000) == expected
    for step, value in expected:
        assert GAPS.at(step, 150_000) == value
    assert [GAPS.at(step, 150_000) for step in (14_999, 29_999, 134_999, 149_999)] == [5, 10, 25, 5]


def test_learning_rate_drops_at_125_thousand_of_150_thousand():
    table = Table(((0, 2e-5), (125_000 / 150_000, 2e-6)))
    assert (table.at(124_999, 150_000), table.at(125_000, 150_000)) == (2e-5, 2e-6)


def test_rows_too_close_for_a_short_stage_give_way_to_the_later_one():
    assert GAPS.switches(4) == ((0, 5), (1, 15), (2, 25))
    assert [GAPS.at(step, 4) for step in range(4)] == [5, 15, 25, 25]


@given(st.integers(1, 60))
def test_switches_and_values_agree_at_every_step(steps: int):
    switches = dict(GAPS.switches(steps))
    value = None
    for step in range(steps):
        value = switches.get(step, value)
        assert GAPS.at(step, steps) == value


def test_after_the_last_step_the_last_value_stays():
    assert Table(((0, 1), (0.5, 2))).at(10, 10) == 2


def test_lists_as_yaml_gives_them_are_a_table():
    assert Table([[0, 5], [0.5, 7]]) == Table(((0.0, 5.0), (0.5, 7.0)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "starts with a row at progress 0"),
        (((0.1, 1),), "starts with a row at progress 0"),
        (((0, 1), (0.5, 2), (0.5, 3)), "must rise from row to row"),
        (((0, 1), (1.1, 2)), "stay within 0..1"),
        (((0, "1e-5"),), "write 1.0e-5, not 1e-5"),
        (((0,),), "two numbers"),
        (("05",), "two numbers"),
        (((0, float("inf")),), "two numbers"),
        (((0, float("nan")),), "two numbers"),
        (((0, True),), "two numbers"),
        ((5, 7), "two numbers, got 5"),
        (5, "a list of rows"),
    ],
)
def test_rows_that_are_no_table_are_refused(rows: tuple[tuple[float, float], ...], message: str):
    with pytest.raises(ValueError, match=message):
        Table(rows)


def test_a_step_before_the_first_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        GAPS.at(-1, 10)
