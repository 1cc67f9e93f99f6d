"""What read plans give on slow storage beside what the cost model said, and how soon a set has its first plan.

Storage is slowed in the reader (`SlowStorage`) and the frames are zeros (`shards.sets.sparse_set`): nothing is decoded,
so the figures are of reading alone. Wall time, most of it waiting; starts are CPU time of a process of its own.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.loader import ClipLoader, LoaderStatistics
from pipelines.order.pooled import Pooled
from pipelines.order.sampling import MixEntry
from pipelines.reading.clip_reader import READ_PLANS, PlanName, ReadPlan
from pipelines.reading.cost import choose_reading, probe_source, span_gap
from pipelines.recipes.rde import RdeBl30k
from pipelines.source import ClipSource
from pipelines.types import Batch, ClipPixels, EncodedClip
from shards.reader import ShardSet
from shards.shard_files import SlowStorage

CASES = ((0.001, 200e6), (0.030, 50e6))
"""Latency in seconds and bandwidth in bytes per second: a network disk, and an object store or a disk that seeks."""
BATCH, LOOK_AHEAD = 4, 8
POOLED = Pooled(videos=8, uses=16, streams=4)
STAGE_STEPS = 500_000


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One read plan: clips/s as predicted and as measured, and what a clip took, of `clips` clips in all.

    What is read before the look-ahead is full is not in `measured` and `cpu_ms` (CPU time of the process per clip).
    """

    predicted: float
    measured: float
    cpu_ms: float
    clips: int
    requests: float
    megabytes: float
    amplification: float


@dataclass(frozen=True, slots=True)
class ReadingCase:
    """Reading from storage of this latency (seconds) and bandwidth (bytes/s), in the order `order`.

    probed: the two numbers as the probe found them, and request_cpu: of its probe, too; all was predicted from these.
    """

    latency: float
    bandwidth: float
    probed: tuple[float, float]
    request_cpu: float
    order: str
    threads: int
    chosen: PlanName
    plans: dict[PlanName, PlanRow]


@dataclass(frozen=True, slots=True)
class StartCost:
    """CPU seconds to open a set and to have its first plan, without imports; MB of memory a process adds by it.

    private_mb: of each process. shared_mb: pages of the index, which all processes of a machine share. later_*: after
    plans from all over the stage.
    """

    frames: int
    open_seconds: float
    first_plan_seconds: float
    wall_seconds: float
    private_mb: float
    shared_mb: float
    later_private_mb: float
    later_shared_mb: float


def time_reading(
    root: Path, *, cases: Sequence[tuple[float, float]] | None = None, threads: int = 16, seconds: float = 4.0
) -> list[ReadingCase]:
    """Every case (None: CASES) in both orders, every plan of it for about `seconds` or one batch."""
    return [
        _time_case(root, SlowStorage(*case), order, threads, seconds)
        for case in cases or CASES
        for order in ("full", "pooled")
    ]


def _time_case(root: Path, storage: SlowStorage, order: str, threads: int, seconds: float) -> ReadingCase:
    with ShardSet.open(root, storage) as shard_set:
        source = ClipSource(
            [MixEntry(shard_set, "train")],
            RdeBl30k(),
            seed=0,
            steps=STAGE_STEPS,
            batch_size=BATCH,
            pooled=POOLED if order == "pooled" else None,
        )
        speed = probe_source(source)
        choice = choose_reading(source, speed, range(BATCH), threads=threads, pool_bytes=10**9)
        rows: dict[PlanName, PlanRow] = {}
        for name in READ_PLANS:
            reading = ReadPlan(name, span_gap(speed), choice.reading.pool_bytes)
            rows[name] = _time_plan(source, reading, threads, choice.clips_per_second[name], seconds)
    probed = speed.latency, speed.bandwidth
    name, asked = choice.reading.name, speed.request_cpu
    return ReadingCase(storage.latency, storage.bandwidth, probed, asked, order, threads, name, rows)


def _time_plan(source: ClipSource, reading: ReadPlan, threads: int, predicted: float, seconds: float) -> PlanRow:
    options: dict[str, Any] = {"start_step": STAGE_STEPS // 2, "look_ahead": LOOK_AHEAD}  # where gaps are wide
    with ClipLoader(source, _NoPixels(), _assemble_nothing, threads=threads, reading=reading, **options) as loader:
        begun, worked, warm = time.perf_counter(), time.process_time(), 0
        for _ in loader:
            now = time.perf_counter()
            if not warm and (loader.statistics.batches > LOOK_AHEAD or now - begun > seconds):
                begun, worked, warm = now, time.process_time(), loader.statistics.clips
            elif warm and now - begun > seconds:
                break
        wall, worked = now - begun, time.process_time() - worked
    seen: LoaderStatistics = loader.statistics
    counted = seen.clips - warm
    return PlanRow(
        predicted=predicted,
        measured=counted / wall,
        cpu_ms=1e3 * worked / counted,
        clips=seen.clips,
        requests=seen.requests / seen.clips,
        megabytes=seen.bytes_read / seen.clips / 1e6,
        amplification=seen.read_amplification,
    )


class _NoPixels:
    """An executor that makes none."""

    def __call__(self, clips: list[EncodedClip]) -> ClipPixels:
        """Empty tensors."""
        nothing = torch.zeros(len(clips), 0)
        return ClipPixels(nothing, nothing, nothing)

    def close(self) -> None:
        """Nothing to close."""


def _assemble_nothing(pixels: ClipPixels, plans: Any, *, step: int) -> tuple[Batch, int]:
    none = pixels.images
    return Batch(step, none, none, none, none, none, plans), 0


def time_start(root: Path, *, plans: int = 2000) -> StartCost:
    """Open the set, make the first plan of a run that resumes in the middle, then `plans` more; in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(start, root, plans).result()


def start(root: Path, plans: int) -> StartCost:
    """What `time_start` measures, in this process."""
    gc.collect()
    private, shared = _memory_mb()
    begun, wall = time.process_time(), time.perf_counter()
    with ShardSet.open(root) as shard_set:
        opened = time.process_time() - begun
        source = ClipSource([MixEntry(shard_set, "train")], RdeBl30k(), seed=0, steps=STAGE_STEPS, batch_size=8)
        source.plan(4 * STAGE_STEPS)
        planned, waited = time.process_time() - begun, time.perf_counter() - wall
        first = _memory_mb()
        for number in range(plans):
            source.plan(number * (8 * STAGE_STEPS // plans))
        later = _memory_mb()
        return StartCost(
            frames=shard_set.num_frames,
            open_seconds=opened,
            first_plan_seconds=planned,
            wall_seconds=waited,
            private_mb=first[0] - private,
            shared_mb=first[1] - shared,
            later_private_mb=later[0] - private,
            later_shared_mb=later[1] - shared,
        )


def _memory_mb() -> tuple[float, float]:
    """Resident memory of this process: its own, and pages of files."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    values = dict(line.split(":", 1) for line in lines)
    private, shared = (int(values[name].split()[0]) * 1024 / 1e6 for name in ("RssAnon", "RssFile"))
    return private, shared
