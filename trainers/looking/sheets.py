"""What goes in and what comes out, on contact sheets: clips as the trainer sees them, masks as the model drew them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipelines.pictures import clip_headings, clip_rows, overlay, sheet
from pipelines.types import VOID
from trainers.config import Config
from trainers.label_files import LabelMap, read_label_map
from trainers.looking.clip_pages import Look, load_batches
from trainers.prediction.videos import VideoSource


def clip_sheet(config: Config, *, stage: int, step: int, max_clips: int = 8, cell_height_px: int = 128) -> Image.Image:
    """The global batch of one step of a stage, one clip per row, made on the CPU as `config` makes it for training.

    Raises ValueError for a step outside the stage.
    """
    with ExitStack() as stack:
        ((source, batch),) = load_batches(config, Look(stage, (step,)), stack)
        rows, captions = clip_rows(batch, source.describe)
    headings = clip_headings(len(rows[0]) - 1)
    return sheet(rows[:max_clips], captions[:max_clips], cell_height_px, headings=headings)


def result_sheet(
    source: VideoSource,
    results: Mapping[str, Path],
    videos: Sequence[str],
    *,
    num_frames: int = 5,
    cell_height_px: int = 110,
) -> Image.Image:
    """Truth and predictions side by side: per video a row of true masks, then one per entry of `results`.

    results: caption -> folder of <video>/<frame>.png. Frames are spread evenly from the first to the last annotated.
    """
    rows, captions = [], []
    for video in videos:
        annotated = source.annotated_names(video)
        picked = np.linspace(0, len(annotated) - 1, min(num_frames, len(annotated))).round().astype(int)
        frames = [annotated[position] for position in picked]
        rows.append([_overlaid(source, video, frame, source.read_labels(video, frame)) for frame in frames])
        captions.append(f"{video}: truth")
        for caption, folder in results.items():
            drawn = [read_label_map(folder / video / f"{frame}.png") for frame in frames]
            rows.append([_overlaid(source, video, frame, labels) for frame, labels in zip(frames, drawn, strict=True)])
            captions.append(f"{video}: {caption}")
    return sheet(rows, captions, cell_height_px)


def object_shares(source: VideoSource, results: Mapping[str, Path], videos: Sequence[str]) -> dict[str, float]:
    """How much of the frames is object, 0..1: `truth`, then each of `results` (caption -> folder, as above).

    Frames in which masks are given to begin with are left out, void pixels counted as background.
    """
    frames = [(video, frame) for video in videos for frame in source.annotated_names(video)[1:]]
    truths = [source.read_labels(video, frame) for video, frame in frames]
    drawn = {
        caption: [read_label_map(folder / video / f"{frame}.png") for video, frame in frames]
        for caption, folder in results.items()
    }
    return {caption: _object_share(labels) for caption, labels in {"truth": truths, **drawn}.items()}


def _object_share(maps: Sequence[LabelMap]) -> float:
    painted = sum(int(((labels > 0) & (labels != VOID)).sum()) for labels in maps)
    return painted / max(1, sum(labels.size for labels in maps))


def _overlaid(source: VideoSource, video: str, frame: str, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = simplejpeg.decode_jpeg(source.read_image(video, frame), colorspace="RGB")
    return overlay(image, labels)
