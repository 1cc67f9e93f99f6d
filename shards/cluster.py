"""Running the jobs of a build on many machines with Dask; the only module that knows it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shards.errors import DataError
from shards.jobs import Progress, Report, ShardJob, Workshop
from shards.locks import hold_worker
from shards.plan import BuildRequest
from shards.sources.types import Source

# Of a shard whose worker died or whose storage failed; refused input is no failure and never tried again.
RETRIES = 3


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a task sends back: the work it did, and the refusal that ended it if there was one."""

    progress: tuple[Progress, ...]
    refusal: DataError | None


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

    with _connected(scheduler, request.jobs) as client:
        announce(client.dashboard_link)
        shared = client.scatter((source, request), broadcast=True, hash=False)
        futures = [
            client.submit(_run_task, job, shared, key=f"{job.path.stem}-{id(jobs)}", retries=RETRIES, pure=False)
            for job in jobs
        ]
        try:
            for future in as_completed(futures):
                outcome = future.result()
                for progress in outcome.progress:
                    report(progress)
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


def _run_task(job: ShardJob, shared: tuple[Source, BuildRequest]) -> _Outcome:
    source, request = shared
    progress: list[Progress] = []
    # A retry of a task whose worker died between the last byte and the answer finds its work done.
    if job.is_current(source, request.on_bad):
        return _Outcome((Progress(job.num_frames, 0, 0),), None)
    try:
        with hold_worker(job.work):
            Workshop(source, request, map, progress.append).run(job)
    except DataError as refusal:
        return _Outcome(tuple(progress), refusal)
    return _Outcome(tuple(progress), None)
