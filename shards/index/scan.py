"""Walk over the frames of one shard and derive its rows of the index from its bytes alone."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, BinaryIO, NamedTuple

import simplejpeg

from shards.errors import DataError
from shards.index.derive import SCHEMAS, Batches, make_batch
from shards.manifest import parse_places
from shards.masks import FrameObjects, MaskCodec, decode_object_map, find_objects
from shards.naming import VIDEO_FACTS, number_frames
from shards.object_facts import encode_object_facts
from shards.storage.paths import Location
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
    shape: tuple[int, int]
    names: list[str] = field(default_factory=list)
    object_ids: set[int] = field(default_factory=set)


class ShardRows:
    """Rows of one shard, collected frame by frame; first frames and first objects count from 0 within the shard."""

    def __init__(self) -> None:
        self._columns: dict[str, dict[str, list[Any]]] = {
            table: {name: [] for name in schema.names} for table, schema in SCHEMAS.items()
        }
        self._video: _Video | None = None
        self._num_objects = 0
        self.num_frames = 0
        self.num_videos = 0

    def add(self, sample: Sample, shape: tuple[int, int], objects: FrameObjects | None) -> None:
        """Append one frame whose video's images are (height, width) `shape`; objects None where it has no mask.

        Raises ValueError if a video begins without its facts.
        """
        video = self._video_of(sample, shape)
        video.names.append(video.facts.frame_name(sample.stem))
        mask = sample.mask or b""
        checksums = zlib.crc32(sample.image), zlib.crc32(mask)
        self._append("frames", (sample.image_offset, len(sample.image), len(mask), *checksums, self._num_objects))
        if objects is not None:
            video.object_ids.update(objects.ids.tolist())
            for object_id, area, box in zip(*(column.tolist() for column in objects), strict=True):
                self._append("objects", (object_id, area, *box))
                self._num_objects += 1
        self.num_frames += 1

    def batches(self) -> Batches:
        """The rows as one record batch a table, `shard` 0; the collection is finished by this."""
        self._close_video()
        return {table: make_batch(table, columns) for table, columns in self._columns.items()}

    def _video_of(self, sample: Sample, shape: tuple[int, int]) -> _Video:
        if sample.facts is not None:
            self._close_video()
            self._video = _Video(sample.video, sample.facts, self.num_frames, shape)
            self.num_videos += 1
        if self._video is None or self._video.name != sample.video:
            raise ValueError(f"no {VIDEO_FACTS} before the first frame of video {sample.video}")
        return self._video

    def _close_video(self) -> None:
        video, self._video = self._video, None
        if video is None:
            return
        facts = video.facts
        num_frames = self.num_frames - video.first_frame
        place = (video.name, facts.name, 0, video.first_frame, num_frames, *video.shape)
        numbering = number_frames(video.names)
        files = {facts.frame_name(stem): name for stem, name in facts.files.items()}
        odd = {stem: name for stem, name in files.items() if name != f"{stem}.jpg"}
        listed = encode_object_facts(facts.objects)
        texts = (json.dumps(value, sort_keys=True) if value else None for value in (odd, listed))
        described = (facts.splits, facts.palette, *numbering, *texts)
        self._append("videos", (*place, sorted(video.object_ids), *described))

    def _append(self, table: str, row: tuple[Any, ...]) -> None:
        for column, value in zip(self._columns[table].values(), row, strict=True):
            column.append(value)


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


def of_selected(frames: Iterable[Sample], selected: str | None) -> Iterator[Sample]:
    """Frames of the videos at the selected places in the shard (`ShardFacts.selected`), all for None."""
    places = None if selected is None else set(parse_places(selected))
    place = -1
    for frame in frames:
        place += frame.facts is not None
        if places is None or place in places:
            yield frame


def scan_shard(path: Location, codec: MaskCodec, selected: str | None) -> Batches:
    """Rows of the index for the selected videos of one tar. Raises DataError where it is not a shard of ours."""
    rows = ShardRows()
    shape = (0, 0)
    place = ""
    try:
        with path.open("rb") as file:
            for sample in of_selected(samples(file, codec), selected):
                place = f", at video {sample.video}, frame {sample.stem}"
                if sample.facts is not None:
                    shape = image_size(sample.image)
                rows.add(sample, shape, mask_objects(sample.mask, codec, shape))
    except ValueError as error:
        raise DataError(
            path, expected="a shard of frames", found=f"{error}{place}", remedy="build the set again"
        ) from error
    return rows.batches()


def mask_objects(mask: bytes | None, codec: MaskCodec, shape: tuple[int, int]) -> FrameObjects | None:
    """Objects of a mask member, None for no mask. Raises ValueError if it is damaged or not of this size."""
    if mask is None:
        return None
    labels = decode_object_map(mask, codec)
    if labels.shape != shape:
        raise ValueError(f"mask is {labels.shape}, the images of its video are {shape}")
    return find_objects(labels)


def image_size(jpeg: bytes) -> tuple[int, int]:
    """(height, width) from a JPEG's header. Raises ValueError if it has none."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    return height, width


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)
