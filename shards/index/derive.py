"""The index: Arrow tables of videos, frames and objects, derived by scanning the tars and from nothing else.

One record batch per shard in each file, in the order of the manifest: the batch of a frame row is its shard, and
writing never holds more than one shard's rows in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards.index.copies import copied_index
from shards.index.files import CHECKSUMS, INDEX_FOLDER, IndexFile, SummedFile, read_checksums, write_checksums
from shards.storage.paths import Location, replacing

SCHEMAS = {
    "videos": pa.schema(
        [
            ("name", pa.string()),
            ("original_name", pa.string()),
            ("shard", pa.int32()),  # position in the manifest's list
            ("first_frame", pa.int64()),  # row of the frames table
            ("num_frames", pa.int32()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("object_ids", pa.list_(pa.uint8())),  # ascending, without 0 and 255
            ("splits", pa.list_(pa.string())),
            ("palette", pa.binary()),  # RGB, null where the source's masks had none
            ("frame_step", pa.int32()),  # smallest difference of consecutive frame numbers
            ("first_number", pa.int64()),  # number of the first frame
            # Stems of the source's files; null where they are %05d of first_number, first_number + frame_step, ...
            ("frame_names", pa.list_(pa.string())),
            ("files", pa.string()),  # JSON: frame name -> image file name in the source, where not <name>.jpg; or null
            ("objects", pa.string()),  # JSON: id -> category and frames as the data set lists them; or null
        ]
    ),
    "frames": pa.schema(
        [
            ("offset", pa.uint64()),  # of the image's data in the tar; the mask's lie padded(image_bytes) + 512 further
            ("image_bytes", pa.uint32()),
            ("mask_bytes", pa.uint32()),  # 0: this frame has no annotation
            ("image_crc", pa.uint32()),
            ("mask_crc", pa.uint32()),
            ("first_object", pa.uint32()),  # row in the objects batch of the same shard where the frame's begin
        ]
    ),
    "objects": pa.schema(  # sorted by frame, then id
        [
            ("object_id", pa.uint8()),
            ("area", pa.uint32()),
            *((side, pa.uint16()) for side in ("y0", "x0", "y1", "x1")),  # ends exclusive
        ]
    ),
}

INDEX_FILES = (*(f"{table}.arrow" for table in SCHEMAS), CHECKSUMS)

# One record batch for each table of SCHEMAS.
Batches = dict[str, pa.RecordBatch]


def make_batch(table: str, columns: dict[str, list[Any]]) -> pa.RecordBatch:
    """Record batch of a table from columns of Python values."""
    schema = SCHEMAS[table]
    return pa.record_batch([pa.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema)


def write_index(folder: Location, shards: Iterable[Batches]) -> None:
    """Write the tables and their checksums into `folder` from the rows of each shard, in order.

    first_frame, which counts within its shard, and `shard` itself become those of the whole set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    with ExitStack() as stack:
        writers = {}
        for table, schema in SCHEMAS.items():
            files[table] = SummedFile(stack.enter_context(replacing(folder / f"{table}.arrow")))
            writers[table] = pa.ipc.new_file(files[table], schema)  # closed below: closing twice writes two footers
        num_frames = 0
        for shard, batches in enumerate(shards):
            videos = _shifted(_shifted(batches["videos"], "first_frame", num_frames), "shard", shard)
            for table, batch in (batches | {"videos": videos}).items():
                writers[table].write_batch(batch)
                files[table].close_piece()
            num_frames += batches["frames"].num_rows
        for table, writer in writers.items():
            writer.close()
            files[table].close_piece()
    write_checksums(folder, files)


class IndexTables:
    """The tables of a finished set, one record batch a shard, mapped into memory."""

    def __init__(self, root: Location, fingerprint: str) -> None:
        folder = root / INDEX_FOLDER if isinstance(root, Path) else copied_index(root, fingerprint, INDEX_FILES)
        pieces = read_checksums(folder)
        self._files = {table: IndexFile(folder, table, SCHEMAS[table], pieces.get(table, [])) for table in SCHEMAS}

    def all_videos(self) -> pa.Table:
        """The whole video table. Raises DataError if it is not as it was written."""
        return self._files["videos"].read_all()

    def batch(self, table: str, shard: int) -> pa.RecordBatch:
        """Rows of a table that belong to a shard. Raises DataError if they are not those that were written."""
        return self._files[table].batch(shard)

    @property
    def num_shards(self) -> int:
        """Record batches of every table."""
        return self._files["videos"].num_batches


def take_videos(tables: IndexTables, shard: int, rows: np.ndarray) -> Batches:
    """Rows of some videos of a shard, given by their rows (n,) in its batch, as a shard of their own: from 0."""
    videos, frames, objects = (tables.batch(table, shard) for table in ("videos", "frames", "objects"))
    first, counts = as_numpy(videos, "first_frame"), as_numpy(videos, "num_frames")
    kept_frames = _ranges(first[rows] - (first[0] if len(first) else 0), counts[rows])
    starts = as_numpy(frames, "first_object").astype(np.int64)
    num_objects = np.diff(starts, append=objects.num_rows)[kept_frames]
    kept_objects = _ranges(starts[kept_frames], num_objects)
    videos = _replaced(videos.take(pa.array(rows)), "first_frame", np.cumsum(counts[rows]) - counts[rows])
    return {
        "videos": _replaced(videos, "shard", np.zeros(len(rows))),
        "frames": _replaced(frames.take(pa.array(kept_frames)), "first_object", np.cumsum(num_objects) - num_objects),
        "objects": objects.take(pa.array(kept_objects)),
    }


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, ... (count of them) for each pair, one after the other: (sum of counts,) int64."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())


def _replaced(batch: pa.RecordBatch, column: str, values: np.ndarray) -> pa.RecordBatch:
    position = batch.schema.get_field_index(column)
    field = batch.schema.field(position)
    return batch.set_column(position, field, pa.array(values.astype(field.type.to_pandas_dtype()), field.type))


def _shifted(batch: pa.RecordBatch, column: str, offset: int) -> pa.RecordBatch:
    position = batch.schema.get_field_index(column)
    values = batch.column(position).to_numpy(zero_copy_only=False)
    shifted = (values + offset).astype(values.dtype) if offset else values
    return batch.set_column(
        position, batch.schema.field(position), pa.array(shifted, batch.schema.field(position).type)
    )


def as_numpy(batch: pa.RecordBatch, column: str) -> np.ndarray:
    """A column of numbers without nulls as a view into the mapped file."""
    return array_view(batch.column(column))


def array_view(values: pa.Array) -> np.ndarray:
    """Numbers without nulls in the memory where they are.

    Not by to_numpy, whose first call looks for pandas in a way that loses a Ctrl-C that comes meanwhile.
    """
    return np.from_dlpack(values)
