"""A process that makes no progress says where it stands and ends, so that a job does not hang until its time is up."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

HUNG_STATUS = 70
"""Exit status of a process that its watchdog ended: EX_SOFTWARE."""

_STDERR = 2

GRACE_SECONDS = 30.0
"""After which the C library's timer ends a process whose interpreter is itself stuck (status 1, stacks on stderr)."""


class Watchdog:
    """Ends the process when no `begin` has come for `seconds`; one phase of unlimited length is called "".

    name: of this process, for messages. folder: where the stacks of all threads go, as stacks-<name>.txt.
    """

    def __init__(self, seconds: float, name: str, folder: Path) -> None:
        self._seconds, self._name = seconds, name
        self._path = folder / f"stacks-{name.replace(' ', '-')}.txt"
        self._phase, self._since, self._allowed = "", time.monotonic(), seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def begin(self, phase: str, patience: float = 1.0) -> None:
        """This process begins something, in words; "" may take as long as it likes, others so many times `seconds`."""
        self._phase, self._since, self._allowed = phase, time.monotonic(), self._seconds * patience
        faulthandler.cancel_dump_traceback_later()
        if phase:
            faulthandler.dump_traceback_later(self._allowed + GRACE_SECONDS, exit=True, file=_STDERR)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._ended.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            phase, allowed, waited = self._phase, self._allowed, time.monotonic() - self._since
            if phase and waited > allowed:
                self._give_up(phase, waited)

    def _give_up(self, phase: str, waited: float) -> None:
        with self._path.open("w", encoding="utf-8") as file:
            file.write(f"{self._name}: no progress for {waited:.0f} s while {phase}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        usual = f"hang_seconds={self._seconds:g}" + (", longer here" if self._allowed > self._seconds else "")
        text = "%s: no progress for %.0f s while %s; its stacks are in %s; ending with status %d (%s)"
        logger.critical(text, self._name, waited, phase, self._path, HUNG_STATUS, usual)
        logging.shutdown()
        os._exit(HUNG_STATUS)


@contextmanager
def watch(seconds: float | None, name: str, folder: Path) -> Iterator[Watchdog | None]:
    """A watchdog for the length of the block; None if it is not wanted."""
    if seconds is None:
        yield None
        return
    watchdog = Watchdog(seconds, name, folder)
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()
