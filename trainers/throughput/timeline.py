"""What every thread did when: spans of time by name, as sums and as a trace for chrome://tracing or Perfetto."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Span(NamedTuple):
    """Work named `name` on a thread, begun at `start` (seconds of the timeline's clock) and lasting `seconds`."""

    name: str
    thread: str
    start: float
    seconds: float


class Timeline:
    """Collects spans from any number of threads. clock: seconds; never runs backwards."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._spans: list[Span] = []

    @property
    def spans(self) -> list[Span]:
        """A copy of all spans that have ended so far, in the order of their ends."""
        return list(self._spans)

    def add(self, name: str, start: float, end: float) -> None:
        """Record work of this thread that began and ended at these times."""
        self._spans.append(Span(name, threading.current_thread().name, start, end - start))

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record the block; one that raises is recorded too."""
        start = self.clock()
        try:
            yield
        finally:
            self.add(name, start, self.clock())

    def timed(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """`function`, every call of which is recorded."""

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.span(name):
                return function(*args, **kwargs)

        return call


def sum_by_name(spans: Iterable[Span]) -> dict[str, float]:
    """Seconds of all spans of each name together, over all threads."""
    sums: dict[str, float] = defaultdict(float)
    for span in spans:
        sums[span.name] += span.seconds
    return dict(sums)


def covered_seconds(spans: Iterable[Span]) -> float:
    """Wall time during which at least one of the spans lasts, in any thread."""
    covered, end = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        stop = span.start + span.seconds
        covered += max(0.0, stop - max(span.start, end))
        end = max(end, stop)
    return covered


def occupancy(made: Sequence[float], taken: Sequence[float]) -> list[tuple[float, int]]:
    """(time, how many lie ready) at each change of a queue into which things come and from which they are taken.

    made, taken: times of each event, in any order.
    """
    # Whatever is taken at the time it is made came first.
    changes = sorted([(at, 0, 1) for at in made] + [(at, 1, -1) for at in taken])
    level, levels = 0, []
    for at, _, change in changes:
        level += change
        levels.append((at, level))
    return levels


def chrome_trace(spans: Iterable[Span], *, process: int = 0, name: str = "") -> list[dict[str, Any]]:
    """Events of the Trace Event Format: complete events ("X"), times in microseconds from the first span on.

    process: number of the process in the viewer, such as a rank; name: what it is called there.
    """
    ordered = sorted(spans, key=lambda span: span.start)
    threads = {thread: number for number, thread in enumerate(dict.fromkeys(span.thread for span in ordered))}
    named = {"process_name": [(0, name)], "thread_name": [(number, thread) for thread, number in threads.items()]}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": kind, "pid": process, "tid": number, "args": {"name": text}}
        for kind, texts in named.items()
        for number, text in texts
    ]
    for span in ordered:
        times = {"ts": 1e6 * (span.start - ordered[0].start), "dur": 1e6 * span.seconds}
        events.append({"ph": "X", "name": span.name, "pid": process, "tid": threads[span.thread], **times})
    return events
