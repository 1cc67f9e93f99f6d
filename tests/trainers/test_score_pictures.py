from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.trainers.small_videos import write_results, write_tree
from trainers.prediction.videos import open_videos
from trainers.scoring.pictures import plot_video, worst_frames, worst_sheet, write_plots
from trainers.scoring.reports import write_curves
from trainers.scoring.types import ObjectScores, ResultFolder

FRAMES = ("00001", "00002", "00003")


def scores_of(video: str, number: int, *region: float) -> ObjectScores:
    return ObjectScores(video, number, FRAMES[: len(region)], np.array(region), np.array(region) / 2)


SCORES = [scores_of("one", 1, 0.9, 0.2, 0.5), scores_of("one", 2, 0.8, 0.3, 0.1), scores_of("two", 1, 0.4, 0.15, 1.0)]


def test_curves_hold_every_value_exactly(tmp_path: Path) -> None:
    values = scores_of("one", 1, 1 / 3, 0.1)
    with write_curves(tmp_path, "val", [values]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["Video"], row["Object"], row["Frame"]) for row in rows] == [
        ("one", "1", "00001"),
        ("one", "1", "00002"),
    ]
    assert [float(row["J"]) for row in rows] == values.region.tolist()
    assert [float(row["F"]) for row in rows] == values.boundary.tolist()


def test_the_worst_frames_come_worst_first_and_each_once() -> None:
    found = worst_frames(SCORES, 4)
    assert [(item.video, item.frame, item.number, item.region) for item in found] == [
        ("one", "00003", 2, 0.1),
        ("two", "00002", 1, 0.15),
        ("one", "00002", 1, 0.2),
        ("two", "00001", 1, 0.4),
    ]
    assert len(worst_frames(SCORES, 100)) == 6


def test_the_sheet_shows_image_truth_and_result(tmp_path: Path) -> None:
    videos = {"one": (1, 2), "two": (1,)}
    source = open_videos(write_tree(tmp_path / "truth", videos))
    write_results(tmp_path / "results", videos, lag=2)
    results = ResultFolder(tmp_path / "results")
    picture = worst_sheet(source, results, worst_frames(SCORES, 3), cell_height_px=40)
    perfect = write_results(tmp_path / "perfect", videos, lag=0)
    other = worst_sheet(source, ResultFolder(perfect), worst_frames(SCORES, 3), cell_height_px=40)
    assert picture.size == other.size == (4 + 3 * 54, 14 + 4 + 3 * 58)
    difference = np.asarray(picture, np.int16) - np.asarray(other)
    changed = np.flatnonzero(np.abs(difference).sum(axis=(0, 2)))
    assert changed.min() >= 4 + 2 * 54  # the third column, the result, alone


def test_a_plot_draws_a_line_per_object_in_its_colour(tmp_path: Path) -> None:
    (one, two) = write_plots(tmp_path / "plots", SCORES)
    assert (one.name, two.name) == ("one.png", "two.png")
    with Image.open(one) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    red = (pixels[:, 0] > 150) & (pixels[:, 1:] < 60).all(axis=1)
    green = (pixels[:, 1] > 150) & (pixels[:, [0, 2]] < 60).all(axis=1)
    assert red.sum() > 300
    assert green.sum() > 300
    with Image.open(two) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    assert not ((pixels[:, 1] > 150) & (pixels[:, [0, 2]] < 60).all(axis=1)).any()


def test_the_legend_hides_no_part_of_a_curve() -> None:
    flat = ObjectScores("one", 1, tuple(f"{frame:05d}" for frame in range(40)), np.full(40, 0.1), np.full(40, 0.1))
    with Image.open(io.BytesIO(plot_video([flat, scores_of("one", 2, 0.9)]))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1:] < 60).all(axis=2)
    row = red[red.sum(axis=1).argmax()]
    seen = np.flatnonzero(row)
    assert seen[-1] - seen[0] > 400
    assert row[seen[0] : seen[-1]].all()


def test_a_plot_is_the_same_bytes_each_time() -> None:
    assert plot_video(SCORES[:1]) == plot_video(SCORES[:1])
    with Image.open(io.BytesIO(plot_video(SCORES[:1]))) as image:
        assert image.format == "PNG"
