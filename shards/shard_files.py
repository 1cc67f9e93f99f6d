"""Open shards, read by byte ranges: local files, files in stores and on web servers, and slower ones for tests."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shards.errors import DataError
from shards.manifest import ShardFacts
from shards.storage.paths import Location, RemotePath, read_ranges
from shards.storage.requests import pause

_FOLIO = 4 << 20
"""The kernel forgets a piece of its cache only as a whole; pieces of files grow to 2 MB."""

Range = tuple[int, int]
"""First byte and number of bytes."""


class ShardFile(Protocol):
    """A shard open for reading from any number of threads."""

    def read(self, ranges: Sequence[Range], *, fresh: bool = False) -> list[bytes]:
        """The bytes of each range, fewer where the file ends. fresh: from where the shard lies, by no local copy."""


ShardOpener = Callable[[Location, ShardFacts], ShardFile]


def open_shard(path: Location, _facts: ShardFacts | None = None) -> ShardFile:
    """A shard where it lies. Raises DataError if a local one is not there."""
    if isinstance(path, RemotePath):
        return RemoteFile(path)
    try:
        return LocalFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        raise DataError(
            path,
            expected="the shard that was there when the set was opened",
            found="no such file",
            remedy="bring it back, or open the set again where it is now",
        ) from None


def open_shard_for_clips(path: Location, facts: ShardFacts | None = None) -> ShardFile:
    """As `open_shard`, for reading here and there: what the kernel would read ahead of a frame is wasted then."""
    file = open_shard(path, facts)
    if isinstance(file, LocalFile):
        file.advise_random()
    return file


class LocalFile:
    """A descriptor that closes with its last reference: dropping it from a cache never cuts off a running read."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def advise_random(self) -> None:
        """Tell the kernel to read what is asked for and nothing ahead of it."""
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, ranges: Sequence[Range], *, fresh: bool = False) -> list[bytes]:
        """The bytes of each range, one `pread` after the other."""
        return [_read_fully(self._descriptor, start, num_bytes) for start, num_bytes in ranges]


class RemoteFile:
    """A shard in a store or on a web server."""

    def __init__(self, path: RemotePath) -> None:
        self._path = path

    def read(self, ranges: Sequence[Range], *, fresh: bool = False) -> list[bytes]:
        """The bytes of each range, requested at the same time over connections that stay open."""
        return read_ranges(self._path, list(ranges))


class _Link:
    """Who may send when: transfers one after the other, booked ahead so that no time is lost between them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = 0.0

    def take(self, start: float, seconds: float) -> float:
        """When a transfer that may begin at `start` will have ended."""
        with self._lock:
            self._free = max(start, self._free) + seconds
            return self._free


@dataclass(frozen=True)
class SlowStorage:
    """Opens shards as if they lay on slow storage: for tests and benchmarks of how reading copes with it.

    latency: seconds until the first byte of each request. bandwidth: bytes per second of the one link that all requests
    of all files opened by this object share. The ranges of one call come one after the other, as on a network disk.
    """

    latency: float
    bandwidth: float
    _link: _Link = field(default_factory=_Link, repr=False, compare=False)

    def __reduce__(self) -> tuple[object, ...]:
        return SlowStorage, (self.latency, self.bandwidth)

    def __call__(self, path: Location, facts: ShardFacts) -> ShardFile:
        """The shard at `path`, slowed down."""
        return _SlowFile(open_shard_for_clips(path, facts), self)

    def wait(self, num_bytes: int) -> None:
        """Take as long as one request of this many bytes, made now."""
        now = time.monotonic()
        pause(self._link.take(now + self.latency, num_bytes / self.bandwidth) - now)


class _SlowFile:
    def __init__(self, file: ShardFile, storage: SlowStorage) -> None:
        self._file = file
        self._storage = storage

    def read(self, ranges: Sequence[Range], *, fresh: bool = False) -> list[bytes]:
        found = []
        for one in ranges:
            data = self._file.read([one], fresh=fresh)[0]
            self._storage.wait(len(data))
            found.append(data)
        return found


def _read_fully(descriptor: int, start: int, num_bytes: int) -> bytes:
    data = os.pread(descriptor, num_bytes, start)
    while len(data) < num_bytes and (more := os.pread(descriptor, num_bytes - len(data), start + len(data))):
        data += more  # a signal or a network disk may hand over less than was asked for
    return data


def drop_from_page_cache(path: Path, start: int, num_bytes: int) -> None:
    """Ask the kernel to forget its copy of a file's range, so that the next read comes from the disk.

    Pages that a process has mapped or that were not written back yet stay; so does everything on file systems that live
    in memory. Whoever measures must check what came of it.
    """
    first = start // _FOLIO * _FOLIO
    length = -(-(start + num_bytes - first) // _FOLIO) * _FOLIO
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, first, length, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
