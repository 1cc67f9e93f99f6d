"""One shard: a tar written in one pass, its hash and its rows of the index taken on the way, renamed when complete."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from shards.building.convert import ReadyVideo
from shards.index.derive import Batches
from shards.index.scan import Sample, ShardRows
from shards.manifest import ShardFacts
from shards.masks import MaskCodec
from shards.naming import VIDEO_FACTS, escape_video
from shards.storage.paths import Location, replacing
from shards.tar import BLOCK, END_OF_ARCHIVE, encode_member
from shards.video import VideoFacts


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard on disk: its facts and its rows of the index."""

    facts: ShardFacts
    rows: Batches


def write_shard(path: Location, codec: MaskCodec, videos: Iterable[ReadyVideo]) -> WrittenShard:
    """Write a tar of whole videos in the given order; under its final name only when complete and on disk."""
    rows = ShardRows()
    with replacing(path) as file:
        tar = _TarFile(file)
        for video in videos:
            _write_video(tar, rows, codec, video)
        tar.write(END_OF_ARCHIVE)
    facts = ShardFacts(path.name, tar.size, tar.sha256.hexdigest(), rows.num_videos, rows.num_frames)
    return WrittenShard(facts, rows.batches())


class _TarFile:
    """An open tar that knows its size and hash so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.sha256.update(data)
        self.size += len(data)


def _write_video(tar: _TarFile, rows: ShardRows, codec: MaskCodec, video: ReadyVideo) -> None:
    folder = escape_video(video.facts.name)
    facts: VideoFacts | None = video.facts  # before the first frame only
    for frame in video.frames:
        key = f"{folder}/{frame.stem}"
        if facts is not None:
            tar.write(encode_member(f"{key}.{VIDEO_FACTS}", facts.encode()))
        sample = Sample(folder, frame.stem, facts, tar.size + BLOCK, frame.image, frame.mask)
        tar.write(encode_member(f"{key}.jpg", frame.image))
        if frame.mask is not None:
            tar.write(encode_member(f"{key}.{codec}", frame.mask))
        rows.add(sample, video.shape, frame.objects)
        facts = None
