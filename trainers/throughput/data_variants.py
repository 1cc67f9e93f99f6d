"""The data path with parts of it taken away, so that what a part costs is seen by its absence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.augmentation import Crop, crop_matrix
from pipelines.device_feed import DeviceFeed, Record
from pipelines.executors.cpu import RunStep, Step
from pipelines.executors.encoded import jpeg_size
from pipelines.loader import Assemble
from pipelines.reading.clip_reader import ClipReader, ReadClip, ReadCount
from pipelines.source import ClipSource
from pipelines.types import Batch, ClipPixels, ClipPlan, EncodedClip
from trainers.throughput.timeline import Timeline

NO_COLOUR = np.eye(3, 4, dtype=np.float32)
ENDLESS = 10**9
"""Steps of a stage that begins again after its last clip."""


class VariedSource:
    """Stands in for a ClipSource in a loader: its plans, timed, and perhaps others; the first again after the last.

    cached: clips whose plans come in turn, in place of what is planned. change: what is done to every plan.
    """

    def __init__(
        self,
        source: ClipSource,
        timeline: Timeline,
        *,
        cached: Sequence[EncodedClip] | None = None,
        change: Callable[[ClipSource, ClipPlan], ClipPlan] | None = None,
    ) -> None:
        self._source, self._timeline, self._cached, self._change = source, timeline, cached, change
        self.steps, self.batch_size = ENDLESS, source.batch_size
        self._num_clips = source.steps * source.batch_size

    def plan(self, number: int) -> ClipPlan:
        """The plan of a clip, timed; planning is done even where a cached clip brings its own."""
        with self._timeline.span("plan"):
            plan = self._source.plan(number % self._num_clips)
        if self._cached is not None:
            plan = self._cached[number % len(self._cached)].plan
        return plan if self._change is None else self._change(self._source, plan)

    def describe(self, plan: ClipPlan) -> str:
        """See ClipSource."""
        return self._source.describe(plan)


class VariedReader:
    """Stands in for a ClipReader: reads, timed, or hands out cached clips. source: for the loader to plan with."""

    def __init__(
        self, reader: ClipReader, source: VariedSource, timeline: Timeline, cached: Sequence[EncodedClip] | None = None
    ) -> None:
        self.source = source
        self._reader, self._timeline = reader, timeline
        self._cached = {clip.plan.number: clip for clip in cached or ()}

    def read(self, plan: ClipPlan) -> ReadClip:
        """The clip of a plan."""
        kept = self._cached.get(plan.number)
        if kept is not None:
            return ReadClip(replace(kept, plan=plan), ReadCount())
        with self._timeline.span("read"):
            return self._reader.read(plan)


class TimedFeed:
    """A device feed whose uploads are spans called `copy`.

    The loading thread's time: page-locked memory is filled, once an earlier copy out of it has ended, and the copy to
    the device begins. How long that one lasts shows where the next one has to wait for it.
    """

    def __init__(self, feed: DeviceFeed, timeline: Timeline) -> None:
        self._feed, self._timeline = feed, timeline

    def working(self) -> AbstractContextManager[Any]:
        """See DeviceFeed."""
        return self._feed.working()

    def upload(self, pixels: Record) -> Record:
        """See DeviceFeed; timed."""
        with self._timeline.span("copy"):
            return self._feed.upload(pixels)

    def finish(self) -> Any:
        """See DeviceFeed."""
        return self._feed.finish()

    def receive(self, mark: Any, *records: Any) -> None:
        """See DeviceFeed."""
        self._feed.receive(mark, *records)


def without_augmentation(source: ClipSource, plan: ClipPlan) -> ClipPlan:
    """The whole frame resized to the clip's size, in its own colours, with a first mask that is not damaged."""
    videos = source.shard_set(plan).videos
    whole = Crop(0, 0, int(videos.height[plan.video]), int(videos.width[plan.video]))
    matrices = np.repeat(crop_matrix(whole, plan.size)[None, :2], len(plan.frames), axis=0).astype(np.float32)
    colours = np.repeat(NO_COLOUR[None], len(plan.frames), axis=0)
    simple = replace(plan, matrices=matrices, colours=colours, damage_iou=None, splines=())
    return replace(simple, label_matrices=None, nearest_images=False, content=None)


def timed_steps(timeline: Timeline, without: Step | None = None) -> RunStep:
    """What the cpu executor runs its steps by: each is a span of the timeline; those called `without` are left out.

    In place of what is left out come frames of any content, the first mask that was decoded, and masks that are resized
    but not warped: of the right shape, for timing only.
    """
    first_masks: dict[tuple[int, int], NDArray[np.uint8] | None] = {}

    def run(step: Step, work: Callable[..., Any], *arguments: Any) -> Any:
        if step == "mask decode" and step == without:
            size = jpeg_size(*arguments)
            if size not in first_masks:
                first_masks[size] = work(*arguments)
            return first_masks[size]
        if step == without:
            return _STAND_INS[step](*arguments)
        with timeline.span(step):
            return work(*arguments)

    return run


def _any_frame(clip: EncodedClip, index: int, buffer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = jpeg_size(clip, index)
    return buffer[: height * width * 4].reshape(height, width, 4)


def _resize_masks(source: NDArray[np.uint8] | None, *arguments: Any) -> None:
    out: NDArray[np.uint8] = arguments[-1]
    if out.ndim == 3:  # an image, whose content costs nobody anything
        return
    out[:] = 0
    if source is not None:
        cv2.resize(source, out.shape[::-1], dst=out, interpolation=cv2.INTER_NEAREST)


def _leave(*_arguments: Any) -> None:
    """Not done."""


_STAND_INS: dict[str, Callable[..., Any]] = {"image decode": _any_frame, "warp": _resize_masks, "colour": _leave}


class KeptPixels:
    """Executor that makes the pixels of the first batch and hands them out for every later one."""

    def __init__(self, pixels: ClipPixels) -> None:
        self._pixels = pixels

    def __call__(self, clips: list[EncodedClip]) -> ClipPixels:
        """The kept pixels, whatever the clips."""
        return self._pixels

    def close(self) -> None:
        """Nothing to release."""


def kept_batch(batch: Batch) -> Assemble:
    """Assembly that hands out one finished batch under every step's number."""

    def hand_out(pixels: ClipPixels, plans: tuple[ClipPlan, ...], *, step: int) -> tuple[Batch, torch.Tensor]:
        return replace(batch, step=step), torch.zeros((), dtype=torch.int64)

    return hand_out
