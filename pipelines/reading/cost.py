"""Which read plan suits a storage: four numbers of the storage, four of the clips, and one formula."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipelines.reading.clip_reader import (
    NEIGHBOUR_GAP,
    READ_PLANS,
    PlanName,
    ReadPlan,
    coalesce,
    split_range,
    video_range,
)
from pipelines.source import ClipSource
from pipelines.types import ClipPlan
from shards.speed import StorageSpeed, probe_speed, targets_of_set
from shards.storage.paths import RemotePath

logger = logging.getLogger(__name__)

ENOUGH_CLIPS_PER_SECOND = 200.0
"""Of five frames, for one rank: 1,000 frames/s, four times what the hungriest published trainer takes."""
SAMPLED_CLIPS, SIMULATED_CLIPS = 64, 4000
CHECK_CPU = 0.4e-9
"""Seconds of CPU for each byte of a frame that is used: CRC-32, and a copy."""
PLAN_WORDS: dict[PlanName, str] = {
    "frame": "each frame by itself",
    "span": "near frames together",
    "resident": "whole videos, kept in memory",
}
LOCAL_CPU, REMOTE_CPU = (20e-6, 0.1e-9), (800e-6, 1e-9)
"""For each request and each byte, where nothing is measured."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a clip costs on average under a read plan: requests, bytes read by them, bytes used.

    planning: seconds of CPU to know what to read, which threads of one process do one after the other.
    """

    requests: float
    bytes_read: float
    bytes_used: float
    planning: float = 0.0

    def cpu_seconds(self, speed: StorageSpeed) -> float:
        """CPU time per clip, of planning, requests, answers and checksums."""
        answers = self.requests * speed.request_cpu + self.bytes_read * speed.byte_cpu
        return self.planning + answers + self.bytes_used * CHECK_CPU

    def seconds(self, speed: StorageSpeed, threads: int) -> float:
        """Wall time per clip when `threads` requests are under way at any time.

        Either the threads wait for answers, or the one link is full, or the one core that threads of Python share is:
        max((requests * latency + transfer + cpu) / threads, transfer, cpu), transfer = bytes_read / bandwidth.
        """
        transfer, cpu = self.bytes_read / speed.bandwidth, self.cpu_seconds(speed)
        return max((self.requests * speed.latency + transfer + cpu) / threads, transfer, cpu)


@dataclass(frozen=True, slots=True)
class ReadChoice:
    """The plan chosen for a rank, with what led to it. clips_per_second: predicted, of each plan."""

    reading: ReadPlan
    speed: StorageSpeed
    demands: dict[PlanName, Demand]
    clips_per_second: dict[PlanName, float]

    def describe(self) -> str:
        """One line for the log."""
        name, rates = self.reading.name, self.clips_per_second
        others = ", ".join(f"{other} {rate:.0f}" for other, rate in rates.items() if other != name)
        storage = f"{1e3 * self.speed.latency:.2f} ms to answer, {self.speed.bandwidth / 1e6:.0f} MB/s"
        storage += f", {1e3 * self.speed.request_cpu:.2f} ms of CPU a request"
        given = f"it can give {rates[name]:.0f} clips/s here (other plans: {others})"
        return f"read plan {name}, {PLAN_WORDS[name]}: {given}; storage: {storage}"


def choose_reading(
    source: ClipSource, speed: StorageSpeed, positions: range, *, threads: int, pool_bytes: int
) -> ReadChoice:
    """The first of frame, span, resident that is fast enough, else the fastest.

    positions: which clips of each global batch are read here. Chooses for all sets of the mix together. The choice
    depends on a measurement and may differ between runs and ranks: it decides about speed alone.
    """
    demands = measure_demands(source, speed, positions, pool_bytes=pool_bytes)
    rates = {name: 1 / max(demand.seconds(speed, threads), 1e-9) for name, demand in demands.items()}
    enough = [name for name in READ_PLANS if rates[name] >= ENOUGH_CLIPS_PER_SECOND]
    name = enough[0] if enough else max(READ_PLANS, key=lambda each: rates[each])
    return ReadChoice(ReadPlan(name, span_gap(speed), pool_bytes), speed, demands, rates)


def span_gap(speed: StorageSpeed) -> int:
    """Bytes that are faster read along than left out by another request."""
    return max(NEIGHBOUR_GAP, int(speed.latency * speed.bandwidth))


def measure_demands(
    source: ClipSource, speed: StorageSpeed, positions: range, *, pool_bytes: int
) -> dict[PlanName, Demand]:
    """What clips of a rank cost under each plan, from plans spread over the whole stage. Reads no image."""
    num_clips = source.steps * len(positions)
    every = max(1, num_clips // SAMPLED_CLIPS)
    sampled = [_number(source, positions, place) for place in range(0, num_clips, every)[:SAMPLED_CLIPS]]
    plans, planning = _sampled_plans(source, sampled)
    span = ReadPlan("span", span_gap(speed))
    resident = ReadPlan("resident", span.max_gap, pool_bytes)
    spans = replace(_mean_demand(source, plans, span.gap), planning=planning)
    return {
        "frame": replace(_mean_demand(source, plans, ReadPlan().gap), planning=planning),
        "span": spans,
        "resident": _resident_demand(source, positions, resident, spans),
    }


def probe_source(source: ClipSource) -> StorageSpeed:
    """The slowest of each number over the sets of the mix, measured; about a second for each."""
    speeds = [probe_speed(targets_of_set(entry.dataset)) for entry in source.mix.entries]
    return StorageSpeed(
        max(speed.latency for speed in speeds),
        min(speed.bandwidth for speed in speeds),
        max(speed.request_cpu for speed in speeds),
        max(speed.byte_cpu for speed in speeds),
    )


def known_speed(source: ClipSource, latency: float, bandwidth: float) -> StorageSpeed:
    """Of storage of which latency and bandwidth are known, with what requests to it usually cost."""
    remote = any(isinstance(entry.dataset.path, RemotePath) for entry in source.mix.entries)
    return StorageSpeed(latency, bandwidth, *(REMOTE_CPU if remote else LOCAL_CPU))


def _number(source: ClipSource, positions: range, place: int) -> int:
    """Number of the place-th clip that is read by a rank with these positions of each global batch."""
    step, turn = divmod(place, len(positions))
    return step * source.batch_size + positions[turn]


def _simulated_places(source: ClipSource, clips_per_step: int) -> Iterator[int]:
    """Which of a rank's clips stand for the stage: a run of them from where each mix of it begins, by its length."""
    ends = [*(first for first, _ in source.mix.phases[1:]), source.steps]
    for (first, _), end in zip(source.mix.phases, ends, strict=True):
        count = math.ceil(SIMULATED_CLIPS * (end - first) / source.steps)
        yield from range(first * clips_per_step, min(first * clips_per_step + count, end * clips_per_step))


def _sampled_plans(source: ClipSource, numbers: Iterable[int]) -> tuple[list[ClipPlan], float]:
    """Plans, and the CPU time of a typical one: the first of a shard also read its part of the index."""
    plans, times = [], []
    for number in numbers:
        begun = time.thread_time()
        plans.append(source.plan(number))
        times.append(time.thread_time() - begun)
    return plans, statistics.median(times)


def _mean_demand(source: ClipSource, plans: Sequence[ClipPlan], max_gap: int) -> Demand:
    requests = num_bytes = used = 0
    for plan in plans:
        shard_set = source.shard_set(plan)
        extents = [shard_set.extent(row) for row in sorted(set(plan.frames))]
        ranges = coalesce([(extent.start, extent.num_bytes) for extent in extents], max_gap)
        requests += len(ranges)
        num_bytes += sum(length for _, length in ranges)
        used += sum(extent.used_bytes for extent in extents)
    return Demand(requests / len(plans), num_bytes / len(plans), used / len(plans))


def _resident_demand(source: ClipSource, positions: range, reading: ReadPlan, otherwise: Demand) -> Demand:
    """By going through the order of videos as the pool will see them; nothing is read.

    A set that fits into the pool is read once in the whole stage, however few of its clips are looked at here.
    """
    pool: OrderedDict[tuple[int, int], int] = OrderedDict()
    requests = num_bytes = 0.0
    clips = taken = dropped = 0
    for place in _simulated_places(source, len(positions)):
        pick = source.mix.pick(source.key, _number(source, positions, place))
        clips += 1
        key = pick.dataset, pick.video
        if key in pool:
            pool.move_to_end(key)
            continue
        whole = video_range(source.mix.entries[pick.dataset].dataset, pick.video)
        if whole[1] > reading.pool_bytes:
            requests, num_bytes = requests + otherwise.requests, num_bytes + otherwise.bytes_read
            continue
        requests, num_bytes, taken = requests + len(split_range(whole)), num_bytes + whole[1], taken + whole[1]
        pool[key] = whole[1]
        while taken > reading.pool_bytes:
            taken -= pool.popitem(last=False)[1]
            dropped += 1
    if not dropped and len(pool) == sum(len(selection.videos) for selection in source.mix.selections):
        clips = source.steps * len(positions)  # everything is there by now: no more requests in this stage
    return replace(otherwise, requests=requests / clips, bytes_read=num_bytes / clips)
