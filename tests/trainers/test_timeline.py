"""Spans of time from a clock that is turned by hand."""

from __future__ import annotations

import threading

import pytest

from trainers.throughput.timeline import Span, Timeline, chrome_trace, covered_seconds, occupancy, sum_by_name


class Clock:
    """A clock that goes on by one second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_spans_say_what_ran_when_and_where() -> None:
    timeline = Timeline(Clock())
    double = timeline.timed("double", lambda number: 2 * number)
    with timeline.span("outer"):
        assert double(21) == 42
    here = threading.current_thread().name
    assert timeline.spans == [Span("double", here, 2.0, 1.0), Span("outer", here, 1.0, 3.0)]
    assert sum_by_name([*timeline.spans, Span("double", "x", 9, 5)]) == {"double": 6.0, "outer": 3.0}


def test_a_block_that_fails_is_recorded_too() -> None:
    timeline = Timeline(Clock())
    with pytest.raises(KeyError), timeline.span("fails"):
        raise KeyError("x")
    assert [span.name for span in timeline.spans] == ["fails"]


def test_threads_are_told_apart() -> None:
    timeline = Timeline()
    thread = threading.Thread(target=timeline.timed("work", lambda: None), name="reader")
    thread.start()
    thread.join()
    timeline.timed("work", lambda: None)()
    assert {span.thread for span in timeline.spans} == {"reader", threading.current_thread().name}


def test_time_in_which_several_threads_work_counts_once() -> None:
    spans = [
        Span("read", str(start), start, seconds) for start, seconds in ((5, 1), (0, 4), (1, 1), (3, 1.5), (5.5, 1))
    ]
    assert covered_seconds(spans) == pytest.approx(4.5 + 1.5)
    assert covered_seconds([]) == 0


def test_occupancy_counts_what_lies_between_making_and_taking() -> None:
    assert occupancy(made=[1, 2, 5], taken=[3, 5]) == [(1, 1), (2, 2), (3, 1), (5, 2), (5, 1)]


def test_a_trace_holds_complete_events_in_microseconds_with_named_threads() -> None:
    events = chrome_trace([Span("b", "two", 3.0, 0.5), Span("a", "one", 2.0, 0.25)], process=4, name="rank 4")
    named = {(event["name"], event["args"]["name"]) for event in events if event["ph"] == "M"}
    assert named == {("process_name", "rank 4"), ("thread_name", "one"), ("thread_name", "two")}
    assert [event for event in events if event["ph"] == "X"] == [
        {"ph": "X", "name": "a", "pid": 4, "tid": 0, "ts": 0.0, "dur": 250_000.0},
        {"ph": "X", "name": "b", "pid": 4, "tid": 1, "ts": 1_000_000.0, "dur": 500_000.0},
    ]
    assert chrome_trace([])[0]["ph"] == "M"
