"""Walk over the frames of one shard and derive its rows of the index from its bytes alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import simplejpeg

from shards.errors import DataError
from shards.index import SCHEMAS, Batches, make_batch
from shards.masks import MaskCodec, decode_label_map, find_objects
from shards.naming import VIDEO_FACTS, frame_number, smallest_step
from shards.tar import BLOCK, Member, members, padded
from shards.video import VideoFacts, decode_video_facts


class Sample(NamedTuple):
    """Members of one frame with their bytes: facts only at a video's first frame, mask None where not annotated."""

    video: str
    stem: str
    facts: VideoFacts | None
    image_offset: int
    image: bytes
    mask: bytes | None


@dataclass(slots=True)
class _Video:
    """A video while its frames pass by."""

    name: str
    facts: VideoFacts
    first_frame: int
    size: tuple[int, int]
    numbers: list[int] = field(default_factory=list)
    object_ids: set[int] = field(default_factory=set)


class ShardRows:
    """Rows of one shard, collected frame by frame; first frames and object rows count from 0 within the shard."""

    def __init__(self, codec: MaskCodec) -> None:
        self._codec: MaskCodec = codec
        self._columns: dict[str, dict[str, list[Any]]] = {
            table: {name: [] for name in schema.names} for table, schema in SCHEMAS.items()
        }
        self._video: _Video | None = None
        self.num_frames = 0
        self.num_videos = 0

    def add(self, sample: Sample) -> None:
        """Append one frame. Raises ValueError if it does not fit its video or its mask cannot be decoded."""
        video = self._open_video(sample)
        mask = sample.mask
        self._append(
            "frames",
            offset=sample.image_offset,
            image_bytes=len(sample.image),
            mask_bytes=0 if mask is None else len(mask),
            image_crc=zlib.crc32(sample.image),
            mask_crc=0 if mask is None else zlib.crc32(mask),
            name=video.facts.frame_name(sample.stem),
        )
        video.numbers.append(frame_number(video.facts.frame_name(sample.stem)) or 0)
        if mask is not None:
            self._add_objects(video, mask)
        self.num_frames += 1

    def batches(self) -> Batches:
        """The rows as one record batch a table, `shard` 0; the collection is finished by this."""
        self._close_video()
        return {table: make_batch(table, columns) for table, columns in self._columns.items()}

    def _open_video(self, sample: Sample) -> _Video:
        if sample.facts is not None:
            self._close_video()
            size = image_size(sample.image)
            self._video = _Video(sample.video, sample.facts, self.num_frames, size)
            self.num_videos += 1
        if self._video is None or self._video.name != sample.video:
            raise ValueError(f"first frame of video {sample.video} has no {VIDEO_FACTS} before it")
        return self._video

    def _add_objects(self, video: _Video, mask: bytes) -> None:
        labels = decode_label_map(mask, self._codec)
        if labels.shape != video.size:
            raise ValueError(f"mask is {labels.shape}, the images of its video are {video.size}")
        found = find_objects(labels)
        video.object_ids.update(found.ids.tolist())
        columns = self._columns["objects"]
        columns["frame"].extend([self.num_frames] * len(found.ids))
        columns["object_id"].extend(found.ids.tolist())
        columns["area"].extend(found.areas.tolist())
        for position, side in enumerate(("y0", "x0", "y1", "x1")):
            columns[side].extend(found.boxes[:, position].tolist())

    def _close_video(self) -> None:
        video, self._video = self._video, None
        if video is None:
            return
        self._append(
            "videos",
            name=video.name,
            original_name=video.facts.name,
            shard=0,
            first_frame=video.first_frame,
            num_frames=self.num_frames - video.first_frame,
            height=video.size[0],
            width=video.size[1],
            object_ids=sorted(video.object_ids),
            splits=list(video.facts.splits),
            palette=video.facts.palette,
            frame_step=smallest_step(video.numbers),
        )

    def _append(self, table: str, **row: Any) -> None:
        for name, value in row.items():
            self._columns[table][name].append(value)


def samples(file: BinaryIO, codec: MaskCodec) -> Iterator[Sample]:
    """Frames of an open shard in file order; members and keys with extensions we do not know are passed over.

    Raises ValueError, with the member's name, where the layout is not ours.
    """
    for key, group in groupby(members(file), key=lambda member: member.name.partition(".")[0]):
        parts = {member.name.partition(".")[2]: member for member in group}
        image, mask, facts = parts.get("jpg"), parts.get(codec), parts.get(VIDEO_FACTS)
        if image is None:
            continue
        if mask is not None and mask.offset != image.offset + padded(image.size) + BLOCK:
            raise ValueError(f"{mask.name} does not follow its image")
        video, _, stem = key.rpartition("/")
        yield Sample(
            video,
            stem,
            None if facts is None else decode_video_facts(_read(file, facts)),
            image.offset,
            _read(file, image),
            None if mask is None else _read(file, mask),
        )


def scan_shard(path: Path, codec: MaskCodec) -> tuple[ShardRows, Batches]:
    """Rows of the index for one tar, in file order. Raises DataError where it is not a shard of ours."""
    rows = ShardRows(codec)
    place = ""
    try:
        with path.open("rb") as file:
            for sample in samples(file, codec):
                place = f" after video {sample.video}, frame {sample.stem}"
                rows.add(sample)
    except ValueError as error:
        raise DataError(
            path, expected="a shard of frames", found=f"{error}{place}", remedy="build the set again"
        ) from error
    return rows, rows.batches()


def image_size(jpeg: bytes) -> tuple[int, int]:
    """(height, width) from a JPEG's header. Raises ValueError if it has none."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    return height, width


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)
