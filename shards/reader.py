"""Random access to a finished shard set: which videos, frames and objects there are, and the bytes of any frame."""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from shards.errors import DataError
from shards.index.derive import INDEX_FOLDER, IndexTables, as_numpy
from shards.index.files import REBUILD
from shards.index.tables import VideoTable
from shards.links import check_sizes, shard_locations
from shards.manifest import Manifest, read_manifest
from shards.masks import FrameObjects, MaskCodec
from shards.shard_files import Range, ShardFile, ShardOpener, open_shard
from shards.storage.paths import Location, RemotePath, locate
from shards.storage.requests import count_retry
from shards.tar import BLOCK, padded

# Well under the usual limit of 1024 open files, with room for two sets in one process.
MAX_OPEN_SHARDS = 384


class DamagedFrameError(DataError):
    """Bytes of one frame that are not those the index was made from."""


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """Bytes of one frame as stored: a JPEG, and a label map in the set's codec or None where it has no annotation."""

    image: bytes
    mask: bytes | None


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a frame lies: its shard, first byte there, and all bytes from the image's first to the mask's last.

    mask_start: from which of these bytes on the mask is; None for a frame without one.
    """

    shard: int
    start: int
    num_bytes: int
    image_bytes: int
    mask_start: int | None

    @property
    def used_bytes(self) -> int:
        """Of image and mask, without what the tar has between them."""
        return self.image_bytes + (0 if self.mask_start is None else self.num_bytes - self.mask_start)


class ShardSet:
    """A finished shard set, opened for random reads from any number of threads.

    Rows of videos and of frames count from 0 over the whole set, frames of a video in time order one after the other.
    Opening reads the manifest and the video table; everything else stays in the mapped files until it is asked for.
    Pickles as its path and opens again on the other side.
    """

    def __init__(self, path: Location, manifest: Manifest, opener: ShardOpener = open_shard) -> None:
        self.path = path
        self.manifest = manifest
        self.name = manifest.name
        self.fingerprint = manifest.fingerprint
        self.mask_codec: MaskCodec = manifest.mask_codec
        self.num_videos = manifest.num_videos
        self.num_frames = manifest.num_frames
        self._index = IndexTables(path, self.fingerprint)
        self.videos = VideoTable(self._index.all_videos())
        self._shards = shard_locations(path, manifest)
        self._starts = [0, *np.cumsum([facts.frames for facts in manifest.shards]).tolist()]
        self._batches: dict[tuple[str, int], pa.RecordBatch] = {}
        self._views: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        self._opener = opener
        self._files: OrderedDict[int, ShardFile] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Location, opener: ShardOpener = open_shard) -> ShardSet:
        """Open the folder of a finished set, or its URL. Raises DataError if anything is missing or sizes disagree.

        Of a remote set the index is copied to `storage.cache_folder()`; frames are read as ranges of the shards.
        opener: makes the files that are read, for local copies of remote bytes (`ByteCache`); pickled with the set.
        """
        root = locate(path)
        if isinstance(root, Path):
            root = root.absolute()  # shards are opened when they are needed, wherever the process is by then
        manifest = read_manifest(root)
        check_sizes(root, manifest)
        shard_set = cls(root, manifest, opener)
        shard_set._check_rows()
        return shard_set

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return ShardSet.open, (self.path, self._opener)

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

        Raises DamagedFrameError, naming shard, video and frame, if the bytes are not those the index was made from.
        """
        extent = self.extent(frame)
        (data,) = self.read_ranges(extent.shard, [(extent.start, extent.num_bytes)])
        return self.unpack(frame, data)

    def extent(self, frame: int) -> Extent:
        """Where the bytes of a frame lie. Raises DamagedFrameError if that is beyond the end of its shard."""
        shard, row = self._place(frame)
        table = self._columns("frames", shard)
        image_bytes, mask_bytes = int(table["image_bytes"][row]), int(table["mask_bytes"][row])
        mask_start = padded(image_bytes) + BLOCK if mask_bytes else None
        wanted = image_bytes if mask_start is None else mask_start + mask_bytes
        offset = int(table["offset"][row])
        if offset + wanted > self.manifest.shards[shard].bytes:
            raise self._damaged(frame, max(0, self.manifest.shards[shard].bytes - offset), wanted)
        return Extent(shard, offset, wanted, image_bytes, mask_start)

    def read_ranges(self, shard: int, ranges: Sequence[Range], *, fresh: bool = False) -> list[bytes]:
        """Bytes of ranges of a shard as they are, for `unpack`. fresh: by no local copy."""
        return self._file(shard).read(ranges, fresh=fresh)

    def shard_path(self, shard: int) -> Location:
        """Where a shard lies."""
        return self._shards[shard]

    def unpack(self, frame: int, data: bytes | memoryview) -> EncodedFrame:
        """The frame out of the bytes of its extent, checked. Raises DamagedFrameError as `read`.

        Bytes that came over a network or from a local copy and fail are read once more from where the shard lies.
        """
        extent = self.extent(frame)
        found = self._checked(frame, extent, data)
        if found is None and isinstance(self._shards[extent.shard], RemotePath):
            count_retry()
            data = self._file(extent.shard).read([(extent.start, extent.num_bytes)], fresh=True)[0]
            found = self._checked(frame, extent, data)
        if found is None:
            raise self._damaged(frame, len(data), extent.num_bytes)
        return found

    def _checked(self, frame: int, extent: Extent, data: bytes | memoryview) -> EncodedFrame | None:
        """The frame if its bytes are those the index was made from."""
        shard, row = self._place(frame)
        table = self._columns("frames", shard)
        image = bytes(data[: extent.image_bytes])
        mask = None if extent.mask_start is None else bytes(data[extent.mask_start : extent.num_bytes])
        right = zlib.crc32(image) == table["image_crc"][row]
        if mask is not None:
            right = right and zlib.crc32(mask) == table["mask_crc"][row]
        return EncodedFrame(image, mask) if right else None

    def locate(self, frame: int) -> str:
        """Where a frame is, for messages: `davis2017-000000.tar, video bear, frame 00012`."""
        shard, _ = self._place(frame)
        video = self.videos.original_names[self.videos.row_of_frame(frame)]
        return f"{self._shards[shard].name}, video {video}, frame {self.frame_name(frame)}"

    def _damaged(self, frame: int, found: int, wanted: int) -> DamagedFrameError:
        reason = f"{found} bytes" if found != wanted else "other bytes (CRC-32 differs)"
        replaced = "; if the set was replaced meanwhile, start anew" if isinstance(self.path, RemotePath) else ""
        return DamagedFrameError(
            f"{self._shards[self._place(frame)[0]].parent}: {self.locate(frame)}",
            expected=f"the {wanted} bytes the index was made from",
            found=reason,
            remedy=f"run tools/check.py {self.path}{replaced}",
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
            batch = self._index.batch(table, shard)
            if table == "frames" and batch.num_rows != self.manifest.shards[shard].frames:
                raise self._other_index(f"{batch.num_rows} frames in shard {shard}")
            self._batches[table, shard] = batch
        return batch

    def _file(self, shard: int) -> ShardFile:
        with self._lock:
            file = self._files.pop(shard, None) or self._opener(self._shards[shard], self.manifest.shards[shard])
            self._files[shard] = file  # most recently used last
            if len(self._files) > MAX_OPEN_SHARDS:
                self._files.popitem(last=False)
            return file

    def _check_rows(self) -> None:
        """The video table must tell of the shards that the manifest lists, video after video, frame after frame."""
        videos, shards = self.videos, self.manifest.shards
        found = (len(videos), int(videos.num_frames.sum()), self._index.num_shards)
        if found != (self.manifest.num_videos, self.manifest.num_frames, len(shards)):
            raise self._other_index(f"(videos, frames, shards) = {found}")
        ends = np.cumsum(videos.num_frames, dtype=np.int64)
        in_order = np.array_equal(videos.shard, np.repeat(np.arange(len(shards)), [facts.videos for facts in shards]))
        gapless = np.array_equal(videos.first_frame, ends - videos.num_frames) and int(videos.num_frames.min()) > 0
        last = np.cumsum([facts.videos for facts in shards]) - 1
        if not (in_order and gapless and np.array_equal(ends[last], self._starts[1:])):
            raise self._other_index("videos of other shards or other lengths")

    def _other_index(self, found: str) -> DataError:
        wanted = (self.manifest.num_videos, self.manifest.num_frames, len(self.manifest.shards))
        return DataError(
            self.path / INDEX_FOLDER,
            expected=f"(videos, frames, shards) = {wanted} as in the manifest",
            found=found,
            remedy=REBUILD,
        )
