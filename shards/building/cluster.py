"""Running the jobs of a build on many machines with Dask; the only module that knows it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shards.building.jobs import Progress, Report, ShardJob, Workshop
from shards.building.plan import BuildRequest
from shards.errors import DataError
from shards.locks import hold_worker
from shards.sources.types import Source

# Of a shard whose worker died or whose storage failed; refused input is no failure and never tried again.
RETRIES = 3
# Events of unfinished shards, on their way to the person who waits.
_TOPIC = "vosforge progress"
_TELL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a task sends back: the shard, the work it did in all, and the refusal that ended it if there was one."""

    shard: str
    progress: Progress
    refusal: DataError | None


class Ledger:
    """Passes on what tasks tell while they run, and at the end of each what it did in all, less what was told.

    So the sums are right whatever came late, got lost, or was told twice because a worker died.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._told: dict[str, Progress] = {}
        self._finished: set[str] = set()
        self._lock = threading.Lock()  # events come in a thread of the client

    def tell(self, event: tuple[float, tuple[str, Progress]]) -> None:
        """A task has done so much more. event: its time and (shard, progress)."""
        shard, progress = event[1][0], Progress(*event[1][1])
        with self._lock:
            if shard not in self._finished:
                self._told[shard] = _add(self._told.get(shard, Progress(0, 0, 0)), progress)
                self._report(progress)

    def finish(self, shard: str, total: Progress) -> None:
        """A task is done."""
        with self._lock:
            self._finished.add(shard)
            told = self._told.pop(shard, Progress(0, 0, 0))
            self._report(Progress(*(all_ - part for all_, part in zip(total, told, strict=True))))


def _add(one: Progress, other: Progress) -> Progress:
    return Progress(one.frames + other.frames, one.bytes + other.bytes, one.refused + other.refused)


def run_on_dask(
    jobs: list[ShardJob],
    source: Source,
    request: BuildRequest,
    report: Report,
    *,
    scheduler: str | None,
    announce: Callable[[str], None],
) -> None:
    """Run all jobs as Dask tasks, one shard each; an engine of `build.build`.

    scheduler: address of a running one, whose workers must see source and output under the same names; None starts
    `request.jobs` worker processes on this machine. `announce` gets the dashboard's address. The first refused input
    cancels what has not begun and is raised; a shard that fails otherwise is tried RETRIES times more.
    """
    from distributed import KilledWorker, as_completed  # noqa: PLC0415  an extra, and slow to import

    ledger = Ledger(report)
    with _connected(scheduler, request.jobs) as client:
        announce(client.dashboard_link)
        client.subscribe_topic(_TOPIC, ledger.tell)
        shared = client.scatter((source, request), broadcast=True, hash=False)
        futures = [
            client.submit(_run_task, job, shared, key=f"{job.path.stem}-{id(jobs)}", retries=RETRIES, pure=False)
            for job in jobs
        ]
        try:
            for future in as_completed(futures):
                outcome = future.result()
                ledger.finish(outcome.shard, outcome.progress)
                if outcome.refusal is not None:
                    raise outcome.refusal
        except KilledWorker as error:
            raise OSError(f"workers of the cluster died over and over (out of memory?): {error}") from None
        finally:
            client.cancel(futures)


@contextlib.contextmanager
def _connected(scheduler: str | None, workers: int) -> Iterator[Any]:
    from distributed import Client, LocalCluster  # noqa: PLC0415

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=30)
        except OSError as error:
            raise DataError(
                scheduler,
                expected="a Dask scheduler",
                found=str(error),
                remedy="start `dask scheduler` and `dask worker` where this address is reached",
            ) from None
        with client:
            yield client
        return
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as cluster,
        Client(cluster) as client,
    ):
        yield client


class _Teller:
    """In a worker: adds up what a task does, and tells it about once a second."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._untold = Progress(0, 0, 0)
        self._last = time.monotonic()
        self.total = Progress(0, 0, 0)

    def report(self, progress: Progress) -> None:
        from distributed import get_worker  # noqa: PLC0415

        self.total, self._untold = _add(self.total, progress), _add(self._untold, progress)
        if time.monotonic() - self._last >= _TELL_SECONDS:
            get_worker().log_event(_TOPIC, (self._shard, tuple(self._untold)))
            self._untold, self._last = Progress(0, 0, 0), time.monotonic()


def _run_task(job: ShardJob, shared: tuple[Source, BuildRequest]) -> _Outcome:
    source, request = shared
    # A retry of a task whose worker died between the last byte and the answer finds its work done.
    if job.is_current(source, request.on_bad):
        return _Outcome(job.path.stem, Progress(job.num_frames, 0, 0), None)
    teller = _Teller(job.path.stem)
    try:
        with hold_worker(job.work):
            Workshop(source, request, map, teller.report).run(job)
    except DataError as refusal:
        return _Outcome(job.path.stem, teller.total, refusal)
    return _Outcome(job.path.stem, teller.total, None)
