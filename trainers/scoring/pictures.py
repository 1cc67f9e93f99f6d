"""Pictures of scores: J over time for every object of a video, and the frames that went worst."""

from __future__ import annotations

import heapq
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipelines.pictures import overlay, sheet
from shards.palettes import voc_palette
from shards.storage.paths import write_bytes
from trainers.prediction.videos import VideoSource
from trainers.scoring.types import ObjectScores, ResultFolder

MAX_TICKS = 12
"""Of the frame names below a plot."""


class FrameScore(NamedTuple):
    """One object in one frame; compares by J, then F."""

    region: float
    boundary: float
    video: str
    frame: str
    number: int


def write_plots(folder: Path, scores: Sequence[ObjectScores]) -> list[Path]:
    """Write <folder>/<video>.png per video: J over the scored frames, a line per object; returns the paths."""
    by_video: dict[str, list[ObjectScores]] = defaultdict(list)
    for item in scores:
        by_video[item.video].append(item)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for video, items in by_video.items():
        path = folder / f"{video}.png"
        write_bytes(path, plot_video(items))
        paths.append(path)
    return paths


def plot_video(scores: Sequence[ObjectScores]) -> bytes:
    """PNG of J over time, a line per object in the colour of its id, its mean in the legend."""
    # Only here: it takes half a second to load and few runs draw. No pyplot: its figures are global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    frames = sorted({frame for item in scores for frame in item.frames}, key=lambda name: (len(name), name))
    places = {frame: place for place, frame in enumerate(frames)}
    figure = Figure(figsize=(9, 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for item in scores:
        label = f"object {item.number}: mean {item.region_statistics.mean:.3f}"
        where = [places[frame] for frame in item.frames]
        axes.plot(where, item.region, color=_line_colour(item.number), linewidth=1.6, marker=".", label=label)
    ticks = range(0, len(frames), -(-len(frames) // MAX_TICKS))
    axes.set(title=scores[0].video, xlabel="frame", ylabel="J", ylim=(-0.02, 1.02))
    axes.set_xticks(ticks, [frames[place] for place in ticks])
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside right upper")  # beside the axes: it hides no curve
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def worst_frames(scores: Sequence[ObjectScores], number: int) -> list[FrameScore]:
    """The object-frames of lowest J, worst first, no frame of a video twice."""
    worst: dict[tuple[str, str], FrameScore] = {}
    for item in scores:
        for frame, region, boundary in zip(item.frames, item.region, item.boundary, strict=True):
            found = FrameScore(float(region), float(boundary), item.video, frame, item.number)
            worst[item.video, frame] = min(found, worst.get((item.video, frame), found))
    return heapq.nsmallest(number, worst.values())


def worst_sheet(
    source: VideoSource, results: ResultFolder, frames: Sequence[FrameScore], *, cell_height_px: int = 200
) -> Image.Image:
    """A row per frame: image, truth, result. Captions name video, frame, object and scores."""
    rows, captions = [], []
    for item in frames:
        image = simplejpeg.decode_jpeg(source.read_image(item.video, item.frame), colorspace="RGB")
        truth = source.read_labels(item.video, item.frame)
        result = results.read(item.video, item.frame, truth)
        rows.append([image, overlay(image, truth), overlay(image, result)])
        captions.append(f"{item.video} {item.frame}, object {item.number}: J {item.region:.3f}  F {item.boundary:.3f}")
    return sheet(rows, captions, cell_height_px, headings=("image", "truth", "result"))


def _line_colour(number: int) -> NDArray[np.float64]:
    """RGB 0..1 of an id in the DAVIS palette, bright enough to be seen on white but no lighter."""
    colour = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)[number]
    return np.clip(colour / 255 * 1.4, 0.0, 0.85)
