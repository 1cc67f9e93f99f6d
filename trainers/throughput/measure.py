"""Is data or compute the limit, and which part of it? Measured by runs with parts taken away, not guessed."""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from pipelines.executors import make_executor
from pipelines.executors.cpu import Step
from pipelines.loader import share_of_batch
from pipelines.order.curriculum import Table
from pipelines.reading.cost import choose_reading
from pipelines.recipes import length_at
from pipelines.types import Batch, EncodedClip
from trainers.config import Config
from trainers.running.distributed import choose_device, gather_objects, process_group, read_ranks, share_threads
from trainers.running.stage_run import StageRun
from trainers.running.stages import Place, executor_name, open_sources, open_stage
from trainers.running.starting import make_model
from trainers.throughput.data_variants import ENDLESS
from trainers.throughput.gpu_load import gpu_name, watch_gpu
from trainers.throughput.runs import (
    MIN_COUNT,
    WARM_UP,
    DataPath,
    DataRun,
    StepRun,
    Variant,
    open_loader,
    run_data,
    run_steps,
)
from trainers.throughput.timeline import Span, Timeline, covered_seconds, sum_by_name
from trainers.throughput.types import Circumstances, Measurement, Waits

logger = logging.getLogger(__name__)

MOST_STEPS = 200
"""Of one run; more would only repeat themselves."""
SMALL_PART = 0.03
"""Share of the work on a batch below which a part is not taken away: it cannot be the wall."""
SERIAL = ("plan", "copy", "assembly")
DATA_SHARE, STEP_SHARE = 0.5, 0.25
"""Of the time for all runs: for the runs of the data path together, and for each of the two runs of training."""


@dataclass(frozen=True)
class RankResult:
    """What one rank measured, and what happened when in its run of data alone and in that of training."""

    numbers: Measurement
    data_spans: list[Span] = field(repr=False)
    training_spans: list[Span] = field(repr=False)
    made: list[float] = field(repr=False)
    taken: list[float] = field(repr=False)
    waits: list[float] = field(repr=False)


def measure(config: Config, *, stage: int = 0, step: int = 0, seconds: float = 60.0) -> list[RankResult]:
    """Measure one stage of a run from `step` of it on, in about `seconds`; the results of all ranks, on every rank.

    One process, or one of several started by torchrun. Sets torch's number of threads. Nothing is written, no weights
    are loaded and the learning rate is 0. Raises what `training.train` raises for configs and data that do not fit.
    """
    ranks = read_ranks(os.environ)
    device = choose_device(config.device, ranks)
    place = Place(ranks, device, share_threads(config.threads, ranks, device))
    torch.set_num_threads(place.threads.compute)
    config = _one_stage(config, stage, step)
    with ExitStack() as stack:
        source = open_sources(config, stack)[0]
        stack.enter_context(process_group(ranks, device))
        model = make_model(config, None).to(device)
        run = stack.enter_context(open_stage(config, 0, source, model, place, done=0, checkpoint=None))
        run = replace(run, learning_rate=Table(((0.0, 0.0),)), steps=ENDLESS)
        positions = share_of_batch(source.batch_size, ranks.rank, ranks.world_size)
        reading = config.reading
        storage = choose_reading(
            source, reading.speed(source), positions, threads=reading.threads, pool_bytes=reading.memory
        )
        path = DataPath(
            source=source,
            storage=storage,
            reader=run.loader.reader,
            reading_threads=reading.threads,
            executor_name=executor_name(config, device),
            place=place,
            look_ahead=config.look_ahead,
            first_step=step,
        )
        return gather_objects(_Measuring(path, run, seconds).all_runs(), ranks)


def _one_stage(config: Config, stage: int, step: int) -> Config:
    """A run of that stage alone, with the same clips, from random weights: files of others need not be there."""
    if not 0 <= stage < len(config.stages) or not 0 <= step < config.stages[stage].steps:
        found = [(row.name, row.steps) for row in config.stages]
        raise ValueError(f"stage {stage} has no step {step}; stages and their steps are {found}")
    chosen = config.stages[stage]
    model: Any = config.model
    files = {each.name: None for each in fields(model) if isinstance(getattr(model, each.name), Path)}
    seed = config.seed + stage
    return replace(config, stages=(chosen,), seed=seed, start_from=None, model=replace(model, **files))


class _Measuring:
    """The runs of one rank, one after the other, in step with the other ranks.

    Each goes on in the stage where the one before it ended: bytes that were just read lie in memory, so a run that read
    them again would say nothing of the storage.
    """

    def __init__(self, path: DataPath, run: StageRun, seconds: float) -> None:
        self._path, self._run, self._seconds = path, run, seconds
        self._clips_per_step = run.batch_size // path.place.ranks.world_size
        self._num_clips = path.source.steps * path.source.batch_size

    def all_runs(self) -> RankResult:
        """Every run there is."""
        each = DATA_SHARE * self._seconds / 6
        whole = self._data("the data path", Variant(), 2 * each)
        clips = self._read_clips()
        parts = self._parts(whole)
        without = self._without(parts, clips, whole, each)
        plain = self._data("no augmentation", Variant(plain=True), each)
        synthetic = self._data("synthetic data", self._lying_ready(clips, whole.last), each)
        again = self._data("the data path again", Variant(), each)
        alone = self._compute_alone(whole.last)
        unsynchronised = self._unsynchronised(whole.last, alone)
        bytes_per_step = whole.statistics.bytes_read / max(1, whole.statistics.batches)
        with watch_gpu(gpu_name(self._path.place.device)) as gpu_busy:
            timeline, both = self._both(max(whole.seconds, float(np.mean(alone.seconds))))
        numbers = Measurement(
            data_ms=1e3 * min(whole.seconds, again.seconds),
            repeated_ms=(1e3 * whole.seconds, 1e3 * again.seconds),
            compute_ms=1e3 * float(np.mean(alone.seconds)),
            both_ms=1e3 * float(np.mean(both.seconds)),
            waits=_describe_waits(both.waits),
            data_parts=parts,
            serial_parts=tuple(name for name in SERIAL if name in parts),
            compute_parts=_in_ms(alone.parts),
            without=without,
            unsynchronised_ms=unsynchronised,
            plain_ms=1e3 * plain.seconds,
            synthetic_ms=1e3 * synthetic.seconds,
            checksum_ms=self._clips_per_step * _checksum_ms(clips),
            cores_busy={"data": whole.cores_busy, "compute": alone.cores_busy, "both": both.cores_busy},
            bytes_per_step=bytes_per_step,
            read_rate=self._read_rate(bytes_per_step, whole.spans),
            storage=self._path.storage.speed,
            read_plans=self._read_plans(),
            gpu_busy=gpu_busy,
            at=self._circumstances(),
        )
        made = [span.start + span.seconds for span in timeline.spans if span.name == "assemble"]
        return RankResult(numbers, whole.spans, both.spans, made, both.taken, both.waits)

    def _data(self, name: str, variant: Variant, seconds: float) -> DataRun:
        logger.info("measuring %s", name)
        self._go_on_at(self._path.first_step)
        found = run_data(self._path, variant, seconds=seconds)
        if variant.clips is None:
            self._go_on_at(found.next_step)
        return found

    def _go_on_at(self, step: int) -> None:
        """Wait for the other ranks, and begin at the same step: all load at the same time, as they will in training."""
        agreed = max(gather_objects(step, self._path.place.ranks))
        self._path = replace(self._path, first_step=agreed)

    def _read_clips(self) -> list[EncodedClip]:
        source, share = self._path.source, self._clips_per_step
        first = self._path.first_step * source.batch_size + self._path.place.ranks.rank * share
        numbers = [first + step * source.batch_size + number for step in range(2) for number in range(share)]
        clips = [self._path.reader.read(source.plan(number % self._num_clips)).clip for number in numbers]
        self._go_on_at(self._path.first_step + 2)
        return clips

    def _parts(self, whole: DataRun) -> dict[str, float]:
        """Milliseconds of work per batch by part, over all threads."""
        sums, counts = sum_by_name(whole.spans), Counter(span.name for span in whole.spans)
        per_clip = {name: sums[name] / counts[name] * self._clips_per_step for name in ("plan", "read")}
        made = counts["execute"]
        if self._path.executor_name == "cpu":
            steps = {name: sums.get(name, 0.0) / made for name in get_args(Step)}
        else:
            steps = {"executor": sums["execute"] / made}
        if self._path.place.device.type == "cuda":
            steps["copy"] = sums["copy"] / made
        return _in_ms(per_clip | steps | {"assembly": sums["assemble"] / made})

    def _without(
        self, parts: Mapping[str, float], clips: Sequence[EncodedClip], whole: DataRun, seconds: float
    ) -> dict[str, float]:
        """data_ms without each part that is more than a SMALL_PART of the work."""
        variants: dict[str, Variant] = {"read": Variant(clips=clips), "assembly": Variant(batch=whole.last)}
        if self._path.executor_name == "cpu":
            variants |= {name: Variant(without=name) for name in get_args(Step)}
        else:
            variants["executor"] = Variant(pixels=self._lying_ready(clips, whole.last).pixels)
        enough = SMALL_PART * sum(parts.values())
        # What one rank takes away all do: they share cores and storage.
        large = gather_objects([name for name in variants if parts[name] >= enough], self._path.place.ranks)
        chosen = [name for name in variants if any(name in names for names in large)]
        each = 3 * seconds / max(3, len(chosen))
        return {name: 1e3 * self._data(f"without {name}", variants[name], each).seconds for name in chosen}

    def _lying_ready(self, clips: Sequence[EncodedClip], batch: Batch) -> Variant:
        place = self._path.place
        executor = make_executor(self._path.executor_name, threads=place.threads.loading, device=place.device)
        try:
            pixels = executor(list(clips[: self._clips_per_step]))
        finally:
            executor.close()
        return Variant(clips=clips, pixels=pixels, batch=batch)

    def _compute_alone(self, batch: Batch) -> StepRun:
        logger.info("measuring training on a batch that lies ready")
        probe = run_steps(self._run, self._copies(batch, MIN_COUNT), Timeline())
        count = self._agreed_count(float(np.mean(probe.seconds)))
        return probe if count <= MIN_COUNT else run_steps(self._run, self._copies(batch, count), Timeline())

    def _unsynchronised(self, batch: Batch, alone: StepRun) -> float | None:
        if not isinstance(self._run.module, DistributedDataParallel):
            return None
        logger.info("measuring training without the exchange of gradients")
        with self._run.module.no_sync():
            steps = run_steps(self._run, self._copies(batch, len(alone.seconds)), Timeline())
        return 1e3 * float(np.mean(steps.seconds))

    def _both(self, step_seconds: float) -> tuple[Timeline, StepRun]:
        logger.info("measuring training on the data path")
        count, timeline = self._agreed_count(step_seconds), Timeline()
        with open_loader(self._path, Variant(), timeline, WARM_UP + count) as loader:
            return timeline, run_steps(self._run, loader, timeline)

    def _agreed_count(self, step_seconds: float) -> int:
        slowest = max(gather_objects(step_seconds, self._path.place.ranks))
        return int(np.clip(STEP_SHARE * self._seconds / slowest, MIN_COUNT, MOST_STEPS))

    def _copies(self, batch: Batch, count: int) -> list[Batch]:
        first = self._path.first_step
        return [replace(batch, step=first + number) for number in range(WARM_UP + count)]

    def _read_rate(self, bytes_per_step: float, spans: Sequence[Span]) -> float:
        """MB/s while at least one thread reads."""
        reads = [span for span in spans if span.name == "read"]
        num_bytes = bytes_per_step / self._clips_per_step * len(reads)
        return num_bytes / 1e6 / max(covered_seconds(reads), 1e-9)

    def _read_plans(self) -> dict[str, float]:
        rates = self._path.storage.clips_per_second
        return {name: 1e3 * self._clips_per_step / rate for name, rate in rates.items()}

    def _circumstances(self) -> Circumstances:
        place, source = self._path.place, self._path.source
        return Circumstances(
            clips_per_step=self._clips_per_step,
            frames_per_clip=length_at(source.recipe, self._path.first_step, source.steps),
            reading_threads=self._path.reading_threads,
            loading_threads=place.threads.loading,
            compute_threads=place.threads.compute,
            cores=len(os.sched_getaffinity(0)),
            world_size=place.ranks.world_size,
            device=place.device.type,
            executor=self._path.executor_name,
            reading=self._path.reader.reading.name,
        )


def slowest_rank(results: Sequence[RankResult]) -> int:
    """The rank whose steps waited longest: the others wait for it in turn."""
    return max(range(len(results)), key=lambda rank: (results[rank].numbers.waits.mean_ms, -rank))


def _describe_waits(waits: Sequence[float]) -> Waits:
    middle, high = np.percentile(waits, (50, 99))
    return Waits(len(waits), 1e3 * float(np.mean(waits)), 1e3 * float(middle), 1e3 * float(high))


def _in_ms(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: 1e3 * value for name, value in seconds.items()}


def _checksum_ms(clips: Sequence[EncodedClip]) -> float:
    """CRC-32 of a clip's bytes, which is a part of reading it; CPU time."""
    started = time.thread_time()
    for clip in clips:
        for frame in clip.frames:
            zlib.crc32(frame.image)
            zlib.crc32(frame.mask or b"")
    return 1e3 * (time.thread_time() - started) / len(clips)
