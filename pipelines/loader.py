"""Batches in step order, made ahead of the training loop by threads that end with it."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import torch

from pipelines.device_feed import DeviceFeed, make_feed
from pipelines.reading.clip_reader import ClipReader, OnCorrupt, ReadClip, ReadPlan, Substitute
from pipelines.source import ClipSource
from pipelines.types import Batch, ClipPixels, ClipPlan, Executor
from shards.storage.requests import stop_waiting_when

READY_BATCHES = 2
"""Finished batches kept on the training device. More would only take its memory: the look-ahead is in encoded clips."""


class Assemble(Protocol):
    """pipelines.assembly.assemble with all but these arguments bound."""

    def __call__(self, pixels: ClipPixels, plans: tuple[ClipPlan, ...], *, step: int) -> tuple[Batch, Any]:
        """The batch, and the number of its clips that show no object: anything that `+` adds up."""


@dataclass(frozen=True, slots=True)
class LoaderStatistics:
    """What went into a number of batches of one rank.

    requests: to the storage; retries: of requests that were not answered well; bytes_read: with all that a read plan
    reads along; bytes_used: of images and masks, each frame of a clip once. trials: frame choices passed over because
    they showed no object. misses: sum of what assemble counted (0, or a tensor on its device: reading it waits for the
    device). substitutes: clips that show another video because their own bytes are damaged.
    Seconds are wall time of the loading thread, for planning, waiting for reads, the executor and assembly.
    """

    batches: int = 0
    clips: int = 0
    requests: int = 0
    retries: int = 0
    bytes_read: int = 0
    bytes_used: int = 0
    trials: int = 0
    substitutes: tuple[Substitute, ...] = ()
    misses: Any = 0
    plan_seconds: float = 0.0
    read_seconds: float = 0.0
    execute_seconds: float = 0.0
    assemble_seconds: float = 0.0

    def plus(self, other: LoaderStatistics) -> LoaderStatistics:
        """The sums of both."""
        names = [field.name for field in fields(self)]
        return LoaderStatistics(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def read_amplification(self) -> float:
        """Bytes read over bytes used; 0 before anything was."""
        return self.bytes_read / self.bytes_used if self.bytes_used else 0.0


class ClipLoader:
    """Iterates over the batches of one rank, steps start_step .. stop_step - 1, strictly in order.

    Rank r of R gets the r-th of R equal parts of each global batch, in clip order, so that the parts of all ranks one
    after the other are the same batch for every R. Files are read by `threads` threads up to `look_ahead` batches
    ahead; plans, executor and assembly run in one thread of their own, in step order. An error of that work is raised
    in the loop over the batches, after the batches before it, with a note naming the clips. The one thread works on the
    CUDA device that is current where the iteration begins; with `device`, a CUDA device, on a stream of its own there,
    and what the loop queues on its current stream waits for the batch.

    The threads start with the first batch and end with the iteration: at its end, on break, on an exception, on close()
    and when the loader is dropped. Iterating again goes on with the step after the last batch handed out. The executor
    belongs to the caller.

    reader: reads the clips, in place of one made of source, reading and on_corrupt. device_feed: brings batches to the
    device, in place of one made of device.
    wait_seconds: how long the consumer waited for the last batch. statistics: sums over all batches handed out.
    next_step: the step of the next batch.
    """

    def __init__(
        self,
        source: ClipSource,
        executor: Executor,
        assemble: Assemble,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        stop_step: int | None = None,
        look_ahead: int = 4,
        threads: int = 4,
        reading: ReadPlan | None = None,
        on_corrupt: OnCorrupt = "stop",
        device: torch.device | None = None,
        reader: ClipReader | None = None,
        device_feed: DeviceFeed | None = None,
    ) -> None:
        stop_step = source.steps if stop_step is None else stop_step
        if not 0 <= start_step <= stop_step <= source.steps:
            raise ValueError(f"a stage of {source.steps} steps has no steps {start_step} to {stop_step}")
        if look_ahead < 1 or threads < 1:
            raise ValueError(f"look_ahead and threads must be at least 1, got {look_ahead} and {threads}")
        self.clips_per_step = share_of_batch(source.batch_size, rank, world_size)
        self.next_step, self.stop_step = start_step, stop_step
        self.wait_seconds = 0.0
        self.statistics = LoaderStatistics()
        self.reader = reader or ClipReader(source, reading, on_corrupt)
        self._device_feed = device_feed or make_feed(device)
        self._work = _Work(self.reader, executor, assemble, self.clips_per_step, look_ahead, threads, self._device_feed)
        self._end_feed: Callable[[], Any] | None = None

    def __len__(self) -> int:
        """Batches still to come."""
        return self.stop_step - self.next_step

    def __iter__(self) -> Iterator[Batch]:
        """Batches from next_step on. RuntimeError in an older iteration that is asked for more after this one began."""
        self.close()
        feed = _Feed(self._work, range(self.next_step, self.stop_step))
        # The thread knows the feed, not the loader: dropping the loader, or leaving Python, ends the feed.
        self._end_feed = end_feed = weakref.finalize(self, feed.close)
        try:
            yield from iter(partial(self._receive, feed), None)
        finally:
            end_feed()

    def close(self) -> None:
        """End the threads of a running iteration and wait for them. The loader can be iterated again."""
        if self._end_feed is not None:
            self._end_feed()

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self, feed: _Feed) -> Batch | None:
        """The next batch, None after the last one. Keeps none: a loop that drops its batch frees the memory."""
        started = time.perf_counter()
        made = feed.ready.get()
        if made is None:
            return None
        if isinstance(made, BaseException):
            raise made
        self._device_feed.receive(made.mark, made.batch, made.statistics)
        self.wait_seconds = time.perf_counter() - started
        self.statistics = self.statistics.plus(made.statistics)
        self.next_step = made.batch.step + 1
        return made.batch


def share_of_batch(batch_size: int, rank: int, world_size: int) -> range:
    """Positions in the global batch that belong to a rank.

    Raises ValueError, with the nearest sizes that do, if the batch does not divide by the world size.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be 0..{world_size - 1}, got {rank}")
    if batch_size % world_size:
        below = batch_size // world_size * world_size
        sizes = f"{below} or {below + world_size}" if below else f"{world_size}"
        raise ValueError(
            f"batch_size {batch_size} does not divide by the {world_size} processes; use {sizes}, or another number "
            "of processes"
        )
    part = batch_size // world_size
    return range(rank * part, (rank + 1) * part)


@dataclass(frozen=True, slots=True)
class _Made:
    batch: Batch
    statistics: LoaderStatistics
    mark: Any


@dataclass(frozen=True, slots=True)
class _Work:
    """How batches are made; holds nothing that changes."""

    reader: ClipReader
    executor: Executor
    assemble: Assemble
    positions: range
    look_ahead: int
    threads: int
    device_feed: DeviceFeed

    @property
    def source(self) -> ClipSource:
        """Where the clips come from."""
        return self.reader.source


@dataclass(slots=True)
class _Request:
    """A step whose reads are under way."""

    step: int
    plans: tuple[ClipPlan, ...]
    reads: list[Future[ReadClip]]
    plan_seconds: float


class _Feed:
    """The threads of one iteration, and a queue of what they made: batches, then None or the error that ended it."""

    def __init__(self, work: _Work, steps: range) -> None:
        self.ready: queue.Queue[_Made | BaseException | None] = queue.Queue(READY_BATCHES)
        self._work = work
        self._steps = steps
        self._stopping = threading.Event()
        # The current CUDA device belongs to a thread: without this, ranks would pin memory and launch work on device 0.
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._own_threads: set[int] = set()
        self._readers = ThreadPoolExecutor(work.threads, "clip-reader", initializer=self._sign_in)
        # A daemon, because Python waits for other threads before it would call the finalizer that ends this one.
        self._thread = threading.Thread(target=self._run, name="clip-loader", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the call in progress and wait for it, if not for a server. Who still waits gets a RuntimeError."""
        self._stopping.set()
        self._drain()  # room for a batch that waits for it and for an error: all that can still come
        if threading.get_ident() not in self._own_threads:  # a garbage collection may call this from anywhere
            self._thread.join()
            self._drain()
            self.ready.put(RuntimeError("this iteration over a ClipLoader was closed; iterate over the loader anew"))

    def _drain(self) -> None:
        with suppress(queue.Empty):
            while True:
                self.ready.get_nowait()

    def _sign_in(self) -> None:
        self._own_threads.add(threading.get_ident())
        stop_waiting_when(self._stopping)

    def _run(self) -> None:
        self._sign_in()
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)
            for made in self._make_batches():
                self.ready.put(made)
                del made  # or a batch that was used up stays until the next one is made
            if not self._stopping.is_set():
                self.ready.put(None)
        except BaseException as error:
            self.ready.put(error)
        finally:
            self._readers.shutdown(cancel_futures=True)

    def _make_batches(self) -> Iterator[_Made]:
        under_way: deque[_Request] = deque()
        to_request = iter(self._steps)
        for _ in self._steps:
            while len(under_way) < self._work.look_ahead and (step := next(to_request, None)) is not None:
                under_way.append(self._request(step))
            if self._stopping.is_set():
                return
            yield self._make(under_way.popleft())

    def _request(self, step: int) -> _Request:
        started = time.perf_counter()
        first = step * self._work.source.batch_size
        plans = tuple(self._plan(first + position) for position in self._work.positions)
        reads = [self._readers.submit(self._work.reader.read, plan) for plan in plans]
        return _Request(step, plans, reads, time.perf_counter() - started)

    def _plan(self, number: int) -> ClipPlan:
        try:
            return self._work.source.plan(number)
        except Exception as error:
            error.add_note(f"while planning clip {number}")
            raise

    def _make(self, request: _Request) -> _Made:
        times = [time.perf_counter()]
        reads = [self._finish_read(plan, read) for plan, read in zip(request.plans, request.reads, strict=True)]
        clips = [read.clip for read in reads]
        plans = tuple(clip.plan for clip in clips)
        times.append(time.perf_counter())
        try:
            with self._work.device_feed.working():
                pixels = self._work.device_feed.upload(self._work.executor(clips))
                times.append(time.perf_counter())
                batch, misses = self._work.assemble(pixels, plans, step=request.step)
                mark = self._work.device_feed.finish()
        except Exception as error:
            described = "; ".join(self._work.source.describe(plan) for plan in plans)
            error.add_note(f"while making the batch of step {request.step}: {described}")
            raise
        times.append(time.perf_counter())
        return _Made(batch, _count(reads, misses, request.plan_seconds, times), mark)

    def _finish_read(self, plan: ClipPlan, read: Future[ReadClip]) -> ReadClip:
        try:
            return read.result()
        except Exception as error:
            error.add_note(f"while reading {self._work.source.describe(plan)}")
            raise


def _count(reads: list[ReadClip], misses: Any, plan_seconds: float, times: list[float]) -> LoaderStatistics:
    return LoaderStatistics(
        batches=1,
        clips=len(reads),
        requests=sum(read.count.requests for read in reads),
        retries=sum(read.count.retries for read in reads),
        bytes_read=sum(read.count.bytes_read for read in reads),
        bytes_used=sum(read.count.bytes_used for read in reads),
        trials=sum(read.clip.plan.trial for read in reads),
        substitutes=tuple(read.substitute for read in reads if read.substitute is not None),
        misses=misses,
        plan_seconds=plan_seconds,
        read_seconds=times[1] - times[0],
        execute_seconds=times[2] - times[1],
        assemble_seconds=times[3] - times[2],
    )
