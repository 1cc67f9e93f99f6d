"""How long steps take, how much of that is waiting for data, and which rank the others wait for."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

NUM_WARM_UP_STEPS = 3
"""First steps of a process that are left out: they choose kernels, allocate memory and fill the loader's look-ahead."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Of `num_steps` steps, in milliseconds: means of whole steps, of the wait for the batch, of a rank's own work.

    own_ms: wait for the batch and forward passes, before gradients are exchanged: of ranks that end their steps
    together, the one with most of it is the one the others wait for. max_: the longest step and wait. peak_memory_mb:
    allocated on the GPU, or resident in memory for a CPU run, since the process began.
    """

    num_steps: int
    step_ms: float
    data_ms: float
    own_ms: float = 0.0
    max_step_ms: float = 0.0
    max_data_ms: float = 0.0
    peak_memory_mb: float = 0.0


class WorkClock:
    """Time the device takes between `start` and `stop`; `seconds` is to be read when the device has been waited for.

    On a GPU these are CUDA events, so nothing waits; on a CPU the host's clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else None
        self._times = [0.0, 0.0]

    def start(self) -> None:
        """Begin."""
        self._mark(0)

    def stop(self) -> None:
        """End; the last one counts."""
        self._mark(1)

    def seconds(self) -> float:
        """From the last start to the last stop."""
        if self._events is not None:
            return float(self._events[0].elapsed_time(self._events[1])) / 1000
        return self._times[1] - self._times[0]

    def _mark(self, position: int) -> None:
        if self._events is not None:
            self._events[position].record()
        else:
            self._times[position] = time.perf_counter()


class StepTimer:
    """Sums up the steps between two reports.

    The clock is the host's: each step ends with the host reading the loss, so the device is never further behind than
    one update, and over a report the two clocks agree.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._device = device
        self._num_seen = 0
        self._restart()

    def begin(self) -> None:
        """Start of the first step, or of work that is not a step having ended (a checkpoint, a report)."""
        self._last = self._clock()

    def end_step(self, wait_seconds: float, work_seconds: float = 0.0) -> None:
        """One more step is done; it waited `wait_seconds` for its batch and its forward passes took work_seconds."""
        now = self._clock()
        self._num_seen += 1
        if self._num_seen > NUM_WARM_UP_STEPS:
            self._steps.append((now - self._last, wait_seconds, wait_seconds + work_seconds))
        self._last = now

    def take(self) -> StepTimes | None:
        """Times since the last call; None if no step since then counts."""
        steps, times = self._steps, None
        if steps:
            step_ms, data_ms, own_ms = (1000 * sum(column) / len(steps) for column in zip(*steps, strict=True))
            longest = [1000 * max(column) for column in zip(*steps, strict=True)]
            memory = peak_memory_mb(self._device)
            times = StepTimes(len(steps), step_ms, data_ms, own_ms, longest[0], longest[1], memory)
        self._restart()
        return times

    def _restart(self) -> None:
        self._steps: list[tuple[float, float, float]] = []
        self._last = self._clock()


def worst_of(of_ranks: Sequence[StepTimes]) -> StepTimes | None:
    """Every number of the rank that has most of it; None of none."""
    if not of_ranks:
        return None
    names = [field.name for field in dataclasses.fields(StepTimes)]
    return StepTimes(**{name: max(getattr(times, name) for times in of_ranks) for name in names})


def peak_memory_mb(device: torch.device) -> float:
    """Most memory this process has had at a time: allocated by torch on a GPU, resident in memory otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def as_clock(seconds: float) -> str:
    """4:41, or 1:04:41 from an hour on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
