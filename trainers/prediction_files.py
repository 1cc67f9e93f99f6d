"""Predictions as files: `<folder>/<video>/<frame>.png`, made by one run's settings only, continued where a run stopped.

While the model works on a frame, the next ones are decoded and the last ones written by a thread each; what waits is
bounded, so memory does not depend on the length of a video.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from shards.errors import DataError
from shards.manifest import encode_json
from shards.storage import remove_unfinished, write_bytes
from trainers.label_files import write_label_map
from trainers.prediction import ModelClock, Segmenter, object_ids, segment_video
from trainers.videos import VideoSource

SETTINGS_FILE = "segment.json"
FRAMES_AHEAD = 2
FRAMES_BEHIND = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class VideoTiming:
    """One segmented video. model_seconds as the paper counts (`ModelClock`), wall_seconds with decoding and writing."""

    video: str
    num_frames: int
    num_objects: int
    model_seconds: float
    wall_seconds: float


def claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make `folder` the output of these settings (JSON values), or check that it is.

    Raises DataError if it holds predictions of other settings, or files of unknown origin.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        # A run killed in its first moment leaves its settings unfinished.
        if folder.is_dir() and any(not file.match(f"{SETTINGS_FILE}.*.tmp") for file in folder.iterdir()):
            raise DataError(
                folder,
                expected=f"an empty folder, or one begun by this tool ({SETTINGS_FILE})",
                found="other files",
                remedy="give another OUT",
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, encode_json(settings))
        return
    found = _read_settings(path)
    differences = [name for name in sorted({*found, *settings}) if found.get(name) != settings.get(name)]
    if differences:
        raise DataError(
            path,
            expected=", ".join(f"{name} {settings.get(name)}" for name in differences),
            found=", ".join(f"{name} {found.get(name)}" for name in differences),
            remedy="predictions of two settings are never mixed: give another OUT, or delete this one",
        )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        found = f"no JSON ({error})"
    if not isinstance(found, dict):
        raise DataError(
            path, expected="the settings of the run that began here", found=str(found), remedy="give another OUT"
        )
    return found


def is_finished(folder: Path, source: VideoSource, video: str) -> bool:
    """Whether every frame of the video has its file."""
    return all((folder / video / f"{frame}.png").is_file() for frame in source.frame_names(video))


def require_first_masks(source: VideoSource, videos: Iterable[str]) -> None:
    """Raise DataError for the first video whose first frame has no label map, or that lacks the image of one."""
    for video in videos:
        frames, annotated = source.frame_names(video), source.annotated_names(video)
        if not frames or frames[0] not in annotated:
            raise DataError(
                source.locate(video, frames[0]) if frames else f"video {video}",
                expected="a first frame with its label map",
                found="no label map" if frames else "no frames",
                remedy="complete the video, or name the videos to segment",
            )
        for frame in annotated:
            if frame not in frames:
                raise DataError(
                    source.locate(video, frame),
                    expected="the image of an annotated frame",
                    found="no such file",
                    remedy="complete the video, or name the videos to segment",
                )


def segment_to_folder(
    segmenter: Segmenter,
    source: VideoSource,
    video: str,
    folder: Path,
    *,
    device: torch.device,
    on_frame: Callable[[], object] = lambda: None,
) -> VideoTiming:
    """Segment one video and write a palette PNG per frame, each complete or absent, with the video's own palette."""
    started, clock = time.perf_counter(), ModelClock()
    names = source.frame_names(video)
    first = source.read_labels(video, names[0])
    palette = source.palette(video)
    (folder / video).mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder / video)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        frames = read_ahead(lambda name: _read_frame(source, video, name), names, reader)
        writes: deque[Future[None]] = deque()
        try:
            predicted = segment_video(segmenter, frames, first, device=device, clock=clock)
            for name, labels in zip(names, predicted, strict=True):
                path = folder / video / f"{name}.png"
                writes.append(writer.submit(write_label_map, path, labels, palette))
                if len(writes) > FRAMES_BEHIND:
                    writes.popleft().result()
                on_frame()
            for write in writes:
                write.result()
        except ValueError as error:
            error.add_note(f"while segmenting video {video}")
            raise
    return VideoTiming(video, len(names), len(object_ids(first)), clock.seconds, time.perf_counter() - started)


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item], pool: ThreadPoolExecutor, *, ahead: int = FRAMES_AHEAD
) -> Iterator[Result]:
    """read(item) for each item, in order, up to `ahead` of them read before they are asked for."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(read, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_frame(source: VideoSource, video: str, frame: str) -> NDArray[np.uint8]:
    """RGB (H, W, 3) uint8."""
    data = source.read_image(video, frame)
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise DataError(
            source.locate(video, frame), expected="a whole JPEG", found=f"{error}", remedy="restore the file"
        ) from None
