from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.trainers.small_videos import label_map, save_labels, write_results, write_tree
from tools.evaluate import evaluate_results

VIDEOS = {"one": (1,), "two": (1, 2)}


def run_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "tools" / "evaluate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "truth", VIDEOS)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results", VIDEOS)


def test_perfect_results_print_and_write_ones(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    perfect = write_results(tmp_path / "perfect", VIDEOS, lag=0)
    assert evaluate_results([str(perfect), str(truth), "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "davis2017 val: 2 videos, 3 objects" in out
    assert "two_2      1.000   1.000" in out
    assert (perfect / "global_results-val.csv").read_text().splitlines()[
        1
    ] == "1.000,1.000,1.000,0.000,1.000,1.000,0.000"
    assert json.loads((perfect / "results-val.json").read_text())["global"]["J&F-Mean"] == 1.0


def test_old_score_files_are_never_printed_for_new_results(
    truth: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(results), str(truth), "--jobs", "1"]
    assert evaluate_results(arguments) == 0
    before = capsys.readouterr().out
    write_results(results, VIDEOS, lag=0)
    assert evaluate_results(arguments) == 0
    after = capsys.readouterr().out
    assert "two_2      0.714" in before
    assert "two_2      1.000" in after


def test_chosen_videos_are_scored_without_a_list_into_the_folder_given(
    truth: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        str(results),
        str(truth),
        "--videos",
        "two",
        "--protocol",
        "davis2016",
        "--output",
        str(tmp_path / "deep" / "scores"),
    ]
    assert evaluate_results([*arguments, "--jobs", "1"]) == 0
    assert "davis2016 val: 1 videos, 1 objects" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "deep" / "scores").iterdir()) == [
        "global_results-val.csv",
        "per-sequence_results-val.csv",
        "results-val.json",
    ]
    assert not list(results.glob("*.csv"))


def test_two_processes_work_from_the_command_line(truth: Path, results: Path) -> None:
    finished = run_tool(results, truth, "--jobs", 2)
    assert finished.returncode == 0, finished.stderr
    assert "two_1" in finished.stdout


def test_bad_data_ends_with_status_1_and_one_line_that_says_what_to_do(truth: Path, results: Path) -> None:
    labels = label_map((1, 2), 2)
    labels[3, 3] = 255
    save_labels(results / "two" / "00002.png", labels)
    finished = run_tool(results, truth, "--jobs", 1)
    assert finished.returncode == 1
    (line,) = finished.stderr.strip().splitlines()
    assert os.fspath(results / "two" / "00002.png") in line
    assert "expected ids 0 to 2, the objects of the first frame, found id 255; write 0" in line
    assert not list(results.glob("*.csv"))


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--jobs", "0"], "--jobs is 0"), (["--protocol", "davis"], "invalid choice")]
)
def test_bad_usage_ends_with_status_2(
    truth: Path, results: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate_results([str(results), str(truth), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
