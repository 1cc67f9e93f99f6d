"""What a run on a thousand ranks would ask of its machines: planning, coverage, ratios and reads, gone through on one.

Nothing is trained and no frame is read. Plans are the real ones of every rank, over an index of full size
(`shards.sets.sparse_set`); what storage gives is the cost model's word (`reading.cost`) for assumed latencies and
bandwidths.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.benchmarks.reading import StartCost, time_start
from pipelines.loader import share_of_batch
from pipelines.order.curriculum import Table
from pipelines.order.pooled import Pooled
from pipelines.order.sampling import MixEntry, count_at
from pipelines.reading.clip_reader import NEIGHBOUR_GAP, PlanName, coalesce
from pipelines.reading.cost import choose_reading
from pipelines.recipes.rde import RdeBl30k
from pipelines.source import ClipSource
from shards.reader import ShardSet
from shards.speed import StorageSpeed

STAGE_CLIPS = 4_000_000
"""RDE's stage 1: 500,000 steps of 8 clips."""
THREADS, POOL_BYTES = 16, 10**9
"""Of each rank; the defaults of a config's `reading`."""
POOL_VIDEOS, POOL_USES = 4, 16
"""Of the pooled order: videos of each rank in use at a time, and clips of each of them."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Ranks, a GPU each, that take `clips_per_rank` clips a step and `clips_per_second` each."""

    ranks: int = 1024
    ranks_per_node: int = 8
    clips_per_rank: int = 4
    clips_per_second: float = 50.0

    def __post_init__(self) -> None:
        """ValueError for nothing to do, and for nodes that are not full."""
        if min(self.ranks, self.ranks_per_node, self.clips_per_rank) < 1 or self.clips_per_second <= 0:
            raise ValueError(f"a cluster has at least one rank, node and clip, got {self}")
        if self.ranks > self.ranks_per_node and self.ranks % self.ranks_per_node:
            raise ValueError(f"{self.ranks} ranks do not fill nodes of {self.ranks_per_node}")

    @property
    def nodes(self) -> int:
        """How many there are."""
        return max(1, self.ranks // self.ranks_per_node)

    @property
    def batch_size(self) -> int:
        """Clips of a step, all ranks together."""
        return self.ranks * self.clips_per_rank


@dataclass(frozen=True, slots=True)
class Storage:
    """Assumed: seconds to the first byte, bytes/s that a node can take, and that all of it gives (None: no limit)."""

    latency: float
    per_node: float
    in_all: float | None = None

    def speed_of_rank(self, cluster: Cluster) -> StorageSpeed:
        """A rank's even share while all read."""
        on_node = min(cluster.ranks, cluster.ranks_per_node)
        shares = [self.per_node / on_node]
        if self.in_all is not None:
            shares.append(self.in_all / cluster.ranks)
        return StorageSpeed(self.latency, min(shares))


STORAGES = {
    "NVMe in each node": Storage(0.0001, 3e9),
    "parallel file system": Storage(0.001, 2.5e9, 100e9),
    "object store": Storage(0.030, 2.5e9, 100e9),
    "one file server": Storage(0.001, 1.2e9, 1.2e9),
}


@dataclass(frozen=True, slots=True)
class Coverage:
    """Least and most uses of a video after whole passes over the set by all ranks together."""

    passes: int
    clips: int
    videos: int
    least_uses: int
    most_uses: int


@dataclass(frozen=True, slots=True)
class Portion:
    """One data set of a mix over one pass of it. worst_window: most clips that any window is off its ideal share."""

    weight: int
    clips: int
    worst_window: float


@dataclass(frozen=True, slots=True)
class Load:
    """What plans of whole steps, all ranks together, ask of storage under the plan `frame`.

    plan_ms: CPU time of a plan. requests, megabytes: of a clip. busiest_node: its bytes over the mean of all nodes.
    shards_of_step: shards a step touches; hottest_shard: most clips of a step that meet in one.
    """

    clips: int
    plan_ms: float
    requests: float
    megabytes: float
    busiest_node: float
    shards: int
    shards_of_step: float
    hottest_shard: int


@dataclass(frozen=True, slots=True)
class Supply:
    """What a rank gets from one storage in one order, in clips/s, by the read plan that the cost model picks."""

    order: str
    plan: PlanName
    clips_per_second: float
    megabytes: float


@dataclass(frozen=True, slots=True)
class Expectation:
    """A cluster at one pace, nothing holding it up.

    planning_cores: busy with plans, all nodes together. pass_minutes: of the set; stage_hours: of RDE's stage 1.
    """

    ranks: int
    nodes: int
    clips_per_second: float
    megabytes_per_second: float
    requests_per_second: float
    planning_cores: float
    index_mb_per_node: float
    pass_minutes: float
    stage_hours: float


@dataclass(frozen=True, slots=True)
class ScaleResult:
    """Everything that was found; supplies by storage, portions by data set.

    portions_of_change: of a mix in which the last set pauses from the middle of a pass on.
    """

    cluster: Cluster
    start: StartCost
    coverage: Coverage
    portions: dict[str, Portion]
    portions_of_change: dict[str, Portion]
    load: Load
    supplies: dict[str, list[Supply]]
    expectations: list[Expectation]


def simulate(root: Path, others: Sequence[tuple[Path, int]], cluster: Cluster, *, steps: int = 2) -> ScaleResult:
    """Go through the plans of a cluster that trains on the set `root`; steps: whose plans are made in full.

    others: sets and their repeats that are mixed with it where ratios are looked at, and only there.
    """
    start = time_start(root)
    with ShardSet.open(root) as shard_set:
        source = _make_source([MixEntry(shard_set, "train")], cluster)
        coverage, load = cover(source, cluster), measure_load(source, cluster, steps)
        supplies = {name: _supplies(shard_set, storage, cluster) for name, storage in STORAGES.items()}
        portions, of_change = _portions(shard_set, others, cluster)
        videos = shard_set.num_videos
    expectations = [
        expect(ranks, pace, cluster.ranks_per_node, load=load, start=start, videos=videos)
        for ranks in sorted({1, 8, 64, cluster.ranks})
        for pace in (8.0, 50.0)
    ]
    return ScaleResult(cluster, start, coverage, portions, of_change, load, supplies, expectations)


def cover(source: ClipSource, cluster: Cluster, *, passes: int = 1) -> Coverage:
    """Let every rank take its clips of so many passes over a source of one set, and count how often each video came."""
    rows = source.mix.selections[0].videos
    clips = passes * len(rows)
    uses = np.zeros(int(rows.max()) + 1, np.int64)
    for rank in range(cluster.ranks):
        for number in _numbers_of_rank(cluster, rank, clips):
            uses[source.mix.pick(source.key, number).video] += 1
    return Coverage(passes, clips, len(rows), int(uses[rows].min()), int(uses[rows].max()))


def measure_portions(source: ClipSource, cluster: Cluster) -> dict[str, Portion]:
    """How exactly the sets of a mix keep their shares over one pass of it, in every window of consecutive clips.

    Of a mix whose weights change, the pass is one by the last of them, and what comes before is looked at too.
    """
    firsts = [first * source.batch_size for first, _ in source.mix.phases]
    weights = np.array([weights for _, weights in source.mix.phases])  # (phases, sets)
    total = firsts[-1] + int(weights[-1].sum())
    taken = np.empty(total, np.int64)
    for rank in range(cluster.ranks):
        for number in _numbers_of_rank(cluster, rank, total):
            taken[number] = source.mix.pick(source.key, number).dataset
    shares = weights / weights.sum(axis=1, keepdims=True)
    due = shares[np.searchsorted(firsts, np.arange(total), side="right") - 1]  # (total, sets)
    return {
        entry.dataset.name: _portion(int(weights[0, position]), taken == position, due[:, position])
        for position, entry in enumerate(source.mix.entries)
    }


def measure_load(source: ClipSource, cluster: Cluster, steps: int) -> Load:
    """Plan `steps` whole steps of all ranks, from all over the stage, and add up what they would read."""
    bytes_of_node = np.zeros(cluster.nodes)
    of_shard = np.zeros((steps, len(source.mix.entries[0].dataset.manifest.shards)), np.int64)
    requests = clips = 0
    planning = 0.0
    for turn in range(steps):
        step = turn * (source.steps // steps)
        for rank in range(cluster.ranks):
            positions = share_of_batch(cluster.batch_size, rank, cluster.ranks)
            begun = time.process_time()
            plans = [source.plan(step * cluster.batch_size + position) for position in positions]
            planning += time.process_time() - begun
            for plan in plans:
                extents = [source.shard_set(plan).extent(row) for row in sorted(set(plan.frames))]
                ranges = coalesce([(extent.start, extent.num_bytes) for extent in extents], NEIGHBOUR_GAP)
                requests, clips = requests + len(ranges), clips + 1
                bytes_of_node[rank // cluster.ranks_per_node] += sum(length for _, length in ranges)
                of_shard[turn, extents[0].shard] += 1
    return Load(
        clips=clips,
        plan_ms=1e3 * planning / clips,
        requests=requests / clips,
        megabytes=float(bytes_of_node.sum()) / clips / 1e6,
        busiest_node=float(bytes_of_node.max() / bytes_of_node.mean()),
        shards=of_shard.shape[1],
        shards_of_step=float((of_shard > 0).sum(axis=1).mean()),
        hottest_shard=int(of_shard.max()),
    )


def expect(ranks: int, pace: float, ranks_per_node: int, *, load: Load, start: StartCost, videos: int) -> Expectation:
    """What so many ranks ask for at `pace` clips/s each, if nothing holds them up."""
    rate = ranks * pace
    on_node = min(ranks, ranks_per_node)
    return Expectation(
        ranks=ranks,
        nodes=max(1, ranks // ranks_per_node),
        clips_per_second=rate,
        megabytes_per_second=rate * load.megabytes,
        requests_per_second=rate * load.requests,
        planning_cores=rate * load.plan_ms / 1e3,
        index_mb_per_node=on_node * start.later_private_mb + start.later_shared_mb,
        pass_minutes=videos / rate / 60,
        stage_hours=STAGE_CLIPS / rate / 3600,
    )


def _make_source(
    entries: Sequence[MixEntry], cluster: Cluster, pooled: Pooled | None = None, *, clips: int = STAGE_CLIPS
) -> ClipSource:
    batch = cluster.batch_size
    steps = max(1, clips // batch)
    return ClipSource(entries, RdeBl30k(), seed=0, steps=steps, batch_size=batch, pooled=pooled)


def _numbers_of_rank(cluster: Cluster, rank: int, end: int) -> Iterator[int]:
    """Numbers below `end` of a rank's clips, in its order."""
    positions = share_of_batch(cluster.batch_size, rank, cluster.ranks)
    for first in range(0, end, cluster.batch_size):
        yield from (first + position for position in positions if first + position < end)


def _portion(weight: int, is_taken: NDArray[np.bool_], due: NDArray[np.float64]) -> Portion:
    """The count of any window is a difference of two counts from the start, and so is its ideal."""
    excess = np.concatenate([[0], np.cumsum(is_taken) - np.cumsum(due)])
    return Portion(weight, int(is_taken.sum()), float(excess.max() - excess.min()))


def _portions(
    shard_set: ShardSet, others: Sequence[tuple[Path, int]], cluster: Cluster
) -> tuple[dict[str, Portion], dict[str, Portion]]:
    """Of a mix with the set, all through and with a last set that pauses from the middle of a pass on."""
    opened = [(ShardSet.open(path), repeat) for path, repeat in others]
    try:
        entries = [MixEntry(shard_set, "train"), *(MixEntry(other, "train", repeat) for other, repeat in opened)]
        constant = _make_source(entries, cluster)
        of_pass = sum(constant.mix.phases[0].weights)
        pause = replace(entries[-1], repeat=Table(((0, count_at(entries[-1].repeat, 0, 1)), (0.5, 0))))
        # Two steps at least, for a step of its own before the switch and after it.
        changing = _make_source([*entries[:-1], pause], cluster, clips=max(of_pass, 2 * cluster.batch_size))
        return measure_portions(constant, cluster), measure_portions(changing, cluster)
    finally:
        for other, _ in opened:
            other.close()


def _supplies(shard_set: ShardSet, storage: Storage, cluster: Cluster) -> list[Supply]:
    """Of rank 0; all ranks are alike."""
    positions = share_of_batch(cluster.batch_size, 0, cluster.ranks)
    pooled = Pooled(POOL_VIDEOS * cluster.ranks, POOL_USES, cluster.ranks)
    orders = {"full": None, "pooled": pooled if shard_set.num_videos >= cluster.ranks else None}
    supplies = []
    for order, pool in orders.items():
        if order == "pooled" and pool is None:
            continue
        source = _make_source([MixEntry(shard_set, "train")], cluster, pool)
        speed = storage.speed_of_rank(cluster)
        choice = choose_reading(source, speed, positions, threads=THREADS, pool_bytes=POOL_BYTES)
        name = choice.reading.name
        rate, num_bytes = choice.clips_per_second[name], choice.demands[name].bytes_read
        supplies.append(Supply(order, name, rate, num_bytes / 1e6))
    return supplies
