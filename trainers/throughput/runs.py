"""The runs that throughput is measured by: the data path alone, whole or with a part taken away; training; both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch.utils.hooks import RemovableHandle

from pipelines.assembly import make_assembly
from pipelines.device_feed import make_feed
from pipelines.executors import make_executor
from pipelines.executors.cpu import CpuExecutor, Step
from pipelines.loader import ClipLoader, LoaderStatistics
from pipelines.reading.clip_reader import ClipReader
from pipelines.reading.cost import ReadChoice
from pipelines.source import ClipSource
from pipelines.types import Batch, ClipPixels, EncodedClip, Executor
from trainers.running.loop import train_stage
from trainers.running.stage_run import Hooks, StageRun
from trainers.running.stages import Place
from trainers.running.stopping import StopRequest
from trainers.throughput.data_variants import (
    ENDLESS,
    KeptPixels,
    TimedFeed,
    VariedReader,
    VariedSource,
    kept_batch,
    timed_steps,
    without_augmentation,
)
from trainers.throughput.timeline import Span, Timeline

WARM_UP = 2
"""First batches or steps of a run that do not count."""
MIN_COUNT = 3
NEVER = 10**9


@dataclass(frozen=True)
class DataPath:
    """All that loaders of one stage are made of. reader: of the clips of `source`, for reading_threads threads.

    storage: what reading by other plans would take. first_step: of the stage, from which batches are taken; after the
    stage's last step comes its first.
    """

    source: ClipSource
    storage: ReadChoice
    reader: ClipReader
    reading_threads: int
    executor_name: str
    place: Place
    look_ahead: int
    first_step: int = 0


@dataclass(frozen=True)
class Variant:
    """What is taken away from the data path; nothing by default.

    clips: handed out instead of read ones. without: a step of the cpu executor. plain: no augmentation. pixels, batch:
    handed out instead of what the executor and the assembly would make.
    """

    clips: Sequence[EncodedClip] | None = None
    without: Step | None = None
    plain: bool = False
    pixels: ClipPixels | None = None
    batch: Batch | None = None


@dataclass(frozen=True)
class DataRun:
    """Batches as fast as they come. seconds: per batch. cores_busy: CPU time of the process by wall time.

    last: the last batch. next_step: the first whose clips were not asked for. spans: what every thread did. taken: when
    each batch was received, in the timeline's seconds.
    """

    seconds: float
    num_batches: int
    cores_busy: float
    statistics: LoaderStatistics
    last: Batch
    next_step: int
    spans: list[Span] = field(repr=False)
    taken: list[float] = field(repr=False)


@dataclass(frozen=True)
class StepRun:
    """Training steps. seconds, waits: of each that counts. parts: forward, backward, optimizer, rest, seconds per step.

    Times of parts are the device's own where it is a GPU.
    """

    seconds: list[float]
    waits: list[float]
    parts: dict[str, float]
    cores_busy: float
    spans: list[Span] = field(repr=False)
    taken: list[float] = field(repr=False)


@contextmanager
def open_loader(path: DataPath, variant: Variant, timeline: Timeline, num_batches: int) -> Iterator[ClipLoader]:
    """A loader over `num_batches` batches of this rank, every part of which leaves its spans on the timeline."""
    change = without_augmentation if variant.plain else None
    source = VariedSource(path.source, timeline, cached=variant.clips, change=change)
    reader = VariedReader(path.reader, source, timeline, variant.clips)
    executor = _make_executor(path, variant, timeline)
    assemble = make_assembly(path.source.recipe, path.place.device)
    with ExitStack() as stack:
        stack.callback(executor.close)
        yield stack.enter_context(
            ClipLoader(
                cast(ClipSource, source),
                cast(Executor, timeline.timed("execute", executor)),
                timeline.timed("assemble", assemble if variant.batch is None else kept_batch(variant.batch)),
                rank=path.place.ranks.rank,
                world_size=path.place.ranks.world_size,
                start_step=path.first_step,
                stop_step=path.first_step + num_batches,
                look_ahead=path.look_ahead,
                threads=path.reading_threads,
                device=path.place.device,
                reader=cast(ClipReader, reader),
                device_feed=TimedFeed(make_feed(path.place.device), timeline),
            )
        )


def _make_executor(path: DataPath, variant: Variant, timeline: Timeline) -> Executor:
    threads = path.place.threads.loading
    if variant.pixels is not None:
        return KeptPixels(variant.pixels)
    if path.executor_name == "cpu":
        return CpuExecutor(threads=threads, run=timed_steps(timeline, variant.without))
    return make_executor(path.executor_name, threads=threads, device=path.place.device)


def run_data(path: DataPath, variant: Variant, *, seconds: float) -> DataRun:
    """Take batches for about that long, and WARM_UP + MIN_COUNT of them at least."""
    timeline = Timeline()
    taken: list[float] = []
    last: Batch | None = None
    with open_loader(path, variant, timeline, ENDLESS - path.first_step) as loader:
        for batch in loader:
            last = batch
            if path.place.device.type == "cuda":
                torch.cuda.synchronize(path.place.device)  # a batch counts when it is there, not when it is promised
            taken.append(timeline.clock())
            if len(taken) == WARM_UP:
                busy = time.process_time()
            if len(taken) >= WARM_UP + MIN_COUNT and taken[-1] - taken[0] > seconds:
                break
        busy = time.process_time() - busy
        statistics = loader.statistics
    assert last is not None
    asked = sum(span.name == "plan" for span in timeline.spans)
    elapsed, count = taken[-1] - taken[WARM_UP - 1], len(taken) - WARM_UP
    return DataRun(
        seconds=elapsed / count,
        num_batches=count,
        cores_busy=busy / elapsed,
        statistics=statistics,
        last=last,
        next_step=path.first_step + asked // len(loader.clips_per_step),
        spans=timeline.spans,
        taken=taken,
    )


class WatchedLoader:
    """A loader's batches on their way into the training loop; waits become spans of the timeline."""

    def __init__(self, batches: ClipLoader | Sequence[Batch], timeline: Timeline) -> None:
        self._batches, self._timeline = batches, timeline
        self.wait_seconds = 0.0
        self.taken: list[float] = []
        self.waits: list[float] = []

    def __iter__(self) -> Iterator[Batch]:
        """The batches, in order."""
        batches = iter(self._batches)
        while True:
            start = self._timeline.clock()
            batch = next(batches, None)
            if batch is None:
                return
            end = self._timeline.clock()
            self._timeline.add("data wait", start, end)
            self.wait_seconds = end - start
            self.waits.append(end - start)
            self.taken.append(end)
            yield batch


def run_steps(run: StageRun, batches: ClipLoader | Sequence[Batch], timeline: Timeline) -> StepRun:
    """Train on the batches by the one training loop, and leave out the first WARM_UP steps. The weights do change."""
    loader = WatchedLoader(batches, timeline)
    marks = Marks(run, timeline)
    with marks.attached():
        started = time.process_time(), timeline.clock()
        train_stage(replace(run, loader=cast(ClipLoader, loader)), _quiet_hooks(marks.end_step), StopRequest())
        busy = (time.process_time() - started[0]) / (timeline.clock() - started[1])
    seconds = marks.step_seconds()[WARM_UP:]
    waits = loader.waits[WARM_UP : WARM_UP + len(seconds)]
    if run.device.type == "cuda":  # there the host gets a batch before it is ready, and the device waits for it
        waits = marks.idle_seconds()[WARM_UP - 1 :]
    return StepRun(seconds, waits, marks.parts(WARM_UP), busy, timeline.spans, loader.taken)


def _quiet_hooks(on_step: Callable[[int, float], object]) -> Hooks:
    def nothing(*_arguments: object) -> None:
        """No reports, no checkpoints."""

    return Hooks(on_step, nothing, nothing, NEVER, NEVER)


FORWARD, FORWARD_END, OPTIMIZER, OPTIMIZER_END, STEP_END = range(5)
PARTS = {
    (FORWARD, FORWARD_END): "forward",
    (FORWARD_END, FORWARD): "backward",  # of gradients that are accumulated over several passes
    (FORWARD_END, OPTIMIZER): "backward",
    (FORWARD_END, STEP_END): "backward",  # the scaler left the update out
    (OPTIMIZER, OPTIMIZER_END): "optimizer",
}
"""What lies between two marks that follow each other; anything else is the rest of the loop."""


class Marks:
    """Points in time of every step, put there by hooks of the module and the optimiser, so that no loop is copied."""

    def __init__(self, run: StageRun, timeline: Timeline) -> None:
        self._run, self._timeline = run, timeline
        self._on_gpu = next(run.module.parameters()).device.type == "cuda"
        self._marks: list[tuple[int, float, torch.cuda.Event | None]] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Put marks while the block runs."""
        module, optimizer = self._run.module, self._run.optimizer
        handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(lambda *_: self._mark(FORWARD)),
            module.register_forward_hook(lambda *_: self._mark(FORWARD_END)),
            optimizer.register_step_pre_hook(lambda *_: self._mark(OPTIMIZER)),
            optimizer.register_step_post_hook(lambda *_: self._mark(OPTIMIZER_END)),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def end_step(self, _step: int, _loss: float) -> None:
        """For the training loop, after each update."""
        self._mark(STEP_END)

    def step_seconds(self) -> list[float]:
        """From the end of each step to the end of the next, the host's clock; of the first, from its forward pass."""
        ends = [at for kind, at, _ in self._marks if kind == STEP_END]
        starts = [self._marks[0][1], *ends[:-1]]
        return [end - start for start, end in zip(starts, ends, strict=True)]

    def idle_seconds(self) -> list[float]:
        """From the end of each step to the forward pass of the next, on a GPU the device's own time."""
        if self._on_gpu:
            torch.cuda.synchronize()
        pairs = pairwise(self._marks)
        return [_between(*pair) for pair in pairs if (pair[0][0], pair[1][0]) == (STEP_END, FORWARD)]

    def parts(self, skip: int) -> dict[str, float]:
        """Mean seconds per step of every part, without the first `skip` steps. Adds the spans to the timeline."""
        if self._on_gpu:
            torch.cuda.synchronize()
        steps, sums = 0, dict.fromkeys((*PARTS.values(), "rest"), 0.0)
        for before, after in pairwise(self._marks):
            name = PARTS.get((before[0], after[0]), "rest")
            if name != "rest":
                self._timeline.add(name, before[1], after[1])
            steps += before[0] == STEP_END
            if steps >= skip:
                sums[name] += _between(before, after)
        return {name: total / max(1, steps + 1 - skip) for name, total in sums.items()}

    def _mark(self, kind: int) -> None:
        event = None
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self._marks.append((kind, self._timeline.clock(), event))


def _between(before: tuple[int, float, Any], after: tuple[int, float, Any]) -> float:
    if before[2] is not None and after[2] is not None:
        return float(before[2].elapsed_time(after[2])) / 1000
    return after[1] - before[1]
