"""Random access to a finished shard set: which videos, frames and objects there are, and the bytes of any frame."""

from __future__ import annotations

import os
import threading
import zlib
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from shards.errors import DataError
from shards.index import SCHEMAS, as_numpy, index_path, local_index
from shards.links import check_sizes, shard_locations
from shards.manifest import Manifest, read_manifest
from shards.masks import FrameObjects, MaskCodec
from shards.storage import Location, RemotePath, locate, read_range
from shards.tables import VideoTable
from shards.tar import BLOCK, padded

# Well under the usual limit of 1024 open files, with room for two sets in one process.
MAX_OPEN_SHARDS = 384
REBUILD = "run tools/check.py --rebuild-index on the set, or build it again"


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """Bytes of one frame as stored: a JPEG, and a label map in the set's codec or None where it has no annotation."""

    image: bytes
    mask: bytes | None


class ShardSet:
    """A finished shard set, opened for random reads from any number of threads.

    Rows of videos and of frames count from 0 over the whole set, frames of a video in time order one after the other.
    Opening reads the manifest and the video table; everything else stays in the mapped files until it is asked for.
    Pickles as its path and opens again on the other side.
    """

    def __init__(self, path: Location, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.name = manifest.name
        self.fingerprint = manifest.fingerprint
        self.mask_codec: MaskCodec = manifest.mask_codec
        self.num_videos = manifest.num_videos
        self.num_frames = manifest.num_frames
        index = local_index(path, self.fingerprint)
        self.videos = VideoTable(_open_table(index, "videos").read_all())
        self._frames = _open_table(index, "frames")
        self._objects = _open_table(index, "objects")
        self._shards = shard_locations(path, manifest)
        self._starts = [0, *np.cumsum([facts.frames for facts in manifest.shards]).tolist()]
        self._batches: dict[tuple[str, int], pa.RecordBatch] = {}
        self._views: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        self._files: OrderedDict[int, _LocalFile | _RemoteFile] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Location) -> ShardSet:
        """Open the folder of a finished set, or its URL. Raises DataError if anything is missing or sizes disagree.

        Of a remote set the index is copied to `storage.cache_folder()`; frames are read as ranges of the shards.
        """
        root = locate(path)
        manifest = read_manifest(root)
        check_sizes(root, manifest)
        shard_set = cls(root, manifest)
        shard_set._check_rows()
        return shard_set

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return ShardSet.open, (self.path,)

    def close(self) -> None:
        """Close the cached descriptors; a later read opens them again."""
        with self._lock:
            self._files.clear()

    def select(self, split: str) -> np.ndarray:
        """Rows (n,) int64 of the videos of a split, ascending. Raises ValueError that lists the splits there are."""
        if split not in self.manifest.splits:
            there = ", ".join(sorted(self.manifest.splits)) or "none"
            raise ValueError(f"{self.path}: no split {split!r}; there are: {there}")
        return self.videos.rows_of_split(split)

    def video_row(self, name: str) -> int:
        """Row of the video of this name, as in the source or as in the tar. Raises ValueError if there is none."""
        row = self.videos.row_of_name(name)
        if row is None:
            raise ValueError(f"{self.path}: no video {name!r} among {self.num_videos}")
        return row

    def frame_rows(self, video: int) -> range:
        """Rows of the frames of a video, in time order."""
        first = int(self.videos.first_frame[video])
        return range(first, first + int(self.videos.num_frames[video]))

    def frame_name(self, frame: int) -> str:
        """Stem of the frame's file in the source, `00012`."""
        video = self.videos.row_of_frame(self._require(frame))
        return self.videos.frame_name(video, frame - int(self.videos.first_frame[video]))

    def file_name(self, frame: int) -> str:
        """Name of the frame's image file in the source, `00012.jpg`."""
        return self.videos.file_name(self.videos.row_of_frame(frame), self.frame_name(frame))

    def annotated(self, video: int) -> np.ndarray:
        """Which frames of a video have a mask: bool (num_frames,)."""
        rows = self.frame_rows(video)
        shard, first = self._place(rows.start)
        return self._columns("frames", shard)["mask_bytes"][first : first + len(rows)] > 0

    def objects(self, frame: int) -> FrameObjects:
        """Ids, areas and boxes of the objects in a frame's mask; empty where it has none."""
        shard, row = self._place(frame)
        table, starts = self._columns("objects", shard), self._columns("frames", shard)["first_object"]
        last = starts[row + 1] if row + 1 < len(starts) else len(table["area"])
        found = slice(int(starts[row]), int(last))
        boxes = np.stack([table[side][found] for side in ("y0", "x0", "y1", "x1")], axis=1)  # (n, 4)
        return FrameObjects(table["object_id"][found], table["area"][found], boxes)

    def starts(self, video: int) -> dict[int, tuple[int, ...]]:
        """Frame rows at which masks are given, ascending -> ids of the objects that begin there.

        By the data set's own list where it has one, as YouTube-VOS does: there, other ids in such a mask are to be
        ignored (`masks.keep_ids`). Otherwise an object begins in the first mask that shows it.
        """
        rows = self.frame_rows(video)
        begun: dict[int, int] = {}
        listed = self.videos.object_facts(video)
        if listed:
            by_name = {self.frame_name(row): row for row in rows}
            begun = {object_id: by_name[facts.frames[0]] for object_id, facts in listed.items()}
        else:
            for row in rows:
                for object_id in self.objects(row).ids.tolist():
                    begun.setdefault(object_id, row)
        return {row: tuple(sorted(key for key in begun if begun[key] == row)) for row in sorted(set(begun.values()))}

    def read(self, frame: int) -> EncodedFrame:
        """Bytes of a frame by one `pread` or one ranged request, both parts checked against their CRC-32.

        Raises DataError, naming shard, video and frame, if the bytes are not those the index was made from.
        """
        shard, row = self._place(frame)
        table = self._columns("frames", shard)
        image_bytes, mask_bytes = int(table["image_bytes"][row]), int(table["mask_bytes"][row])
        mask_start = padded(image_bytes) + BLOCK
        wanted = mask_start + mask_bytes if mask_bytes else image_bytes
        file = self._file(shard)  # held while reading: the cache may drop it meanwhile
        data = file.read(int(table["offset"][row]), wanted)
        image, mask = data[:image_bytes], data[mask_start:wanted] if mask_bytes else None
        if zlib.crc32(image) != table["image_crc"][row] or (
            mask is not None and zlib.crc32(mask) != table["mask_crc"][row]
        ):
            raise self._damaged(frame, len(data), wanted)
        return EncodedFrame(image, mask)

    def locate(self, frame: int) -> str:
        """Where a frame is, for messages: `davis2017-000000.tar, video bear, frame 00012`."""
        shard, _ = self._place(frame)
        video = self.videos.original_names[self.videos.row_of_frame(frame)]
        return f"{self._shards[shard].name}, video {video}, frame {self.frame_name(frame)}"

    def _damaged(self, frame: int, found: int, wanted: int) -> DataError:
        reason = f"{found} bytes" if found != wanted else "other bytes (CRC-32 differs)"
        return DataError(
            f"{self._shards[self._place(frame)[0]].parent}: {self.locate(frame)}",
            expected=f"the {wanted} bytes the index was made from",
            found=reason,
            remedy=f"run tools/check.py {self.path}",
        )

    def _require(self, frame: int) -> int:
        if not 0 <= frame < self.num_frames:
            raise IndexError(f"{self.path}: frame row {frame} of {self.num_frames}")
        return int(frame)

    def _place(self, frame: int) -> tuple[int, int]:
        self._require(frame)
        shard = bisect_right(self._starts, frame) - 1
        return shard, frame - self._starts[shard]

    def _columns(self, table: str, shard: int) -> dict[str, np.ndarray]:
        columns = self._views.get((table, shard))
        if columns is None:
            batch = self._batch(table, shard)
            columns = {name: as_numpy(batch, name) for name in batch.schema.names}
            self._views[table, shard] = columns
        return columns

    def _batch(self, table: str, shard: int) -> pa.RecordBatch:
        batch = self._batches.get((table, shard))
        if batch is None:
            with self._lock:
                batch = (self._frames if table == "frames" else self._objects).get_batch(shard)
            self._batches[table, shard] = batch
        return batch

    def _file(self, shard: int) -> _LocalFile | _RemoteFile:
        with self._lock:
            file = self._files.pop(shard, None) or _open_shard(self._shards[shard])
            self._files[shard] = file  # most recently used last
            if len(self._files) > MAX_OPEN_SHARDS:
                self._files.popitem(last=False)
            return file

    def _check_rows(self) -> None:
        facts = self.manifest
        batches = (self._frames.num_record_batches, self._objects.num_record_batches)
        found = (len(self.videos), int(self.videos.num_frames.sum()), *batches)
        wanted = (facts.num_videos, facts.num_frames, len(facts.shards), len(facts.shards))
        if found != wanted:
            raise DataError(
                index_path(self.path, "videos").parent,
                expected=f"videos, frames, shards, shards = {wanted} as in the manifest",
                found=f"{found}",
                remedy=REBUILD,
            )


class _LocalFile:
    """A descriptor that closes with its last reference: dropping it from the cache never cuts off a running read."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, start: int, num_bytes: int) -> bytes:
        """Bytes from `start` on, fewer at the end of the file."""
        return os.pread(self._descriptor, num_bytes, start)


class _RemoteFile:
    """A shard in a store or on a web server."""

    def __init__(self, path: RemotePath) -> None:
        self._path = path

    def read(self, start: int, num_bytes: int) -> bytes:
        """Bytes from `start` on, fewer at the end of the file."""
        return read_range(self._path, start, num_bytes)


def _open_shard(path: Location) -> _LocalFile | _RemoteFile:
    return _RemoteFile(path) if isinstance(path, RemotePath) else _LocalFile(path)


def _open_table(index: Path, table: str) -> pa.ipc.RecordBatchFileReader:
    path = index / f"{table}.arrow"
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except FileNotFoundError:
        raise DataError(path, expected="a table of the index", found="none", remedy=REBUILD) from None
    except pa.ArrowInvalid as error:
        raise DataError(path, expected="an Arrow IPC file", found=str(error), remedy=REBUILD) from None
    if reader.schema != SCHEMAS[table]:
        raise DataError(
            path, expected=f"columns {SCHEMAS[table].names}", found=f"{reader.schema.names}", remedy=REBUILD
        )
    return reader
