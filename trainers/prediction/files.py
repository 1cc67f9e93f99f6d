"""Predictions as files: `<folder>/<video>/<frame>.png`, made by one run's settings only, continued where a run stopped.

While the model works on a frame, the next ones are decoded and the last ones written by a thread each; what waits is
bounded, so memory does not depend on the length of a video. Several videos can be in work at a time.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from shards.errors import DataError
from shards.manifest import encode_json
from shards.storage.paths import remove_unfinished, write_bytes
from trainers.label_files import LabelMap, is_whole_png, write_grey, write_label_map
from trainers.prediction.following import ModelClock, segment_video
from trainers.prediction.plan import PngForm, VideoPlan
from trainers.prediction.videos import VideoSource
from trainers.segmenters import Segmenter
from trainers.views import Sight

SETTINGS_FILE = "segment.json"
FRAMES_AHEAD = 2
FRAMES_BEHIND = 4
SIGNAL_SECONDS = 0.2
JPEG_START = b"\xff\xd8"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class VideoTiming:
    """One segmented video.

    num_frames: those the model saw. model_seconds as the paper counts (`ModelClock`), wall_seconds with decoding and
    writing; of videos in work at the same time they overlap.
    """

    video: str
    num_frames: int
    num_objects: int
    model_seconds: float
    wall_seconds: float


@dataclass(frozen=True, slots=True)
class OutputForm:
    """Where the model works, how it sees frames (`segment_video`), and what kind of PNG is written."""

    device: torch.device
    sight: Sight = field(default_factory=Sight)
    png: PngForm = "palette"


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


def result_path(folder: Path, plan: VideoPlan, frame: int) -> Path:
    """File of a frame's label map."""
    return folder / plan.video / f"{plan.names[frame]}.png"


def is_finished(folder: Path, plan: VideoPlan) -> bool:
    """Whether every wanted frame of the video has its file, and that is whole."""
    return all(is_whole_png(result_path(folder, plan, frame)) for frame in plan.script.written)


def segment_to_folder(
    segmenter: Segmenter,
    source: VideoSource,
    plan: VideoPlan,
    folder: Path,
    form: OutputForm,
    *,
    on_frame: Callable[[], object] = lambda: None,
) -> VideoTiming:
    """Segment one video and write a PNG per wanted frame into <folder>/<video>, each complete or absent.

    on_frame is called as each is handed to the writer; what it raises ends the video.
    """
    started, clock, palette = time.perf_counter(), ModelClock(), source.palette(plan.video)
    (folder / plan.video).mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder / plan.video)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        frames = read_ahead(lambda frame: read_frame(source, plan, frame), plan.script.shown, reader)
        writes: deque[Future[None]] = deque()
        try:
            for frame, labels in segment_video(
                segmenter,
                plan.script,
                frames,
                lambda frame: plan.read_labels(source, frame),
                device=form.device,
                clock=clock,
                sight=form.sight,
            ):
                writes.append(writer.submit(_write, result_path(folder, plan, frame), labels, palette, form.png))
                if len(writes) > FRAMES_BEHIND:
                    writes.popleft().result()
                on_frame()
            for write in writes:
                write.result()
        except ValueError as error:
            error.add_note(f"while segmenting video {plan.video}")
            raise
    wall_seconds = time.perf_counter() - started
    return VideoTiming(plan.video, clock.num_frames, plan.script.num_objects, clock.seconds, wall_seconds)


def segment_all(
    new_segmenter: Callable[[], Segmenter],
    source: VideoSource,
    plans: Sequence[VideoPlan],
    folder: Path,
    form: OutputForm,
    *,
    in_flight: int = 1,
    on_frame: Callable[[], object] = lambda: None,
) -> list[VideoTiming]:
    """Segment videos into `folder`, `in_flight` of them at a time in threads, each with a segmenter of its own.

    Timings are in the order of `plans`. The first error, or Ctrl-C, ends all of them at their next frame. on_frame is
    called from those threads, one at a time.
    """
    if in_flight < 1:
        raise ValueError(f"{in_flight} videos in flight, expected at least 1")
    stop, turn = threading.Event(), threading.Lock()

    def count() -> None:
        if stop.is_set():
            raise _StoppedError("another video ended the run")
        with turn:
            on_frame()

    def work(plan: VideoPlan) -> VideoTiming:
        return segment_to_folder(new_segmenter(), source, plan, folder, form, on_frame=count)

    with ThreadPoolExecutor(in_flight) as pool:
        futures = [pool.submit(work, plan) for plan in plans]
        try:
            # In short waits: a signal that another thread got is seen by this one, the main one, when it runs next.
            while wait(futures, SIGNAL_SECONDS, return_when=FIRST_EXCEPTION).not_done and not _any_failed(futures):
                pass
            for future in futures:
                if future.done() and not future.cancelled() and (error := future.exception()) is not None:
                    raise error
            return [future.result() for future in futures]
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _any_failed(futures: Sequence[Future[VideoTiming]]) -> bool:
    return any(future.done() and future.exception() is not None for future in futures)


class _StoppedError(Exception):
    """Ends a video because the run has ended."""


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


def read_frame(source: VideoSource, plan: VideoPlan, frame: int) -> NDArray[np.uint8]:
    """RGB (H, W, 3) uint8 of a frame. Raises DataError for one that does not decode."""
    name = plan.names[frame]
    data = source.read_image(plan.video, name)
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        found = f"{error}" if data.startswith(JPEG_START) else f"{len(data)} bytes that are no JPEG: {data[:12]!r}"
        place = source.locate(plan.video, name)
        raise DataError(place, expected="a whole JPEG", found=found, remedy="restore the file") from None


def _write(path: Path, labels: LabelMap, palette: bytes | None, png: PngForm) -> None:
    if png == "grey":
        write_grey(path, np.where(labels != 0, np.uint8(255), np.uint8(0)))
    else:
        write_label_map(path, labels, palette)
