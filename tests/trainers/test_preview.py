"""The sheets people look at hold what the trainer and the scorer saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainers.small_runs import build_shards, small_config
from trainers.label_files import write_label_map
from trainers.looking.sheets import clip_sheet, result_sheet
from trainers.prediction.videos import open_videos


def test_a_clip_sheet_has_a_row_per_clip_and_repeats_itself_exactly(tmp_path: Path) -> None:
    config = small_config(build_shards(tmp_path), tmp_path / "run")
    first = clip_sheet(config, stage=0, step=3, cell_height_px=32)
    assert first.size == (
        6 * (32 + 4) + 4,
        14 + 2 * (32 + 14 + 4) + 4,
    )  # headings; first mask, five frames
    assert first.tobytes() == clip_sheet(config, stage=0, step=3, cell_height_px=32).tobytes()
    assert first.tobytes() != clip_sheet(config, stage=0, step=4, cell_height_px=32).tobytes()


def test_a_step_the_stage_does_not_have_is_refused(tmp_path: Path) -> None:
    config = small_config(build_shards(tmp_path), tmp_path / "run")
    with pytest.raises(ValueError, match="a stage of 6 steps has no steps 6 to 7"):
        clip_sheet(config, stage=0, step=6)


def test_a_result_sheet_shows_truth_and_each_prediction_of_each_video(tmp_path: Path) -> None:
    source = open_videos(build_shards(tmp_path))
    for video in ("one", "two"):
        (tmp_path / "right" / video).mkdir(parents=True)
        for frame in source.frame_names(video):
            write_label_map(tmp_path / "right" / video / f"{frame}.png", source.read_labels(video, frame))
    made = np.asarray(result_sheet(source, {"right": tmp_path / "right"}, ["one", "two"], num_frames=3))
    row = (made.shape[0] - 4) // 4
    pictures = [made[4 + number * row + 14 : 4 + number * row + row] for number in range(4)]
    assert (pictures[0] == pictures[1]).all(), "a perfect prediction looks like the truth"
    assert (pictures[0] != pictures[2]).any(), "two videos look different"
