"""The files of an index on disk: written with checksums, and no byte handed to Arrow before it is proven.

Arrow trusts offsets inside a file: a flipped bit would give other data in silence, or end the process.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from shards.errors import DataError
from shards.manifest import encode_json
from shards.storage.paths import Location, write_bytes

# Beside the tables: for each of them (end in bytes, CRC-32) of its pieces. The first piece is the header and the first
# shard's batch, then comes a piece for each shard, the last one is the footer.
CHECKSUMS = "checksums.json"
REBUILD = "run tools/check.py --rebuild-index on the set, or build it again"

INDEX_FOLDER = "index"
"""Of a set; copies of remote ones lie under their fingerprint."""

Pieces = list[tuple[int, int]]


def remedy_for(folder: Path) -> str:
    """What mends the index in a folder: in that of a set, or a local copy of a remote one."""
    return (
        REBUILD if folder.name == INDEX_FOLDER else f"remove {folder}, a local copy, and run this again; else {REBUILD}"
    )


class SummedFile:
    """An open file for Arrow's writer that knows the CRC-32 of each piece written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = 0
        self._crc = 0
        self.pieces: Pieces = []
        self.closed = False  # asked by Arrow; whoever opened the file closes it

    def write(self, data: bytes) -> int:
        """Append."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Bytes written."""
        return self._size

    def flush(self) -> None:
        """Nothing: the file is flushed when it is complete."""

    def close_piece(self) -> None:
        """What was written since the last call is one piece."""
        self.pieces.append((self._size, self._crc))
        self._crc = 0


def write_checksums(folder: Location, tables: Mapping[str, SummedFile]) -> None:
    """Write the checksums of finished tables."""
    write_bytes(folder / CHECKSUMS, encode_json({name: file.pieces for name, file in tables.items()}))


def read_checksums(folder: Path) -> dict[str, Pieces]:
    """Pieces of every table. Raises DataError if there is no sound file of them."""
    path = folder / CHECKSUMS
    try:
        fields = json.loads(path.read_bytes())
        return {name: [(int(end), int(crc)) for end, crc in pieces] for name, pieces in fields.items()}
    except FileNotFoundError:
        raise DataError(path, expected="checksums of the index", found="none", remedy=remedy_for(folder)) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(path, expected="checksums of the index", found=str(error), remedy=remedy_for(folder)) from None


class IndexFile:
    """One table of an index, mapped; each record batch is proven when it is first asked for. Safe in threads."""

    def __init__(self, folder: Path, table: str, schema: pa.Schema, pieces: Pieces) -> None:
        """Raises DataError if the file is not there, of another size or damaged in its footer."""
        self.path = folder / f"{table}.arrow"
        self._pieces = pieces
        self._proven: set[int] = set()
        self._lock = threading.Lock()
        if not self.path.is_file():
            raise DataError(self.path, expected="a table of the index", found="none", remedy=remedy_for(folder))
        size = self.path.stat().st_size
        if len(pieces) < 2 or size != pieces[-1][0]:
            raise self._damaged(f"a file of {size} bytes")
        self._data = pa.memory_map(str(self.path)).read_buffer()
        self._prove(len(pieces) - 1)
        try:
            self._reader = pa.ipc.open_file(pa.BufferReader(self._data))
        except pa.ArrowException as error:
            raise self._damaged(str(error)) from None
        if self._reader.schema != schema or self.num_batches != len(pieces) - 1:
            raise self._damaged(f"{self.num_batches} batches of the columns {self._reader.schema.names}")

    @property
    def num_batches(self) -> int:
        """One for each shard."""
        return int(self._reader.num_record_batches)

    def batch(self, shard: int) -> pa.RecordBatch:
        """Rows of a shard. Raises DataError if they are not those that were written."""
        with self._lock:
            self._prove(shard)
            try:
                batch = self._reader.get_batch(shard)
                batch.validate(full=False)
            except (pa.ArrowException, OverflowError) as error:
                raise self._damaged(str(error)) from None
            return batch

    def read_all(self) -> pa.Table:
        """All rows, their texts and lists proven to lie inside the file. Raises DataError as `batch`."""
        table = pa.Table.from_batches([self.batch(shard) for shard in range(self.num_batches)], self._reader.schema)
        try:
            table.validate(full=True)
        except (pa.ArrowException, OverflowError) as error:
            raise self._damaged(str(error)) from None
        return table

    def _prove(self, piece: int) -> None:
        if piece in self._proven:
            return
        start = self._pieces[piece - 1][0] if piece else 0
        end, wanted = self._pieces[piece]
        if not 0 <= start <= end <= len(self._data):
            raise self._damaged(f"a piece from byte {start} to {end}")
        if zlib.crc32(self._data.slice(start, end - start)) != wanted:
            raise self._damaged(f"other bytes between {start} and {end} (CRC-32 differs)")
        self._proven.add(piece)

    def _damaged(self, found: str) -> DataError:
        remedy = remedy_for(self.path.parent)
        return DataError(self.path, expected="the index as it was written", found=found, remedy=remedy)
