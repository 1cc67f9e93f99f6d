"""Which members a huge foreign tar holds and where: one walk, with MD5 if wanted, into an SQLite file.

Nothing is unpacked and no list of members is held in memory: BL30K has 9.6 million. Names decide nothing on disk, so
no path inside a tar can lead anywhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import sqlite3
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from shards.errors import DataError
from shards.findings import Finding
from shards.locks import hold_work
from shards.sources.folders import is_dropping, printable
from shards.storage.paths import Location, file_size
from shards.tar import BLOCK, padded

logger = logging.getLogger(__name__)

FOLDERS = ("JPEGImages", "Annotations")
# One for each odd member up to here, then a count: a tar of something else must not fill the disk with remarks.
MAX_REMARKS = 100
_VERSION = 2
_READ_BYTES = 1 << 22
_REPORT_BYTES = 10**10
_MAX_HEADER_BYTES = 1 << 20
# What file systems allow; headers of tars do not care.
_MAX_NAME_BYTES = 255
_BATCH = 10_000
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class VideoMember(NamedTuple):
    """One file of a video inside a tar. folder: JPEGImages or Annotations; path: its whole name in the tar."""

    folder: str
    file: str
    path: str
    offset: int
    num_bytes: int


def index_tar(
    tar: Location, database: Path, label: str, md5: str | None, *, stop: threading.Event | None = None
) -> None:
    """Make `database` for a tar unless it is there already, of the same bytes as far as size and time can tell.

    md5: the sum that the tar must have, checked in the same pass; None reads headers only. label: for findings. stop:
    set by another thread, ends the walk with InterruptedError. Raises DataError for a compressed, damaged, cut off or
    altered tar.
    """
    stamp = json.dumps([_VERSION, tar_stamp(tar), md5])
    if _read_stamp(database) == stamp:
        return
    stop = stop or threading.Event()
    database.parent.mkdir(parents=True, exist_ok=True)
    # Parts of a build begin together: one of them reads these 115 GB, not each.
    with hold_work(database.with_name(f"{database.name}.lock"), stop):
        if _read_stamp(database) != stamp:
            logger.info("%s: reading %s", tar, "headers" if md5 is None else "all of it, for its MD5")
            _make_database(database, stamp, lambda table: _fill(table, tar, label, md5, stop))


def _make_database(
    database: Path, stamp: str, fill: Callable[[sqlite3.Connection], list[tuple[str, str, str]]]
) -> None:
    """Write the database under another name and rename it when it is complete. fill: returns the findings."""
    temporary = database.with_name(f"{database.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Alone in this file until it is renamed: no journal, and no locks, which shared folders often lack.
        with closing(sqlite3.connect(f"file:{temporary}?nolock=1", uri=True, isolation_level=None)) as table:
            table.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-16384; BEGIN")
            table.execute(
                "CREATE TABLE members (video TEXT, folder TEXT, file TEXT, path TEXT, offset INT, bytes INT,"
                " PRIMARY KEY (video, folder, file, offset)) WITHOUT ROWID"
            )
            table.execute("CREATE TABLE facts (stamp TEXT, findings TEXT)")
            findings = fill(table)
            table.execute("INSERT INTO facts VALUES (?, ?)", (stamp, json.dumps([list(one) for one in findings])))
            table.execute("COMMIT")
        temporary.replace(database)
    finally:
        temporary.unlink(missing_ok=True)


def tar_stamp(tar: Location) -> str:
    """Size and time of change of a tar. Raises DataError if there is none."""
    size = file_size(tar)
    if size is None:
        raise DataError(tar, expected="a tar of the data set", found="no such file", remedy="correct the path")
    return f"{size} {tar.stat().st_mtime_ns if isinstance(tar, Path) else 0}"


def read_remarks(database: Path) -> list[Finding]:
    """Findings about members that are no file of any video."""
    with closing(_open(database)) as table:
        (rows,) = table.execute("SELECT findings FROM facts").fetchone()
    remedy = "see whether this is the published tar"
    return [
        Finding("warning", reason, "regular files .../JPEGImages/<video>/<frame>.jpg", found, remedy, "ignored", path)
        for reason, found, path in json.loads(rows)
    ]


def video_sizes(database: Path) -> Iterator[tuple[str, str, str, int]]:
    """(video, folder, file, bytes) of every member, sorted; read as it is asked for."""
    with closing(_open(database)) as table:
        yield from table.execute("SELECT video, folder, file, bytes FROM members ORDER BY video, folder, file")


def video_members(database: Path, video: str) -> list[VideoMember]:
    """Members of one video sorted by folder and file name."""
    query = "SELECT folder, file, path, offset, bytes FROM members WHERE video = ? ORDER BY folder, file, offset"
    with closing(_open(database)) as table:
        return [VideoMember(*row) for row in table.execute(query, (video,))]


class _Member(NamedTuple):
    """A header of the tar, long names resolved. data: where the content begins."""

    path: str
    kind: bytes
    data: int
    size: int


_WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


class _Walk:
    """A tar read from front to back: content is stepped over, or read and hashed where a sum is wanted."""

    def __init__(self, file: BinaryIO, size: int, *, hashed: bool, stop: threading.Event) -> None:
        self._file = file
        self._stop = stop
        self._reported = 0
        self.size = size
        self.position = 0
        self.md5 = hashlib.md5(usedforsecurity=False) if hashed else None

    def read(self, num_bytes: int) -> bytes:
        """The next bytes; fewer at the end."""
        if self._stop.is_set():
            raise InterruptedError("another tar failed, or the build was stopped")
        data = self._file.read(num_bytes)
        self.position += len(data)
        if self.md5 is not None:
            self.md5.update(data)
            if self.position - self._reported >= _REPORT_BYTES:
                self._reported = self.position
                logger.info("%.0f of %.0f GB read", self.position / 1e9, self.size / 1e9)
        return data

    def skip(self, num_bytes: int) -> None:
        """Go on behind these bytes."""
        if self.md5 is None:
            self.position += num_bytes
            self._file.seek(self.position)
            return
        while num_bytes > 0 and (data := self.read(min(num_bytes, _READ_BYTES))):
            num_bytes -= len(data)


def _fill(
    table: sqlite3.Connection, tar: Location, label: str, md5: str | None, stop: threading.Event
) -> list[tuple[str, str, str]]:
    """Write the members of all videos; returns (reason, found, path) of what is odd."""
    odd: list[tuple[str, str, str]] = []
    num_odd = 0
    batch: list[tuple[str, str, str, str, int, int]] = []
    size = file_size(tar) or 0
    # Unbuffered where headers alone are read: a buffer would read megabytes for each.
    with tar.open("rb") if md5 else _unbuffered(tar) as file:
        walk = _Walk(file, size, hashed=md5 is not None, stop=stop)
        for member in _members(walk, tar):
            place = _place(member)
            if isinstance(place, str):
                num_odd += bool(place)
                if place and num_odd <= MAX_REMARKS:
                    odd.append((place, repr(member.path), f"{label}:{printable(member.path)}"))
                continue
            batch.append((*place, member.path, member.data, member.size))
            if len(batch) >= _BATCH:
                _insert(table, batch)
        _insert(table, batch)
        walk.skip(size - walk.position)
        found = walk.md5.hexdigest() if walk.md5 else md5
    if found != md5:
        remedy = "download the tar again; --md5 skip goes on with this one"
        raise DataError(tar, expected=f"the published MD5 {md5}", found=str(found), remedy=remedy)
    if num_odd > MAX_REMARKS:
        odd.append(("odd members", f"{num_odd - MAX_REMARKS} more like these", label))
    return odd


def _insert(table: sqlite3.Connection, batch: list[tuple[str, str, str, str, int, int]]) -> None:
    table.executemany("INSERT INTO members VALUES (?, ?, ?, ?, ?, ?)", batch)
    batch.clear()


def _place(member: _Member) -> tuple[str, str, str] | str:
    """(video, folder, file) of a member, or why it is none; "" for what may lie in any tar, such as folders."""
    parts = [part for part in member.path.split("/") if part not in ("", ".")]
    if member.kind == tarfile.DIRTYPE or not parts or is_dropping(parts[-1]):
        return ""
    odd = _oddity(member, parts)
    if odd:
        return odd
    return "" if is_dropping(parts[-2]) else (parts[-2], parts[-3], parts[-1])


def _oddity(member: _Member, parts: list[str]) -> str:
    """Why a member is no file of a video; "" for one that is. parts: of its path."""
    if member.kind not in _REGULAR:
        return "link or special file in the tar"
    if ".." in parts:
        return "path that leaves the tar"
    if printable(member.path) != member.path:
        return "name is not UTF-8"
    if len(parts) < 3 or parts[-3] not in FOLDERS:
        return "member of no video"
    too_long = max(len(part.encode()) for part in parts[-2:]) > _MAX_NAME_BYTES
    return "name longer than a file can have" if too_long else ""


def _members(walk: _Walk, tar: Location) -> Iterator[_Member]:
    """Headers in file order, long names of GNU and POSIX tars resolved. Raises DataError if the tar is not whole."""
    long_name: str | None = None
    long_size: int | None = None
    while True:
        start = walk.position
        block = walk.read(BLOCK)
        if start == 0:
            _require_plain(block, tar)
        if len(block) < BLOCK:
            raise _broken(tar, f"the end of the file at byte {start}, without the end of the archive")
        if block == bytes(BLOCK):
            break
        header = _parse(block, start, tar)
        data = walk.position
        if header.size < 0 or data + header.size > walk.size:
            raise _broken(tar, f"member {header.name!r} of {header.size} bytes, beyond the end of the file")
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            if header.size > _MAX_HEADER_BYTES:
                raise _broken(tar, f"a header of {header.size} bytes at byte {start}")
            content = walk.read(header.size)
            walk.skip(padded(header.size) - header.size)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                long_name, long_size = _extended(content, start, tar)
            continue
        size = header.size if long_size is None else long_size
        if data + size > walk.size:
            raise _broken(tar, f"member {header.name!r} of {size} bytes, beyond the end of the file")
        if header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            yield _Member(long_name or header.name, header.type, data, size)
            long_name = long_size = None
        walk.skip(padded(size))
    _require_nothing_more(walk, tar)


def _require_nothing_more(walk: _Walk, tar: Location) -> None:
    """Raise DataError unless zeros alone follow the end of the archive: two joined tars would lose the second one."""
    end, rest = walk.position, walk.size - walk.position
    if rest > _READ_BYTES or any(walk.read(rest)):
        raise _broken(tar, f"{rest} bytes, more than padding, behind the end of the archive at byte {end}")


def _parse(block: bytes, position: int, tar: Location) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if header.type in _WITHOUT_CONTENT:
            header.size = 0  # whatever it says, as tar programs have it: the next header follows
        return header
    except tarfile.HeaderError as error:
        raise _broken(tar, f"no header at byte {position}: {error}") from None


def _extended(content: bytes, position: int, tar: Location) -> tuple[str | None, int | None]:
    """(path, size) out of a POSIX extended header: records of `<length> <key>=<value>` and a line feed."""
    name, size = None, None
    try:
        while content:
            length = int(content[: content.index(b" ")])
            key, _, value = content[content.index(b" ") + 1 : length - 1].partition(b"=")
            if key == b"path":
                name = value.decode("utf-8", "surrogateescape")
            elif key == b"size":
                size = int(value)
            if length < 5 or (size or 0) < 0:
                raise ValueError("length")
            content = content[length:]
    except ValueError:
        raise _broken(tar, f"a damaged extended header at byte {position}") from None
    return name, size


def _require_plain(block: bytes, tar: Location) -> None:
    for start, name in _COMPRESSED.items():
        if block.startswith(start):
            raise DataError(
                tar,
                expected="a plain tar, whose members can be read where they lie",
                found=f"one compressed with {name}",
                remedy="uncompress it first (JPEGs hardly shrink; the published tars are plain)",
            )


def _broken(tar: Location, found: str) -> DataError:
    return DataError(tar, expected="a whole tar", found=found, remedy="download it again, or go on with its download")


def _read_stamp(database: Path) -> str | None:
    """Of which bytes a database is; None if there is none or it is no whole one."""
    if not database.is_file():
        return None
    try:
        with closing(_open(database)) as table:
            return str(table.execute("SELECT stamp FROM facts").fetchone()[0])
    except (sqlite3.DatabaseError, TypeError):
        return None


def _open(database: Path) -> sqlite3.Connection:
    """Read a finished database; `immutable`, because it never changes and locks of shared folders are not to be had."""
    try:
        return sqlite3.connect(f"file:{os.fspath(database.resolve())}?immutable=1", uri=True, check_same_thread=False)
    except sqlite3.OperationalError as error:
        raise DataError(
            database,
            expected="the list of a tar's members, as the machine that planned the build wrote it",
            found=str(error),
            remedy="all workers must see this path: give an OUT or a VOSFORGE_CACHE they share, or run --part on each",
        ) from None


def _unbuffered(tar: Location) -> BinaryIO:
    return cast(BinaryIO, tar.open("rb", buffering=0)) if isinstance(tar, Path) else tar.open("rb")
