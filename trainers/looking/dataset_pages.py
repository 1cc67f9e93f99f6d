"""A shard set in pictures: what is in it as plots, and every object of a video over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipelines.pictures import overlay
from shards.masks import SOFT_CODECS, SOFT_THRESHOLD, decode_label_map, decode_soft_mask
from shards.palettes import voc_palette
from shards.reader import ShardSet
from shards.wording import counted
from trainers.pages import (
    data_uri,
    figure_html,
    heading,
    html_table,
    make_page,
    new_figure,
    paragraph,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_FRAMES = 20_000
"""Frames whose objects are looked up for the plots; of larger sets, evenly spread ones."""
MOST_BARS = 40
THUMBNAILS = 6
THUMBNAIL_PX = 163
"""Their width: six are as wide as a plot."""
STYLE = f".frames {{ display: flex; gap: 4px; }} .frames img {{ width: {THUMBNAIL_PX}px; align-self: start; }}"
TIMELINE_NOTE = (
    "Above: the frames in which each object is seen, with a ring where its mask is given to begin with. "
    "Below: how much of the frame it covers. Then frames spread evenly over the video."
)


@dataclass(frozen=True)
class Statistics:
    """Of a shard set. lengths: frames of each video. sizes: (width, height) of each video.

    objects_per_frame: of num_frames_seen annotated frames. areas: share of its frame that each object in them covers,
    0..1. objects_per_video: ids of each video.
    """

    lengths: NDArray[np.int64]
    sizes: Sequence[tuple[int, int]]
    objects_per_video: NDArray[np.int64]
    objects_per_frame: NDArray[np.int64]
    areas: NDArray[np.float64]
    num_frames_seen: int
    num_frames: int


@dataclass(frozen=True)
class ObjectTimeline:
    """One object of a video. areas: share of the frame it covers, at each annotated frame, 0 where it is not seen.

    starts: place of the frame at which its mask is given.
    """

    object_id: int
    areas: NDArray[np.float64]
    starts: int


@dataclass(frozen=True)
class VideoTimeline:
    """Objects of a video over its annotated frames; places: of those frames in the video, from 0."""

    name: str
    num_frames: int
    places: NDArray[np.int64]
    objects: tuple[ObjectTimeline, ...]


def read_statistics(shard_set: ShardSet, most_frames: int = MOST_FRAMES) -> Statistics:
    """From the index alone; no image or mask is read."""
    videos = shard_set.videos
    sizes = list(zip(videos.width.tolist(), videos.height.tolist(), strict=True))
    counts, areas = [], []
    seen = np.unique(np.linspace(0, shard_set.num_frames - 1, min(most_frames, shard_set.num_frames)).astype(np.int64))
    annotated: dict[int, NDArray[np.bool_]] = {}
    for frame in seen.tolist():
        video = videos.row_of_frame(frame)
        if video not in annotated:
            annotated = {video: shard_set.annotated(video)}  # frames come video by video
        if annotated[video][frame - int(videos.first_frame[video])]:
            objects = shard_set.objects(frame)
            counts.append(len(objects.ids))
            areas += (objects.areas / (sizes[video][0] * sizes[video][1])).tolist()
    return Statistics(
        lengths=videos.num_frames.astype(np.int64),
        sizes=sizes,
        objects_per_video=np.array([len(videos.object_ids(row)) for row in range(len(videos))], np.int64),
        objects_per_frame=np.array(counts, np.int64),
        areas=np.array(areas),
        num_frames_seen=len(counts),
        num_frames=shard_set.num_frames,
    )


def read_timeline(shard_set: ShardSet, video: int) -> VideoTimeline:
    """Objects of a video (its row) over time, from the index alone."""
    rows = shard_set.frame_rows(video)
    places = np.flatnonzero(shard_set.annotated(video))
    pixels = int(shard_set.videos.height[video]) * int(shard_set.videos.width[video])
    found = [shard_set.objects(rows.start + int(place)) for place in places]
    starts = {object_id: row - rows.start for row, ids in shard_set.starts(video).items() for object_id in ids}
    objects = []
    for object_id in shard_set.videos.object_ids(video):
        areas = [float(seen.areas[seen.ids == object_id].sum()) / pixels for seen in found]
        objects.append(ObjectTimeline(object_id, np.array(areas), starts.get(object_id, 0)))
    return VideoTimeline(shard_set.videos.original_names[video], len(rows), places, tuple(objects))


def dataset_page(shard_set: ShardSet, videos: Sequence[int]) -> str:
    """A self-contained page: statistics of the set, then timelines and frames of `videos` (rows)."""
    statistics = read_statistics(shard_set)
    parts = [html_table(["", ""], _facts(shard_set, statistics).items())]
    if statistics.num_frames_seen < statistics.num_frames:
        parts.append(paragraph(f"objects and areas: of {statistics.num_frames_seen} annotated frames", "note"))
    parts.append(figure_html(plot_statistics(statistics), "objects per frame, areas, lengths and sizes"))
    parts.append(heading("Videos"))
    parts.append(paragraph(TIMELINE_NOTE, "note"))
    for video in videos:
        timeline = read_timeline(shard_set, video)
        counts = f"{counted(timeline.num_frames, 'frame')}, {counted(len(timeline.objects), 'object')}"
        parts.append(heading(f"{timeline.name}: {counts}"))
        parts.append(figure_html(plot_timeline(timeline), f"objects of {timeline.name} over time"))
        parts.append(_thumbnails(shard_set, video, timeline.places))
    return make_page(f"{shard_set.name} ({shard_set.path})", parts, style=STYLE)


def plot_statistics(found: Statistics) -> Figure:
    """Four histograms."""
    figure = new_figure(10, 6)
    per_frame, areas, lengths, sizes = figure.subplots(2, 2).ravel()
    _plot_counts(per_frame, found.objects_per_frame)
    per_frame.set(xlabel="objects in a frame", ylabel="frames")
    if len(found.areas):
        low = max(float(found.areas.min()), 1e-6)
        areas.hist(found.areas, bins=np.geomspace(low, 1, 40).tolist(), color="#2f6fde")
    areas.set(xscale="log", xlabel="share of its frame that an object covers", ylabel="objects in frames")
    _plot_counts(lengths, found.lengths)
    lengths.set(xlabel="frames of a video", ylabel="videos")
    common = Counter(found.sizes).most_common(8)[::-1]
    sizes.barh([f"{width} x {height}" for (width, height), _ in common], [n for _, n in common], color="#2f6fde")
    sizes.set(xlabel="videos (the most frequent sizes)", ylim=(-1, max(1, len(common))))
    sizes.locator_params(axis="x", integer=True)
    return figure


def _plot_counts(axes: Axes, numbers: NDArray[np.int64]) -> None:
    """How often each whole number comes; ranges of them where there are many."""
    counts = Counter(numbers.tolist())
    if len(counts) > MOST_BARS:
        axes.hist(numbers, bins=MOST_BARS, color="#2f6fde")
    else:
        axes.bar(list(counts), list(counts.values()), color="#2f6fde")
        axes.set_xlim(min(counts, default=0) - 1, max(counts, default=0) + 1)
    axes.locator_params(axis="x", integer=True)


def plot_timeline(timeline: VideoTimeline) -> Figure:
    """Above, when each object is seen and where its mask is given (a ring); below, how much of the frame it covers."""
    objects = timeline.objects
    figure = new_figure(10, 2.6 + 0.22 * max(1, len(objects)))
    seen, covered = figure.subplots(2, 1, sharex=True, height_ratios=[0.3 + 0.12 * max(1, len(objects)), 1])
    palette = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3) / 255
    for row, item in enumerate(objects):
        colour: Any = tuple(palette[item.object_id])
        there = timeline.places[item.areas > 0]
        seen.plot(there, np.full(len(there), row), "s", markersize=4, color=colour)
        seen.plot([item.starts], [row], "o", markersize=9, markerfacecolor="none", color="#1c1f24")
        covered.plot(timeline.places, 100 * item.areas, color=colour, label=f"object {item.object_id}")
    seen.set_yticks(range(len(objects)), [f"object {item.object_id}" for item in objects], fontsize="small")
    seen.set_ylim(len(objects) - 0.5, -0.5)
    largest = max((float(item.areas.max(initial=0)) for item in objects), default=0) or 1.0
    covered.set(xlabel="frame", ylabel="% of the frame", ylim=(0, 110 * largest))
    covered.locator_params(axis="x", integer=True)
    return figure


def _facts(shard_set: ShardSet, found: Statistics) -> dict[str, str]:
    splits = ", ".join(f"{split} {count}" for split, count in sorted(shard_set.manifest.splits.items()))
    return {
        "videos": str(shard_set.num_videos),
        "frames": str(shard_set.num_frames),
        "objects": str(int(found.objects_per_video.sum())),
        "splits": splits or "none",
        "masks": str(shard_set.mask_codec),
        "fingerprint": shard_set.fingerprint[:16],
    }


def _thumbnails(shard_set: ShardSet, video: int, places: NDArray[np.int64]) -> str:
    first = shard_set.frame_rows(video).start
    chosen = places[np.unique(np.linspace(0, len(places) - 1, min(THUMBNAILS, len(places))).astype(int))]
    images = [data_uri(_picture(shard_set, first + int(place)), "image/jpeg") for place in chosen]
    cells = (
        f'<img alt="frame {place}" title="frame {place}" src="{image}">'
        for place, image in zip(chosen, images, strict=True)
    )
    return f'<div class="frames">{"".join(cells)}</div>'


def _picture(shard_set: ShardSet, frame: int) -> bytes:
    """JPEG of a frame with its masks over it, of twice the width it is shown at, for sharp screens."""
    encoded = shard_set.read(frame)
    image = simplejpeg.decode_jpeg(encoded.image, colorspace="RGB")
    if encoded.mask is not None:
        soft = shard_set.mask_codec in SOFT_CODECS
        labels = (decode_soft_mask if soft else decode_label_map)(encoded.mask, shard_set.mask_codec)
        image = overlay(image, (labels >= SOFT_THRESHOLD).astype(np.uint8) if soft else labels)
    height = max(1, round(image.shape[0] * 2 * THUMBNAIL_PX / image.shape[1]))
    small = cv2.resize(image, (2 * THUMBNAIL_PX, height), interpolation=cv2.INTER_AREA)
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(small), quality=80, colorspace="RGB")
    return data
