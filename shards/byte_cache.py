"""Local copies of remote bytes: whatever part of a remote shard was read once is read from the local disk afterwards.

A shard's copy is a number of segment files, each the sparse image of SEGMENT_BYTES of the shard followed by one byte
for each of its pages: 1 where the page is there. A page is marked after it was written, so a process that is killed
leaves nothing wrong; processes that write the same page write the same bytes. Files are named after the shard's SHA-256
and never change their meaning. Nothing here is trusted: `ShardSet` checks what it reads and goes back to the source.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import DataError
from shards.locks import hold_alone
from shards.manifest import ShardFacts
from shards.shard_files import Range, ShardFile, open_shard_for_clips
from shards.storage.paths import Location, RemotePath

logger = logging.getLogger(__name__)

PAGE = 4096
SEGMENT_BYTES = 1 << 26
# Segments get this small where the limit is, so that making room does not throw away everything.
SMALLEST_SEGMENT, SEGMENTS_AT_LEAST = 1 << 20, 16
LEAST_BYTES = SEGMENTS_AT_LEAST * SMALLEST_SEGMENT
# How often the time of last use is written down, and after which part of the limit a process looks at the size.
_TOUCH_SECONDS = 30.0
_SHARE_WRITTEN, _SHARE_KEPT = 16, 0.9


class _Counter:
    """Bytes since the last time somebody looked, over all threads of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0

    def add(self, num_bytes: int, limit: int) -> bool:
        """Whether the limit was passed; then counting starts again."""
        with self._lock:
            self._bytes += num_bytes
            passed = self._bytes > limit
            self._bytes = 0 if passed else self._bytes
            return passed


@dataclass(frozen=True)
class ByteCache:
    """Opens shards so that remote bytes are kept in `folder`; local shards are opened as they are.

    num_bytes: how much disk the copies may take. Each process looks after it has written a sixteenth of that, so P
    processes can exceed it by P sixteenths in between; then those unused for longest go. Any number of processes and
    sets may share a folder. Raises ValueError for a limit below 16 MiB.
    """

    folder: Path
    num_bytes: int
    _written: _Counter = field(default_factory=_Counter, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a limit that cannot hold a few segments."""
        if self.num_bytes < LEAST_BYTES:
            raise ValueError(f"a cache needs at least {LEAST_BYTES} bytes, got {self.num_bytes}")

    def __reduce__(self) -> tuple[object, ...]:
        return ByteCache, (self.folder, self.num_bytes)

    def __call__(self, path: Location, facts: ShardFacts) -> ShardFile:
        """The shard at `path`."""
        file = open_shard_for_clips(path, facts)
        return _CachedFile(file, self, facts) if isinstance(path, RemotePath) else file

    @property
    def segment_bytes(self) -> int:
        """Bytes of a shard in one file; part of the names, because processes may have different limits."""
        size = SEGMENT_BYTES
        while size > SMALLEST_SEGMENT and size * SEGMENTS_AT_LEAST > self.num_bytes:
            size //= 2
        return size

    def segment(self, facts: ShardFacts, number: int) -> Path:
        """File of the number-th segment of a shard."""
        return self.folder / facts.sha256[:2] / f"{facts.sha256}.{self.segment_bytes}.{number}"

    def note_written(self, num_bytes: int) -> None:
        """Count bytes that came onto the disk, and make room once in a while."""
        if self._written.add(num_bytes, self.num_bytes // _SHARE_WRITTEN):
            self.make_room()

    def make_room(self) -> None:
        """Remove the segments that were not used for longest until nine tenths of the limit are taken at most.

        Does nothing while another process is at it. Whoever reads from a removed file goes on to its end.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold_alone(self.folder) as alone:
            found = sorted(self._segments()) if alone else []
            taken = sum(num_bytes for _, num_bytes, _ in found)
            if taken <= self.num_bytes:
                return
            for _, num_bytes, path in found:
                if taken <= _SHARE_KEPT * self.num_bytes:
                    break
                path.unlink(missing_ok=True)
                taken -= num_bytes

    def taken_bytes(self) -> int:
        """Disk space of all segments, holes not counted."""
        return sum(num_bytes for _, num_bytes, _ in self._segments())

    def _segments(self) -> Iterator[tuple[float, int, Path]]:
        for path in self.folder.glob("??/*"):
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue  # another process made room
            yield facts.st_mtime, facts.st_blocks * 512, path


class _CachedFile:
    def __init__(self, file: ShardFile, cache: ByteCache, facts: ShardFacts) -> None:
        self._file = file
        self._cache = cache
        self._facts = facts
        self._touched: dict[int, float] = {}
        self._broken = False

    def read(self, ranges: Sequence[Range], *, fresh: bool = False) -> list[bytes]:
        """The bytes of each range. fresh: all from the source, and written over what the cache has of them."""
        found = [None if fresh else self._read_copy(one) for one in ranges]
        pages = [_whole_pages(one, self._facts.bytes) for one in ranges]
        missing = [whole for whole, data in zip(pages, found, strict=True) if data is None]
        fetched = iter(self._file.read(missing) if missing else [])
        for place, ((start, num_bytes), (first, length)) in enumerate(zip(ranges, pages, strict=True)):
            if found[place] is None:
                whole = next(fetched)
                if len(whole) == length:
                    self._keep(first, whole)
                found[place] = whole[start - first : start - first + num_bytes]
        return [data for data in found if data is not None]

    def _read_copy(self, wanted: Range) -> bytes | None:
        """The bytes if every page of them is there."""
        pieces = []
        for number, start, num_bytes in self._pieces(*wanted):
            with _opened(self._cache.segment(self._facts, number), os.O_RDWR) as descriptor:
                if descriptor is None or not self._marks(descriptor, start, num_bytes).all():
                    return None
                pieces.append(os.pread(descriptor, num_bytes, start))
                self._touch(number, descriptor)
        data = b"".join(pieces)
        return data if len(data) == wanted[1] else None

    def _keep(self, first: int, data: bytes) -> None:
        """Write whole pages (the last one of a shard may be shorter) and mark them."""
        if self._broken:
            return
        try:
            for number, start, num_bytes in self._pieces(first, len(data)):
                path = self._cache.segment(self._facts, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                begin = number * self._cache.segment_bytes + start - first
                with _opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
                    if descriptor is not None:
                        _write_fully(descriptor, data[begin : begin + num_bytes], start)
                        pages = b"\1" * -(-num_bytes // PAGE)
                        _write_fully(descriptor, pages, self._cache.segment_bytes + start // PAGE)
            self._cache.note_written(len(data))
        except OSError as error:
            self._broken = True  # reading goes on without a copy
            logger.warning("%s: no more copies of %s: %s", self._cache.folder, self._facts.name, error)

    def _pieces(self, start: int, num_bytes: int) -> Iterator[tuple[int, int, int]]:
        """(segment, first byte in it, number of bytes) of a range."""
        size, end = self._cache.segment_bytes, start + num_bytes
        while start < end:
            number, inside = divmod(start, size)
            length = min(end - start, size - inside)
            yield number, inside, length
            start += length

    def _marks(self, descriptor: int, start: int, num_bytes: int) -> NDArray[np.uint8]:
        first, last = start // PAGE, -(-(start + num_bytes) // PAGE)
        marks = np.zeros(last - first, np.uint8)
        found = os.pread(descriptor, last - first, self._cache.segment_bytes + first)
        marks[: len(found)] = np.frombuffer(found, np.uint8)
        return marks

    def _touch(self, number: int, descriptor: int) -> None:
        now = time.monotonic()
        if now - self._touched.get(number, -_TOUCH_SECONDS) >= _TOUCH_SECONDS:
            self._touched[number] = now
            os.utime(descriptor)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int | None]:
    """A descriptor, None if there is no such file."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _whole_pages(wanted: Range, size: int) -> Range:
    start = wanted[0] // PAGE * PAGE
    end = min(size, -(-(wanted[0] + wanted[1]) // PAGE) * PAGE)
    return start, end - start


def _write_fully(descriptor: int, data: bytes, start: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, start)
        data, start = data[written:], start + written


def open_cache(folder: Path, num_bytes: int) -> ByteCache:
    """A cache in a folder that can be written, holding no more than its limit. Raises DataError if it cannot."""
    cache = ByteCache(folder, num_bytes)
    try:
        cache.make_room()
    except OSError as error:
        raise DataError(
            folder, expected="a folder for copies of remote bytes", found=str(error), remedy="name another one"
        ) from None
    return cache
