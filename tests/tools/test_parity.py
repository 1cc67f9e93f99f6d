"""The parity tool and what its figures mean: counts worked out by hand, and the published loop's measured outcome."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipelines.parity.comparison import Comparison, Distribution, Tally
from pipelines.parity.steps import overlap, published_damage
from pipelines.types import ClipPixels
from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.sources.moving_shapes import MovingShapes, write_moving_shapes
from tools import parity as tool
from trainers.running.distributed import DeviceError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_moving_shapes(tmp_path / "davis", MovingShapes(num_train=2, num_val=1, num_frames=6, height=120, width=200))
    request = BuildRequest("davis2017", (tmp_path / "davis",), tmp_path)
    return build(request, make_plan(request), silent).root


def test_figures_follow_from_counts_of_pixels() -> None:
    ours = torch.zeros(1, 1, 10, 10, 3, dtype=torch.uint8)
    theirs = ours.clone()
    theirs.view(-1)[:6] = torch.tensor([1, 1, 1, 5, 9, 200], dtype=torch.uint8)
    labels, other = torch.zeros(2, 1, 1, 10, 10, dtype=torch.uint8)
    labels[0, 0, :2], other[0, 0, 1:3], other[0, 0, 9, 9] = 3, 3, 255
    every = torch.ones(1, 1, dtype=torch.bool)
    tally = Tally()
    tally.add(ClipPixels(ours, labels, every), ClipPixels(theirs, other, every))
    row = Comparison.of("crop", "dali", tally)
    assert row.mean == pytest.approx(217 / 300)
    assert (row.p99, row.largest) == (1, 200)  # 297 of 300 values are at most 1 apart
    assert row.equal_labels == pytest.approx(0.79)
    assert row.object_overlap == pytest.approx(10 / 30)  # void is nobody's object


def test_soft_masks_are_compared_as_halves() -> None:
    images, every = torch.zeros(1, 1, 1, 4, 3, dtype=torch.uint8), torch.ones(1, 1, dtype=torch.bool)
    levels = [torch.tensor([[[row]]], dtype=torch.uint8) for row in ([0, 127, 128, 255], [0, 128, 130, 200])]
    tally = Tally()
    tally.add(*(ClipPixels(images, each, every, soft=True) for each in levels))
    row = Comparison.of("rde_static", "dali", tally)
    assert (row.equal_labels, row.object_overlap) == (0.75, pytest.approx(2 / 3))


def test_distributions_have_percentiles() -> None:
    row = Distribution.of("area", "cpu", list(range(101)))
    assert (row.count, row.mean, row.p5, row.p50, row.p95) == (101, 50, 5, 50, 95)


def test_the_published_damage_ends_where_it_was_measured_to_end() -> None:
    generator, outcomes = np.random.default_rng(0), []
    mask = np.zeros((384, 384), np.uint8)
    cv2.ellipse(mask, (192, 192), (60, 90), 0, 0, 360, 1, -1)
    for _ in range(100):
        damaged = published_damage(mask, generator.uniform(0.85, 1), generator)
        outcomes.append(overlap(damaged, mask))
    assert np.mean(outcomes) == pytest.approx(0.905, abs=0.015)  # measured on the published code, 300 draws
    assert np.percentile(outcomes, 5) == pytest.approx(0.837, abs=0.03)


def test_the_tool_compares_every_operation_and_recipe(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nvidia.dali", reason="no DALI in this environment")
    report = tmp_path / "parity.json"
    before = torch.get_num_threads()
    try:
        assert tool.parity([str(shards), "--clips", "1", "--json", str(report)]) == 0
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr().out
    assert "1 clips of each recipe, videos of davis2017" in printed
    result = json.loads(report.read_text())["result"]
    rows = {(row["what"], row["executor"]): row for row in result["operations"] + result["recipes"]}
    for what in ("resize", "crop", "flip", "affine", "colour", "nearest labels"):
        assert rows[what, "dali"]["equal_labels"] == 1
        assert rows[what, "dali"]["largest"] <= 2
    assert rows["crop", "paper"]["largest"] == rows["flip", "paper"]["largest"] == 0
    assert rows["resize", "paper"]["mean"] > 0.1
    assert rows["colour", "paper"]["largest"] > 2  # Pillow cuts fractions off
    assert rows["spline", "batched"]["equal_labels"] == 1
    assert rows["damage", "batched"]["equal_labels"] == 1
    assert rows["damage", "batched"]["mean"] is None
    for recipe in ("rde_static", "rde_bl30k", "rde_video", "stm_cycle", "stm_cycle_paper", "stm_cycle_dali", "mtmfi"):
        assert rows[recipe, "dali"]["largest"] <= 2
        assert ((recipe, "paper") in rows) == (recipe != "stm_cycle")
    assert rows["mtmfi", "paper"]["object_overlap"] > 0.97
    sources = {(row["what"], row["source"]) for row in result["distributions"]}
    assert {("IoU after damage, rde_video", "published loop"), ("object area, rde_video", "paper")} <= sources
    assert "rde_static        paper" in printed


def test_without_anything_to_compare_the_usage_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        tool.parity(["--executors", "dali"])
    assert "--executors needs cpu" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        tool.parity(["--clips", "0"])


def test_a_device_that_is_not_there_is_one_line_and_not_a_crash() -> None:
    with pytest.raises(DeviceError, match="unknown device 'gpu'"):
        tool.parity(["--device", "gpu"])
