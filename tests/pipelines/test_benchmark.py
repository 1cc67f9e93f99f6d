"""The benchmark measures what it says; no test here looks at how fast anything is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.benchmark import describe_machine, take_turns, time_clips
from pipelines.build_benchmark import time_build
from shards.errors import DataError
from shards.sources.moving_shapes import MovingShapes, write_moving_shapes
from tests.pipelines.clips import clip

SMALL = MovingShapes(num_train=2, num_val=1, num_frames=3, height=48, width=64)


def test_work_takes_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    seconds = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert set(seconds) == {"a", "b"}
    assert all(value >= 0 for value in seconds.values())


def test_clip_timing_names_what_was_timed() -> None:
    timing = time_clips([clip(seed, num_frames=2) for seed in range(5)], rounds=1)
    assert (timing.num_clips, timing.num_frames, timing.rounds) == (5, 2, 1)
    assert list(timing.executors) == ["cpu", "paper"]
    assert list(timing.stages) == ["decode", "warp", "colour", "masks", "assembly"]
    assert all(value > 0 for value in timing.executors.values())


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one clip and one round, got 0 clips and 5 rounds"):
        time_clips([])
    with pytest.raises(ValueError, match="unknown executor 'fast'"):
        time_clips([clip(0)], ["fast"])


def test_build_timing_counts_the_source_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_moving_shapes(tmp_path / "davis", SMALL)
    timing = time_build(tmp_path / "davis", tmp_path / "scratch", rounds=1)
    files = [path for kind in ("JPEGImages", "Annotations") for path in (tmp_path / "davis" / kind).rglob("*.*")]
    assert timing.num_frames == 9
    assert timing.source_mb == pytest.approx(sum(path.stat().st_size for path in files) / 1e6)
    assert min(timing.build, timing.copy, timing.encode_masks, timing.check_images) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["davis"]


def test_a_source_that_cannot_be_built_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        time_build(tmp_path / "missing", tmp_path / "scratch", rounds=1)
    assert list(tmp_path.iterdir()) == []


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["processor"]
    assert int(machine["cores"]) >= 1
