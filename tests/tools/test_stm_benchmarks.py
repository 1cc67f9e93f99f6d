"""benchmark.py stm-step and stm-correction: tables and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.benchmark import benchmark
from trainers.benchmarks.stm_correction import PIECES, CorrectionCost, CorrectionSize, correction_cost
from trainers.benchmarks.stm_step import STEPS

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ("--width", "0.0625", "--height", "32")


def in_this_process(size: CorrectionSize) -> list[CorrectionCost]:
    """`time_corrections` without its processes, which cost seconds each."""
    return [correction_cost(size, at_once, 1) for at_once in PIECES]


def test_the_step_and_the_loop_are_rows_of_one_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "step.json"
    assert benchmark(["stm-step", *SMALL, "--clips", "2", "--rounds", "1", "--json", str(report)]) == 0
    steps = json.loads(report.read_text())["result"]["steps"]
    assert list(steps) == list(STEPS)
    assert len({round(step["loss"], 4) for step in steps.values()}) == 1
    printed = capsys.readouterr().out
    assert "resnet18, width 0.0625, 2 clips of 3 frames 32x56, 2 and 1 objects in turn" in printed
    ours, loop = steps["ours"], steps["clip-by-clip loop"]
    ratio, work = loop["step_ms"] / ours["step_ms"], ours["work"]
    assert f"{ours['step_ms']:.1f}{ratio:>8.2f}{work['gflop']:>10.1f}{work['operations']:>12}" in printed
    assert work["gflop"] < loop["work"]["gflop"]
    assert 2 * work["operations"] < loop["work"]["operations"]


def test_a_correction_has_a_row_for_each_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.benchmark_stm.time_corrections", in_this_process)
    report = tmp_path / "correction.json"
    assert benchmark(["stm-correction", *SMALL, "--objects", "2", "--json", str(report)]) == 0
    rows = json.loads(report.read_text())["result"]["rows"]
    assert [row["objects_at_once"] for row in rows] == [None, 8, 1]
    printed = capsys.readouterr().out
    assert "2 objects in 11 frames 32x56" in printed
    for row, name in zip(rows, ("no correction", "8 objects at a time", "one object at a time"), strict=True):
        line = next(line for line in printed.splitlines() if name in line)
        assert f"{row['frames_per_second']:.2f}" in line
