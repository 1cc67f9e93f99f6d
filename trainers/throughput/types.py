"""What a throughput measurement found: plain numbers, in milliseconds per step of one rank unless said otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from shards.speed import StorageSpeed

Limit = Literal["data", "compute", "cores"]


@dataclass(frozen=True)
class Waits:
    """Time that steps waited for their batch while training, over `num_steps` steps."""

    num_steps: int
    mean_ms: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Circumstances:
    """What a rank ran on and with. clips_per_step: of this rank. cores: that its process may use.

    reading_threads wait for storage by the read plan `reading`; loading_threads decode and warp.
    """

    clips_per_step: int
    frames_per_clip: int
    reading_threads: int
    loading_threads: int
    compute_threads: int
    cores: int
    world_size: int
    device: str
    executor: str
    reading: str


@dataclass(frozen=True)
class Measurement:
    """One rank's numbers.

    data_ms: a batch when nothing else is done, the faster of two runs; repeated_ms: both of them. compute_ms: a step on
    a batch that lies ready. both_ms: a step of real training; waits: of those steps. data_parts: work on a batch by
    name, summed over the threads that did it, so that together they may exceed data_ms. serial_parts: those of them
    that one thread does, batch after batch. compute_parts: of compute_ms. without: data_ms with the named part of the
    path taken away. unsynchronised_ms: a step of compute_ms that exchanges no gradients; None for one rank. plain_ms:
    data_ms without augmentation; synthetic_ms: with batches that lie ready. checksum_ms: share of "read" that goes into
    CRC-32. bytes_per_step: that this rank reads. read_rate: MB/s while at least one read lasted. cores_busy: during
    data, compute and both. storage: latency and bandwidth, given or probed; read_plans: ms that reading a batch from
    it takes by each plan, as pipelines.reading.cost predicts. gpu_busy: percent of the
    time in training, by unit; empty without a GPU.
    """

    data_ms: float
    repeated_ms: tuple[float, float]
    compute_ms: float
    both_ms: float
    waits: Waits
    data_parts: Mapping[str, float]
    serial_parts: tuple[str, ...]
    compute_parts: Mapping[str, float]
    without: Mapping[str, float]
    unsynchronised_ms: float | None
    plain_ms: float
    synthetic_ms: float
    checksum_ms: float
    bytes_per_step: float
    read_rate: float
    storage: StorageSpeed
    read_plans: Mapping[str, float]
    cores_busy: Mapping[str, float]
    gpu_busy: Mapping[str, float]
    at: Circumstances

    @property
    def unrest(self) -> float:
        """By how much the slower of two equal runs took longer than the faster one, as a share of that."""
        return max(self.repeated_ms) / min(self.repeated_ms) - 1

    @property
    def wait_share(self) -> float:
        """Part of a training step that is waiting for its batch, 0..1."""
        return self.waits.mean_ms / self.both_ms if self.both_ms else 0.0

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """limit: what steps wait for. wall: the part of it that takes longest. words: the same for people."""

    limit: Limit
    wall: str
    words: str


@dataclass(frozen=True)
class WhatIf:
    """A prediction for one change. measured: data_ms comes from a run with the change, otherwise from the model."""

    change: str
    data_ms: float
    step_ms: float
    measured: bool
    limit: Limit
