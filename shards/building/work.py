"""Running the jobs of a build: processes for shards, and threads where there are fewer shards than cores."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from typing import Any

from shards.building.convert import OrderedMap
from shards.building.jobs import Progress, Report, ShardJob, Workshop
from shards.building.plan import BuildRequest
from shards.locks import hold_worker
from shards.sources.types import Source
from shards.storage.paths import Location

_POLL_SECONDS = 0.2


def run_jobs(jobs: list[ShardJob], source: Source, request: BuildRequest, report: Report) -> None:
    """Run all jobs on `request.jobs` cores.

    The first error stops the others at their next video and is raised; finished jobs stay finished.
    """
    processes = min(request.jobs, len(jobs))
    if processes > 1:
        _run_in_processes(jobs, source, request, report)
        return
    with frame_threads(request.jobs) as map_frames:
        workshop = Workshop(source, request, map_frames, report, ahead=request.jobs > 1)
        for job in jobs:
            workshop.run(job)


@contextmanager
def frame_threads(threads: int) -> Iterator[OrderedMap]:
    """A `map` over frames on this many threads. Decoders, codecs and hashes all release the interpreter."""
    if threads == 1:
        yield map
        return
    executor = ThreadPoolExecutor(threads)
    try:
        yield executor.map
    finally:
        executor.shutdown(cancel_futures=True)


def _run_in_processes(jobs: list[ShardJob], source: Source, request: BuildRequest, report: Report) -> None:
    context = multiprocessing.get_context("spawn")
    channel = _Channel(context)
    processes = min(request.jobs, len(jobs))
    threads = max(1, request.jobs // processes)
    begin = _Begin(os.getpid(), jobs[0].work, channel, source, request, threads)
    executor = ProcessPoolExecutor(processes, context, initializer=_begin_worker, initargs=(begin,))
    try:
        with without_interrupts():
            futures = [executor.submit(_run_in_worker, job) for job in jobs]
        _follow(futures, channel, report)
    except BrokenProcessPool:
        raise OSError(
            "a worker process was killed (out of memory?); run the same command again to go on, with fewer --jobs"
        ) from None
    finally:
        channel.stop.set()
        executor.shutdown(cancel_futures=True)


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Keep SIGINT from processes begun in here: the parent alone decides what Ctrl-C means.

    A mask, because workers inherit it: Ctrl-C while their Python still starts would print a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(futures: list[Future[None]], channel: _Channel, report: Report) -> None:
    """Pass progress on until all futures are done; raise the first error, the one of the earliest shard if several."""
    pending: set[Future[None]] = set(futures)
    while pending:
        _, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_EXCEPTION)
        channel.drain(report)
        if any(future.done() and future.exception() for future in futures):
            break
    channel.drain(report)
    for future in futures:
        if future.done():
            future.result()


class _Channel:
    """From workers to the parent: progress. From the parent to workers: whether to stop."""

    def __init__(self, context: SpawnContext) -> None:
        self.stop = context.Event()
        self._progress: multiprocessing.Queue[Progress] = context.Queue()

    def report(self, progress: Progress) -> None:
        """Called in a worker between videos."""
        self._progress.put(progress)
        if self.stop.is_set():
            raise InterruptedError("another shard failed")

    def drain(self, report: Report) -> None:
        """Called in the parent: hand over what has arrived."""
        while True:
            try:
                report(self._progress.get_nowait())
            except queue.Empty:
                return


@dataclass(frozen=True, slots=True)
class _Begin:
    """What a worker gets from its parent, whose process id it is, when it starts. work: folder of the build's locks."""

    parent: int
    work: Location
    channel: _Channel
    source: Source
    request: BuildRequest
    threads: int


class _Worker:
    """State of a worker process, set once when it starts. held: what it keeps to its end."""

    workshop: Workshop | None = None
    held = ExitStack()


def _begin_worker(begin: _Begin) -> None:
    _Worker.held.enter_context(hold_worker(begin.work))
    die_with(begin.parent)
    map_frames: Any = map if begin.threads == 1 else ThreadPoolExecutor(begin.threads).map
    _Worker.workshop = Workshop(begin.source, begin.request, map_frames, begin.channel.report, ahead=begin.threads > 1)


def begin_reader(parent: int) -> None:
    """Start of a worker that writes nothing: Ctrl-C and the end of its parent end it at once."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _run_in_worker(job: ShardJob) -> None:
    assert _Worker.workshop is not None
    _Worker.workshop.run(job)


def die_with(parent: int) -> None:
    """End this process with its parent, or a killed build would go on writing beside its successor.

    parent: its process id as the parent itself told it; one that is gone already ends this process at once.
    """
    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)
