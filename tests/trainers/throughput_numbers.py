"""A measurement whose numbers can be worked with by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shards.speed import StorageSpeed
from trainers.throughput.measure import RankResult
from trainers.throughput.types import Circumstances, Measurement, Waits

AT = Circumstances(
    clips_per_step=4,
    frames_per_clip=5,
    reading_threads=2,
    loading_threads=2,
    compute_threads=2,
    cores=8,
    world_size=1,
    device="cuda",
    executor="cpu",
    reading="frame",
)

DATA_BOUND = Measurement(
    data_ms=100.0,
    repeated_ms=(100.0, 110.0),
    compute_ms=40.0,
    both_ms=100.0,
    waits=Waits(num_steps=50, mean_ms=60.0, p50_ms=59.0, p99_ms=80.0),
    data_parts={"plan": 2.0, "read": 20.0, "image decode": 160.0, "warp": 20.0, "assembly": 8.0},
    serial_parts=("plan", "assembly"),
    compute_parts={"forward": 15.0, "backward": 20.0, "optimizer": 4.0, "rest": 1.0},
    without={"read": 99.0, "image decode": 20.0, "warp": 90.0, "assembly": 92.0},
    unsynchronised_ms=None,
    plain_ms=95.0,
    synthetic_ms=1.0,
    checksum_ms=2.0,
    bytes_per_step=2e6,
    read_rate=200.0,
    storage=StorageSpeed(0.001, 200e6),
    read_plans={"frame": 10.0, "span": 20.0, "resident": 50.0},
    cores_busy={"data": 2.0, "compute": 0.5, "both": 2.2},
    gpu_busy={"GPU": 41.0},
    at=AT,
)


def numbers(**changes: Any) -> Measurement:
    """DATA_BOUND with fields changed; those of `at` too."""
    place = {name: changes.pop(name) for name in list(changes) if name in Circumstances.__dataclass_fields__}
    return replace(DATA_BOUND, **changes, at=replace(AT, **place))


def waiting(mean_ms: float) -> Waits:
    """Waits of that mean."""
    return Waits(50, mean_ms, mean_ms, mean_ms)


def rank_result(found: Measurement) -> RankResult:
    """With two batches made and taken, and no spans."""
    return RankResult(found, [], [], made=[1.0, 2.0], taken=[1.5, 2.5], waits=[0.06, 0.06])
