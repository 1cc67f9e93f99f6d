"""How long steps take and how much of that is waiting for data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

NUM_WARM_UP_STEPS = 3
"""First steps of a process that are left out: they choose kernels, allocate memory and fill the loader's look-ahead."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Means over `num_steps` steps, in milliseconds: whole steps, and the part of each spent waiting for its batch."""

    num_steps: int
    step_ms: float
    data_ms: float


class StepTimer:
    """Sums up the steps between two reports.

    The clock is the host's: each step ends with the host reading the loss, so the device is never further behind than
    one update, and over a report the two clocks agree.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._num_seen = 0
        self._restart()

    def begin(self) -> None:
        """Start of the first step, or of work that is not a step having ended (a checkpoint, a report)."""
        self._last = self._clock()

    def end_step(self, wait_seconds: float) -> None:
        """One more step is done; it waited `wait_seconds` for its batch."""
        now = self._clock()
        self._num_seen += 1
        if self._num_seen > NUM_WARM_UP_STEPS:
            self._num_steps += 1
            self._step_seconds += now - self._last
            self._wait_seconds += wait_seconds
        self._last = now

    def take(self) -> StepTimes | None:
        """Times since the last call; None if no step since then counts."""
        num_steps = self._num_steps
        times = None
        if num_steps:
            means = (1000 * seconds / num_steps for seconds in (self._step_seconds, self._wait_seconds))
            times = StepTimes(num_steps, *means)
        self._restart()
        return times

    def _restart(self) -> None:
        self._num_steps, self._step_seconds, self._wait_seconds = 0, 0.0, 0.0
        self._last = self._clock()


def as_clock(seconds: float) -> str:
    """4:41, or 1:04:41 from an hour on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
