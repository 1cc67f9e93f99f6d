from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.errors import DataError
from tests.trainers.small_videos import write_results, write_tree
from trainers.benchmarks.scoring import time_scoring

VIDEOS = {"one": (1,), "two": (1, 2)}


def test_timing_counts_object_frames_and_leaves_opencv_as_it_was(tmp_path: Path) -> None:
    threads = cv2.getNumThreads()
    timing = time_scoring(write_tree(tmp_path / "truth", VIDEOS), write_results(tmp_path / "results", VIDEOS))
    assert timing.object_frames == 3 * 4
    assert timing.cpu_ms_per_object_frame > 0
    assert timing.reference_cpu_ms_per_object_frame > 0
    assert cv2.getNumThreads() == threads


def test_only_videos_with_results_are_timed(tmp_path: Path) -> None:
    truth = write_tree(tmp_path / "truth", VIDEOS)
    assert time_scoring(truth, write_results(tmp_path / "results", {"two": (1, 2)})).object_frames == 2 * 4
    with pytest.raises(DataError, match="found no such folder"):
        time_scoring(truth, tmp_path / "nothing")


def test_a_shard_set_is_timed_as_its_folder_is(tmp_path: Path) -> None:
    truth = write_tree(tmp_path / "truth", {"one": (1,)})
    request = BuildRequest("davis2017", (truth,), tmp_path / "sets")
    shards = build(request, make_plan(request), silent).root
    assert time_scoring(shards, write_results(tmp_path / "results", {"one": (1,)})).object_frames == 4
