"""Being asked to stop, by a cluster's signal, Ctrl-C or a time limit: the step ends, the run saves and says so in its
exit status."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED_STATUS = 75
"""Exit status of a run that was asked to stop and saved: EX_TEMPFAIL, "try again later"."""

INTERRUPTED_STATUS = 130
"""The same after Ctrl-C, as shells have it."""


ENDING_VARIABLE = "VOSFORGE_ENDING"
"""Environment variable: a file for the exit status of a run that ended as asked, set by tools/launch.py.

The process itself ends with 0 then, because torchrun takes every other status for a failure and starts it again.
"""

LAUNCHER_VARIABLE = "VOSFORGE_LAUNCHER"
"""Environment variable: process id of tools/launch.py."""

STARTED_VARIABLE = "VOSFORGE_STARTED"
"""Environment variable: `time.monotonic()` when the job began, from which time limits count through its restarts."""


class StoppedAtOnce(BaseException):
    """SIGTERM or SIGUSR1 while there was nothing to save. No Exception: code that mends errors must let it pass."""


class StopRequest:
    """Which signals have arrived. `requested` and `interrupted` turn True once and stay.

    at_once: while True, a signal ends what is being done where it stands, by StoppedAtOnce or KeyboardInterrupt.
    deadline: the time of `time.monotonic()` from which on a stop is requested without any signal.
    """

    def __init__(self, *, at_once: bool = False, deadline: float | None = None) -> None:
        self.signalled = False
        self.interrupted = False
        self.at_once = at_once
        self.deadline = deadline

    @property
    def requested(self) -> bool:
        """Whether the run is to end after this step."""
        return self.signalled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Note the signal. A second Ctrl-C does not wait for the step to end."""
        if number == signal.SIGINT:
            if self.interrupted or self.at_once:
                raise KeyboardInterrupt
            self.interrupted = True
        elif self.at_once:
            raise StoppedAtOnce
        else:
            self.signalled = True


@contextmanager
def catch_stop_signals(*, at_once: bool = False, deadline: float | None = None) -> Iterator[StopRequest]:
    """Note SIGTERM, SIGUSR1 and SIGINT for the length of the block. Outside the main thread nothing is caught.

    at_once: what the request begins with; set its `at_once` to False when there is something to save.
    """
    request = StopRequest(at_once=at_once, deadline=deadline)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.signal(number, request.handle) for number in numbers]
    try:
        yield request
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
