"""The video table in memory: columns by name, and the look-ups that need a whole column."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import overload

import numpy as np
import pyarrow as pa

from shards.index.derive import array_view
from shards.object_facts import ObjectFacts, decode_object_facts


class StringColumn(Sequence[str]):
    """A column of strings that makes a Python string only of the row asked for."""

    def __init__(self, column: pa.Array) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return self._column[row].to_pylist()
        return self._column[int(row)].as_py()


class VideoTable:
    """Facts of every video, one row each, rows in the order of the shards.

    names: in the tar (escaped); original_names: in the source. first_frame int64: row of the frames table; num_frames,
    height, width, shard, frame_step int32 (num_videos,): frame_step is the smallest difference of consecutive frame
    numbers, 1 where there is none. first_number int64: of the first frame.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        self.names = StringColumn(self._column("name"))
        self.original_names = StringColumn(self._column("original_name"))
        self.first_frame = self._numbers("first_frame")
        self.num_frames = self._numbers("num_frames")
        self.height = self._numbers("height")
        self.width = self._numbers("width")
        self.shard = self._numbers("shard")
        self.frame_step = self._numbers("frame_step")
        self.first_number = self._numbers("first_number")

    def __len__(self) -> int:
        return self._table.num_rows

    def object_ids(self, row: int) -> tuple[int, ...]:
        """Ids of the objects in any mask of the video, ascending, without background and void."""
        return tuple(self._table.column("object_ids")[int(row)].as_py())

    def splits(self, row: int) -> tuple[str, ...]:
        """Names of the splits the video is in, ascending."""
        return tuple(self._table.column("splits")[int(row)].as_py())

    def palette(self, row: int) -> bytes | None:
        """768 bytes RGB, None where the source's masks had no palette; a shorter one is filled up with black."""
        palette = self._table.column("palette")[int(row)].as_py()
        return None if palette is None else palette.ljust(768, b"\0")

    def stored_palette(self, row: int) -> bytes | None:
        """The palette exactly as the source's indexed PNGs had it: 3 to 768 bytes RGB."""
        return self._table.column("palette")[int(row)].as_py()

    def frame_name(self, row: int, place: int) -> str:
        """Stem in the source of a frame of the video, place 0 being its first."""
        names = self._table.column("frame_names")[int(row)]
        if names.is_valid:
            return names.values[place].as_py()
        return f"{self.first_number[row] + place * int(self.frame_step[row]):05d}"

    def file_name(self, row: int, frame: str) -> str:
        """Name in the source of the image file of this frame (its stem) of the video."""
        files = self._table.column("files")[int(row)].as_py()
        return f"{frame}.jpg" if files is None else json.loads(files).get(frame, f"{frame}.jpg")

    def object_facts(self, row: int) -> dict[int, ObjectFacts]:
        """What the data set lists about the video's objects, by ascending id; {} where it lists nothing."""
        listed = self._table.column("objects")[int(row)].as_py()
        return {} if listed is None else decode_object_facts(json.loads(listed))

    def rows_of_split(self, split: str) -> np.ndarray:
        """Rows (n,) int64 of the videos of a split, ascending."""
        return self._split_rows.get(split, np.empty(0, np.int64)).copy()

    def row_of_name(self, name: str) -> int | None:
        """Row of a video by its name in the source, else by its name in the tar."""
        return self._rows_by_name.get(name)

    def row_of_frame(self, frame: int) -> int:
        """Row of the video a frame row belongs to."""
        return int(np.searchsorted(self.first_frame, frame, side="right")) - 1

    @cached_property
    def _rows_by_name(self) -> dict[str, int]:
        rows = {name: row for row, name in enumerate(self._column("name").to_pylist())}
        return rows | {name: row for row, name in enumerate(self._column("original_name").to_pylist())}

    @cached_property
    def _split_rows(self) -> dict[str, np.ndarray]:
        splits = self._column("splits").to_pylist()
        names = sorted({name for row in splits for name in row})
        return {name: np.array([row for row, there in enumerate(splits) if name in there], np.int64) for name in names}

    def _column(self, name: str) -> pa.Array:
        column = self._table.column(name)
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    def _numbers(self, name: str) -> np.ndarray:
        return array_view(self._column(name))
