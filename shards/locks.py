"""Who works in the folder of an unfinished build: one whole build or any number of parts, and the workers of each.

Locks of the system (flock), which end with the process that holds them, however it ends. Object stores have none.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path

from shards.errors import DataError
from shards.storage.paths import Location, RemotePath

logger = logging.getLogger(__name__)

# What file systems without locks answer.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
# Workers whose parent was killed end themselves within a fraction of a second; a machine may be busy.
ORPHAN_SECONDS = 10.0
_POLL_SECONDS = 0.1


@contextmanager
def hold_build(work: Location, *, alone: bool) -> Iterator[None]:
    """Hold the build alone, or as one of its parts.

    Alone also waits for workers that a killed build has left, for ORPHAN_SECONDS. Raises DataError where others are at
    work. Two builds of one plan in an object store write the same bytes, each file whole or not at all.
    """
    with _locked(work, "lock", LOCK_EX if alone else LOCK_SH, 0.0, "another one running"):
        if alone:
            with _locked(work, "workers", LOCK_EX, ORPHAN_SECONDS, "worker processes of a stopped one"):
                pass
        yield


@contextmanager
def hold_claim(work: Location) -> Iterator[None]:
    """Look at the record of a build and write it as nobody else does."""
    with _locked(work, "claim", LOCK_EX, ORPHAN_SECONDS, "another one that does not begin"):
        yield


@contextmanager
def hold_worker(work: Location) -> Iterator[None]:
    """Held by each process that makes shards for another one: a later build alone waits until it is gone."""
    with _locked(work, "workers", LOCK_SH, ORPHAN_SECONDS, "another one running"):
        yield


@contextmanager
def hold_work(path: Path, stop: threading.Event) -> Iterator[None]:
    """Hold the lock file of a piece of work that parts on many machines would all do; wait as long as it takes them.

    Raises InterruptedError if `stop` is set meanwhile.
    """
    with path.open("a+b") as file:
        if not _take(file.fileno(), LOCK_EX, 0.0, path):
            logger.info("%s: another process is at it; waiting", path.stem)
            while not _take(file.fileno(), LOCK_EX, _POLL_SECONDS, path):
                if stop.is_set():
                    raise InterruptedError("stopped while waiting for another process")
        yield


@contextmanager
def hold_alone(folder: Path) -> Iterator[bool]:
    """Whether the file `lock` of a folder could be locked; it is for the length of the block. True without locks."""
    with (folder / "lock").open("a+b") as file:
        yield _take(file.fileno(), LOCK_EX, 0.0, folder)


@contextmanager
def _locked(work: Location, name: str, kind: int, seconds: float, found: str) -> Iterator[None]:
    if isinstance(work, RemotePath):
        yield
        return
    with (work / name).open("a+b") as file:  # open for both: what a network file system asks for both kinds of lock
        if not _take(file.fileno(), kind, seconds, work):
            raise DataError(
                work.parent,
                expected="one build at a time, or parts only (--part)",
                found=found,
                remedy="wait for it or stop it",
            )
        yield


def _take(descriptor: int, kind: int, seconds: float, work: Path) -> bool:
    """Whether the lock could be had within this time; True where there are no locks."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            flock(descriptor, kind | LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s: no locks here (%s); see that nobody else is at work there", work, error.strerror)
            return True
        else:
            return True
