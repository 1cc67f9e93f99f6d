"""A run that will not fit into a CPU's memory is announced, and one that fits is not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.trainers.small_runs import build_shards, plain_config
from trainers.config import make_config
from trainers.running import memory_needs
from trainers.running.memory_needs import StepNeeds, available_bytes, step_bytes, warn_of_memory
from trainers.running.training import train

PAPER = StepNeeds("stage3", "rde", (384, 384), 8, 5)


def test_the_papers_step_needs_what_its_parts_sum_to() -> None:
    parameters, pixels = 64_020_836, 8 * 384 * 384
    assert step_bytes(PAPER, width=1.0, num_parameters=parameters) == 16 * parameters + 24_000 * pixels
    half = step_bytes(PAPER._replace(num_clips=4), width=1.0, num_parameters=0)
    assert half == step_bytes(PAPER, width=0.5, num_parameters=0)
    longer = step_bytes(PAPER._replace(num_frames=10), width=1.0, num_parameters=0)
    assert longer == 2 * 24_000 * pixels
    kept = step_bytes(PAPER._replace(checkpointing=True), width=1.0, num_parameters=parameters)
    assert kept == pytest.approx(16 * parameters + 0.65 * 24_000 * pixels)
    assert step_bytes(PAPER._replace(objective="another"), width=1.0, num_parameters=0) is None


@pytest.mark.parametrize(("free_gb", "processes", "warned"), [(20, 1, True), (40, 1, False), (40, 2, True)])
def test_a_step_that_does_not_fit_is_announced_with_the_way_out(
    free_gb: int, processes: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_memory([PAPER], width=1.0, num_parameters=64_020_836, processes=processes, free=free_gb * 10**9)
    assert bool(caplog.records) == warned
    if warned:
        text = caplog.text
        assert f"stage stage3: {8 * processes} clips of 384x384 at width 1 need about" in text
        assert f"and {free_gb} GB are free" in text
        assert "larger accumulate, a smaller batch_size, recipe.size or model.width" in text


def test_a_run_that_will_not_fit_says_so_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 5000 kB\n")
    monkeypatch.setattr(memory_needs, "MEMORY_INFO", tmp_path / "meminfo")
    values = plain_config(build_shards(tmp_path), tmp_path / "run")
    values["stages"][0]["steps"] = 1
    train(make_config(values, source="test"))
    assert "stage small: 2 clips of 32x32 at width 0.0625 need about 0.007" in caplog.text


def test_the_tighter_of_machine_and_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("MEMORY_INFO", "MemTotal: 9 kB\nMemAvailable:    3000 kB\n"),
        ("GROUP_LIMIT", "max\n"),
        ("GROUP_USE", "400"),
    ):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory_needs, name, tmp_path / name)
    assert available_bytes() == 3000 * 1024
    (tmp_path / "GROUP_LIMIT").write_text("1000\n")
    assert available_bytes() == 600
    for name in ("MEMORY_INFO", "GROUP_LIMIT"):
        (tmp_path / name).unlink()
    assert available_bytes() is None
