"""USTAR by hand: headers that are the same bytes everywhere, and a walk over members without unpacking."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)


class Member(NamedTuple):
    """One file inside a tar: its name, where its data begin, how many bytes they are."""

    name: str
    offset: int
    size: int


def padded(size: int) -> int:
    """Size rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def encode_member(name: str, data: bytes) -> bytes:
    """Header, data and padding of one regular file; mtime 0, owner root (0), mode 0644.

    Raises ValueError if the name does not fit the 100 bytes of a USTAR name field.
    """
    if len(name.encode()) > 100:
        raise ValueError(f"tar member name of more than 100 bytes: {name}")
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.uname = entry.gname = "root"
    return entry.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict") + data + bytes(padded(len(data)) - len(data))


def members(file: BinaryIO) -> Iterator[Member]:
    """Members of an open tar of regular files in file order; seeks, so the caller may read in between.

    Raises ValueError for a damaged header, another member type, data beyond the end, or anything but two zero blocks at
    the end of the file.
    """
    size = file.seek(0, 2)
    position = 0
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if header == END_OF_ARCHIVE[:BLOCK]:
            break
        entry = _header(header, position)
        data = position + BLOCK
        position = data + padded(entry.size)
        if position > size:
            raise ValueError(f"member {entry.name} ends at byte {position}, the file at {size}")
        yield Member(entry.name, data, entry.size)
    file.seek(position)
    if size != position + len(END_OF_ARCHIVE) or file.read() != END_OF_ARCHIVE:
        raise ValueError(f"expected two zero blocks and the end of the file at byte {position}")


def _header(block: bytes, position: int) -> tarfile.TarInfo:
    try:
        entry = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise ValueError(f"no tar header at byte {position}: {error}") from None
    if entry.type != tarfile.REGTYPE:
        raise ValueError(f"member {entry.name} at byte {position} is no regular file (type {entry.type!r})")
    return entry
