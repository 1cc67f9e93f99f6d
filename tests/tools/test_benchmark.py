"""The benchmark tool from its command line: table, JSON, bad usage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines.benchmarks.masks import read_by_hand, read_patched
from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.png import decode_pixels
from shards.sources.moving_shapes import MovingShapes, write_moving_shapes
from tools import benchmark as tool

SMALL = MovingShapes(num_train=3, num_val=1, num_frames=6, height=60, width=80)


@pytest.fixture(autouse=True)
def _threads_as_before() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    write_moving_shapes(tmp_path / "davis", SMALL)
    return tmp_path / "davis"


def test_clips_prints_the_ratio_and_writes_json(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = BuildRequest("davis2017", (davis,), tmp_path)
    root = build(request, make_plan(request), silent).root
    report = tmp_path / "clips.json"
    assert tool.benchmark(["clips", str(root), "--clips", "2", "--rounds", "1", "--json", str(report)]) == 0
    printed = capsys.readouterr().out
    read = json.loads(report.read_text())
    ratio = read["result"]["executors"]["paper"] / read["result"]["executors"]["cpu"]
    assert f"paper / cpu: {ratio:.2f}" in printed
    assert "2 clips of 5 frames of davis2017, lz4 masks" in printed
    for row in ("cpu and assembly", "paper in a torch DataLoader", "cpu and spline", "paper, spline per pixel"):
        assert f"\n{row:<36}" in printed
    assert "stage 0: 3 frames of one still" in printed
    assert set(read["result"]["assembly"]) == {"choice of objects", "slots", "damage of first masks", "floats", "all"}
    assert read["benchmark"] == "clips"
    assert set(read["machine"]) == {"processor", "cores", "system"}
    assert read["versions"]["torch"] == torch.__version__


def test_build_prints_the_walls(davis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--videos", "2", "--frames", "3", "--rounds", "1", "--mask-codec", "png"]
    assert tool.benchmark(["build", str(davis), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "2 videos, 6 frames" in printed
    for row in ("build", "tar cf", "webdataset", "read", "mask decode", "hash", "the rest"):
        assert f"\n{row:<16}" in printed
    assert "4x input on 2 processes:" in printed and "MB at 4x input" in printed
    assert "by its frames on 16 such machines" in printed


def test_masks_are_measured_by_level_and_every_reader_gives_the_ids(
    davis: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.benchmark(["masks", str(davis), "--maps", "4", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    for row in ("lz4 level 1", "lz4 level 12", "png", "Pillow", "zlib by hand"):
        assert f"\n{row:<16}" in printed
    data = next((davis / "Annotations/480p").glob("*/*.png")).read_bytes()
    assert {read(data).tobytes() for read in (decode_pixels, read_by_hand, read_patched)} == {
        decode_pixels(data).tobytes()
    }


def test_scoring_makes_its_own_results(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tool, "FULL_SIZE", SMALL)
    assert tool.benchmark(["scoring"]) == 0
    assert "ms per object and frame" in capsys.readouterr().out


def test_clips_on_a_device_say_frames_and_cores(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nvidia.dali", reason="no DALI in this environment")
    request = BuildRequest("davis2017", (davis,), tmp_path)
    root = build(request, make_plan(request), silent).root
    words = ["clips", str(root), "--device", "cpu", "--clips", "2", "--batch", "2", "--rounds", "1"]
    assert tool.benchmark(words) == 0
    printed = capsys.readouterr().out
    assert "dali on the CPU: batches of 2 clips of 5 frames of davis2017, lz4 masks" in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith("mixed")]
    assert [row[1] for row in rows] == ["pixels", "batches"]
    assert all(float(row[2]) == pytest.approx(5 * float(row[3]), abs=1) for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: PROTOCOL"),
        (["clips", "--clips", "0"], "--clips must be at least 1"),
        (["clips", "--executors", "gpu"], "invalid choice: 'gpu'"),
        (["build", "--videos", "0"], "--videos must be at least 1"),
        (["scoring", "truth"], "give both TRUTH and RESULTS or neither"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        tool.benchmark(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_training_step_is_measured_beside_its_published_structure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["step", "--width", "0.0625", "--size", "32", "--clips", "1", "--rounds", "1"]
    assert tool.benchmark([*words, "--json", str(tmp_path / "step.json")]) == 0
    result = json.loads((tmp_path / "step.json").read_text())["result"]
    ours, published = result["variants"]["ours"], result["variants"]["published structure"]
    assert ours["loss"] == pytest.approx(published["loss"], rel=1e-5)
    assert min(ours["step_ms"], published["step_ms"], ours["memory_mb"], published["memory_mb"]) > 0
    assert "published structure" in capsys.readouterr().out
