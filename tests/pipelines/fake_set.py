"""A shard set that exists only in memory: the part of shards.ShardSet that planning and loading use."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from shards.masks import FrameObjects
from shards.reader import DamagedFrameError, EncodedFrame, Extent

STRIDE = 1 << 16
"""Bytes between the frames of a fake shard: no two count as neighbours."""

Boxes = dict[int, tuple[int, int, int, int]]


@dataclass(frozen=True)
class FakeVideo:
    """A video to be. boxes: object id -> (y0, x0, y1, x1) of every annotated frame, or a list with one such per frame.

    annotated_every: 1 for all frames, 5 as in YouTube-VOS, 0 for none.
    """

    name: str = "video"
    num_frames: int = 60
    size: tuple[int, int] = (480, 854)
    boxes: Boxes | list[Boxes] = field(default_factory=lambda: {1: (100, 200, 300, 400), 2: (200, 500, 400, 700)})
    annotated_every: int = 1
    splits: tuple[str, ...] = ("train",)

    def boxes_at(self, position: int) -> Boxes:
        """Objects of one frame."""
        if not self.annotated_every or position % self.annotated_every:
            return {}
        return self.boxes[position] if isinstance(self.boxes, list) else self.boxes


class FakeSet:
    """Answers like a ShardSet for videos given as FakeVideo; `read` gives bytes that name the frame."""

    def __init__(
        self, videos: list[FakeVideo], *, name: str = "fake", fingerprint: str = "f" * 64, kind: str = "youtube_vos"
    ) -> None:
        self.manifest = SimpleNamespace(kind=kind)
        self.fakes, self.name, self.fingerprint = videos, name, fingerprint
        self.path, self.mask_codec, self.num_videos = Path("nowhere") / name, "lz4", len(videos)
        self.first = np.cumsum([0] + [video.num_frames for video in videos])
        self.num_frames = int(self.first[-1])
        self.videos = SimpleNamespace(
            names=[video.name for video in videos],
            original_names=[video.name for video in videos],
            num_frames=np.array([video.num_frames for video in videos], np.int32),
            height=np.array([video.size[0] for video in videos], np.int32),
            width=np.array([video.size[1] for video in videos], np.int32),
            first_frame=self.first[:-1],
            object_ids=self.object_ids,
        )
        self.reads: list[int] = []
        self.broken: set[int] = set()

    def object_ids(self, row: int) -> tuple[int, ...]:
        """All ids of a video."""
        video = self.fakes[row]
        return tuple(sorted({i for position in range(video.num_frames) for i in video.boxes_at(position)}))

    def select(self, split: str) -> np.ndarray:
        """Rows of a split."""
        return np.array([row for row, video in enumerate(self.fakes) if split in video.splits], np.int64)

    def frame_rows(self, video: int) -> range:
        """Rows of the frames of a video."""
        return range(int(self.first[video]), int(self.first[video + 1]))

    def annotated(self, video: int) -> np.ndarray:
        """Which frames have a mask."""
        every = self.fakes[video].annotated_every
        positions = np.arange(self.fakes[video].num_frames)
        return positions % every == 0 if every else np.zeros(len(positions), bool)

    def objects(self, frame: int) -> FrameObjects:
        """Objects of a frame, areas as if they filled their boxes."""
        video = int(np.searchsorted(self.first, frame, side="right")) - 1
        boxes = self.fakes[video].boxes_at(frame - int(self.first[video]))
        ids = sorted(boxes)
        sides = np.array([boxes[i] for i in ids], np.uint16).reshape(-1, 4)
        return FrameObjects(
            np.array(ids, np.uint8), np.prod(sides[:, 2:] - sides[:, :2], axis=1, dtype=np.uint32), sides
        )

    def read(self, frame: int) -> EncodedFrame:
        """Bytes that say which frame they are; DamagedFrameError for the rows in `broken`."""
        extent = self.extent(frame)
        return self.unpack(frame, self.read_ranges(0, [(extent.start, extent.num_bytes)])[0])

    def extent(self, frame: int) -> Extent:
        """All frames lie in one shard, STRIDE bytes apart, the mask right behind the image."""
        image = len(self.image(frame))
        return Extent(0, frame * STRIDE, image + len(f"mask {frame}"), image, image)

    def image(self, frame: int) -> bytes:
        """What stands for the JPEG."""
        return f"{self.name} image {frame}".encode()

    def read_ranges(self, _shard: int, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Bytes of the shard."""
        return [self._bytes(start, num_bytes) for start, num_bytes in ranges]

    def unpack(self, frame: int, data: bytes | memoryview) -> EncodedFrame:
        """The frame in these bytes."""
        if frame in self.broken:
            raise DamagedFrameError(self.locate(frame), expected="good bytes", found="bad ones", remedy="mend them")
        self.reads.append(frame)
        extent, found = self.extent(frame), bytes(data)
        assert len(found) == extent.num_bytes
        return EncodedFrame(found[: extent.image_bytes], found[extent.image_bytes :])

    def _bytes(self, start: int, num_bytes: int) -> bytes:
        first, last = start // STRIDE, (start + num_bytes) // STRIDE
        frames = range(first, min(last + 1, self.num_frames))
        whole = b"".join((self.image(f) + f"mask {f}".encode()).ljust(STRIDE, b"\0") for f in frames)
        return whole[start - first * STRIDE :][:num_bytes]

    def locate(self, frame: int) -> str:
        """Where a frame is."""
        return f"{self.name}-000000.tar, frame row {frame}"
