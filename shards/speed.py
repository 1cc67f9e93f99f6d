"""How fast storage answers: reads of one size by so many at a time, at places spread over the data.

What was measured is said with it: `Measured.cold` is how much of the bytes was not in this machine's memory when it was
asked for. Disks and servers have caches of their own, which nobody can see from here.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shards.errors import DataError
from shards.reader import ShardSet
from shards.shard_files import Range, ShardFile, drop_from_page_cache, open_shard_for_clips
from shards.storage.paths import Location, list_folder
from shards.storage.requests import stop_waiting_when

_GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly however many there are."""
LARGE, SMALL = 1 << 20, 4096
PROBE_THREADS, PROBE_READS, PROBE_SECONDS = 8, 12, 1.5


@dataclass(frozen=True, slots=True)
class Target:
    """A file to read from; path: where it lies if it is a local one."""

    file: ShardFile
    num_bytes: int
    path: Path | None


@dataclass(frozen=True, slots=True)
class StorageSpeed:
    """The numbers of the cost model.

    latency: seconds from a request to its answer if that is small and the only one. bandwidth: bytes per second of
    large requests, several at a time. request_cpu, byte_cpu: seconds of this process's CPU for each request and each
    byte of an answer, which are small for local files (0.02 ms, 0.1 ns) and are not over the network (0.8 ms, 1 ns).
    """

    latency: float
    bandwidth: float
    request_cpu: float = 0.0
    byte_cpu: float = 0.0

    def __post_init__(self) -> None:
        """ValueError unless bandwidth > 0 and the others are at least 0."""
        if not (min(self.latency, self.request_cpu, self.byte_cpu) >= 0 and self.bandwidth > 0):
            raise ValueError(f"latency must be at least 0 and bandwidth above 0, got {self}")


@dataclass(frozen=True, slots=True)
class Measured:
    """Reads of `size` bytes, `parallel` at a time. seconds: wall time of all. p50, p99: seconds of one read.

    cold: share of the reads whose first page was not in memory and that shared no byte with an earlier one; None where
    that cannot be known: remote files, and those of other users. cpu: seconds of this process's CPU for one read; the
    median if there was one at a time.
    """

    size: int
    parallel: int
    num_reads: int
    seconds: float
    p50: float
    p99: float
    cold: float | None
    cpu: float = 0.0

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""
        return self.size * self.num_reads / self.seconds

    @property
    def reads_per_second(self) -> float:
        """Of all threads together."""
        return self.num_reads / self.seconds


def targets_of_set(shard_set: ShardSet) -> list[Target]:
    """The shards of a set, read as the set reads them."""
    found = []
    for number, facts in enumerate(shard_set.manifest.shards):
        path = shard_set.shard_path(number)
        found.append(Target(_ShardOfSet(shard_set, number), facts.bytes, path if isinstance(path, Path) else None))
    return found


def targets_of_folder(folder: Location) -> list[Target]:
    """Files directly inside a folder that hold at least LARGE bytes. Raises DataError if there is none."""
    entries = [entry for entry in list_folder(folder) if not entry.is_folder and entry.num_bytes >= LARGE]
    if not entries:
        raise DataError(
            folder,
            expected="a shard set, or a folder with files of 1 MB or more",
            found="neither",
            remedy="give the folder that tools/shard.py made, or one with large files on the storage in question",
        )
    found = []
    for entry in entries:
        path = folder / entry.name
        file = open_shard_for_clips(path)
        found.append(Target(file, entry.num_bytes, path if isinstance(path, Path) else None))
    return found


def measure_reads(
    targets: Sequence[Target],
    size: int,
    parallel: int,
    *,
    num_reads: int,
    offset: int = 0,
    seconds: float = 5.0,
    forget: bool = True,
) -> Measured:
    """Read `num_reads` places, or as many as fit into `seconds` or side by side into the data, but one per thread.

    offset: how many places of the sequence others have read before; the same sequence in every call. forget: have the
    kernel forget the places first.
    """
    usable = [target for target in targets if target.num_bytes >= size] or list(targets)
    size = min(size, *(target.num_bytes for target in usable))
    places = _apart([_place(usable, size, offset + number) for number in range(num_reads)], size, parallel)
    cold = [_chill(target, start, size if forget else 0) for target, start in places]
    times: list[tuple[float, float]] = []  # wall, and CPU with all that goes on in the process meanwhile
    begun, worked = time.perf_counter(), time.process_time()
    deadline, lock = begun + seconds, threading.Lock()

    def read(place: tuple[Target, int]) -> None:
        started, cpu = time.perf_counter(), time.process_time()
        if started > deadline and len(times) >= parallel:
            return
        place[0].file.read([(place[1], size)])
        with lock:
            times.append((time.perf_counter() - started, time.process_time() - cpu))

    ended = threading.Event()
    with ThreadPoolExecutor(parallel, "storage-probe", stop_waiting_when, (ended,)) as threads:
        try:
            list(threads.map(read, places))
        except BaseException:  # Ctrl-C waits for no server
            ended.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    wall, worked = time.perf_counter() - begun, time.process_time() - worked
    known = [
        was_cold and not _overlaps(place, places[:number], size)
        for number, (place, was_cold) in enumerate(zip(places, cold, strict=True))
        if was_cold is not None
    ]
    share = sum(known) / len(known) if known else None
    ordered = sorted(seconds for seconds, _ in times)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    cpu = worked / len(times) if parallel > 1 else statistics.median(each for _, each in times)
    return Measured(size, parallel, len(times), wall, statistics.median(ordered), p99, share, cpu)


def probe_speed(targets: Sequence[Target]) -> StorageSpeed:
    """All four numbers by a dozen reads each, in about a second on anything but very slow storage.

    Local files are asked for cold, so what is measured is the disk, as far as the kernel forgets on request.
    """
    small = measure_reads(targets, SMALL, 1, num_reads=PROBE_READS, seconds=PROBE_SECONDS / 2)
    large = measure_reads(
        targets,
        LARGE,
        PROBE_THREADS,
        num_reads=2 * PROBE_THREADS,
        offset=PROBE_READS,
        seconds=PROBE_SECONDS / 2,
    )
    return storage_speed(small, large)


def storage_speed(small: Measured, large: Measured) -> StorageSpeed:
    """What two measurements say: small reads one at a time, large ones several at a time."""
    return StorageSpeed(small.p50, large.bandwidth, small.cpu, max(0.0, large.cpu - small.cpu) / large.size)


class _ShardOfSet:
    """A shard as its set opens it."""

    def __init__(self, shard_set: ShardSet, number: int) -> None:
        self._shard_set = shard_set
        self._number = number

    def read(self, ranges: Sequence[Range], *, fresh: bool = False) -> list[bytes]:
        """The bytes of each range, from where the shard lies: local copies are not what is measured."""
        return self._shard_set.read_ranges(self._number, ranges, fresh=True)


def _place(targets: Sequence[Target], size: int, number: int) -> tuple[Target, int]:
    """The number-th place: a file, and where in it to start."""
    free = [target.num_bytes - size + 1 for target in targets]
    at = int((number + 0.5) * _GOLDEN % 1.0 * sum(free))
    for target, length in zip(targets, free, strict=True):
        if at < length:
            return target, at
        at -= length
    raise AssertionError("the place lies within the sum of all")


def _apart(places: list[tuple[Target, int]], size: int, least: int) -> list[tuple[Target, int]]:
    """The places before the first that overlaps an earlier one; all where fewer than `least` would remain."""
    overlapping = (number for number, place in enumerate(places) if _overlaps(place, places[:number], size))
    count = next(overlapping, len(places))
    return places[:count] if count >= least else places


def _overlaps(place: tuple[Target, int], others: Sequence[tuple[Target, int]], size: int) -> bool:
    return any(other[0] is place[0] and abs(other[1] - place[1]) < size for other in others)


def _chill(target: Target, start: int, size: int) -> bool | None:
    """Have a range forgotten; whether it then is. None where that cannot be known."""
    if target.path is None:
        return None
    if size:
        drop_from_page_cache(target.path, start, size)
    return not _in_memory(target.path, start) if _may_ask(target.path) else None


def _may_ask(path: Path) -> bool:
    """Whether the kernel tells the truth about a file: of others' files it says that all of it is in memory."""
    return os.geteuid() in (0, path.stat().st_uid) or os.access(path, os.W_OK)


def _in_memory(path: Path, start: int) -> bool:
    """Whether the page cache holds the page of a byte.

    By mincore: a read that must not wait (RWF_NOWAIT) would make newer kernels fetch the page.
    """
    page = start // mmap.PAGESIZE * mmap.PAGESIZE
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), start + 1 - page, access=mmap.ACCESS_COPY, offset=page) as view,
    ):
        first = ctypes.c_char.from_buffer(view)  # must be gone before the mapping closes
        vector = ctypes.create_string_buffer(1)
        failed = _libc().mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(1), vector)
        del first
        return bool(failed) or bool(vector.raw[0] & 1)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
