from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.errors import DataError
from tests.conftest import REPOSITORY
from tests.trainers.small_videos import label_map, save_labels, write_results, write_tree
from tests.trainers.small_youtube import write_youtube_tree
from tools.argument_types import UsageError
from tools.cli import TerminatedError
from tools.evaluate import evaluate_results
from tools.progress import Progress
from trainers.prediction.video_folders import UnknownNameError

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


def test_a_run_that_is_stopped_says_how_far_it_was_and_leaves_no_scores(
    truth: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "add", lambda _bar, _count: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TerminatedError) as stopped:
        evaluate_results([str(results), str(truth), "--jobs", "1"])
    assert stopped.value.__notes__ == ["1 of 2 videos were scored; nothing is written before all are"]
    assert sorted(path.name for path in results.iterdir()) == sorted(VIDEOS)


def test_categories_are_refused_where_the_protocol_has_none(truth: Path, results: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="--categories goes with --protocol youtube_vos; these are scored by davis2017"
    ):
        evaluate_results([str(results), str(truth), "--categories", str(tmp_path / "categories.json")])


def test_videos_of_a_split_that_is_named_must_be_of_it(truth: Path, results: Path) -> None:
    with pytest.raises(UnknownNameError, match="no video 'three' in split 'val'; there are one, two"):
        evaluate_results([str(results), str(truth), "--split", "val", "--videos", "three"])


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
        "--out",
        str(tmp_path / "deep" / "scores"),
    ]
    assert evaluate_results([*arguments, "--jobs", "1"]) == 0
    assert "davis2016 val: 1 video, 1 object\n" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "deep" / "scores").iterdir()) == [
        "global_results-val-selected.csv",
        "per-sequence_results-val-selected.csv",
        "results-val-selected.json",
    ]
    assert not list(results.glob("*.csv"))


def test_scores_of_some_videos_leave_those_of_the_whole_split_alone(truth: Path, results: Path) -> None:
    arguments = [str(results), str(truth), "--jobs", "1", "--curves", "--plots", "--worst", "1"]
    assert evaluate_results(arguments) == 0
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert evaluate_results([*arguments, "--videos", "one"]) == 0
    after = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert all(after[path] == data for path, data in before.items())
    assert {path.relative_to(results).parts[0] for path in after.keys() - before.keys()} == {
        *("global_results-val-selected.csv", "per-sequence_results-val-selected.csv", "results-val-selected.json"),
        *("curves-val-selected.csv", "plots-val-selected", "worst-val-selected.png"),
    }


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


def test_curves_plots_and_worst_frames_are_written_on_request(
    truth: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--curves", "--plots", "--worst", "2", "--output", str(tmp_path / "scores"), "--jobs", "1"]
    assert evaluate_results([str(results), str(truth), *arguments]) == 0
    written = {
        str(path.relative_to(tmp_path / "scores")) for path in (tmp_path / "scores").rglob("*") if path.is_file()
    }
    assert written >= {"curves-val.csv", "plots-val/one.png", "plots-val/two.png", "worst-val.png"}
    assert len((tmp_path / "scores" / "curves-val.csv").read_text().splitlines()) == 1 + 3 * 4
    assert "worst-val.png" in capsys.readouterr().out


def test_youtube_vos_is_known_by_its_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = write_youtube_tree(tmp_path / "tree")
    table = tmp_path / "table.json"
    table.write_text(
        json.dumps({"unseen": ["owl"], "videos": {"late": {"2": "cat", "5": "owl"}, "dark": {"3": "owl"}}})
    )
    arguments = [str(tree / "valid_gt"), str(tree), "--output", str(tmp_path / "scores"), "--jobs", "1"]
    assert evaluate_results(arguments) == 0
    printed = capsys.readouterr().out
    assert "youtube_vos valid_gt: 2 videos, 3 objects" in printed
    assert "the server's code is not public" in printed
    assert "all objects count as seen" in printed
    assert evaluate_results([*arguments, "--categories", str(table)]) == 0
    assert "all objects count as seen" not in capsys.readouterr().out
    lines = (tmp_path / "scores" / "global_results-valid_gt.csv").read_text().splitlines()
    assert lines == [
        "G,J-seen,J-unseen,F-seen,F-unseen,objects-seen,objects-unseen",
        "1.000,1.000,1.000,1.000,1.000,1,2",
    ]
    found = json.loads((tmp_path / "scores" / "results-valid_gt.json").read_text())
    assert found["global"]["objects-unseen"] == 2
    assert "listed for an object but its first" in found["rules"]


def test_the_unsupervised_task_has_its_own_masks(
    truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path / "perfect"), str(truth), "--protocol", "davis2017_unsupervised", "--jobs", "1"]
    for video, ids in VIDEOS.items():
        for frame in range(6):
            labels = label_map(ids, frame)
            save_labels(
                tmp_path / "perfect" / video / f"{frame:05d}.png", np.where(labels, 11 - labels, 0).astype("u1")
            )
    with pytest.raises(DataError, match="Annotations_unsupervised/480p/one: expected the files of video one"):
        evaluate_results(arguments)
    (truth / "Annotations").rename(truth / "Annotations_unsupervised")
    assert evaluate_results(arguments) == 0
    assert "two_2      1.000   1.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "../val"], "--split is '../val', expected the name of a list, without a path"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--worst", "0"], "--worst is 0"),
        (["--protocol", "davis"], "invalid choice"),
        (["--protocol", "davis2017", "--categories", "table.json"], "--categories goes with"),
    ],
)
def test_bad_usage_ends_with_status_2(
    truth: Path, results: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate_results([str(results), str(truth), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--videos", "tow"], "no video 'tow'; did you mean 'two'?"),
        (["--split", "vall"], "no split 'vall'; did you mean 'val'?"),
    ],
)
def test_a_name_the_truth_does_not_have_is_bad_usage_and_blames_no_folder(
    truth: Path, results: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UnknownNameError, match=re.escape(message)) as error:
        evaluate_results([str(results), str(truth), *arguments])
    assert error.value.exit_status == 2


def test_a_folder_without_results_lists_its_folders_and_no_files(truth: Path, tmp_path: Path) -> None:
    (tmp_path / "odd" / "scores").mkdir(parents=True)
    (tmp_path / "odd" / "notes.txt").write_text("")
    with pytest.raises(DataError, match="folders of results such as one, found folders scores; give"):
        evaluate_results([str(tmp_path / "odd"), str(truth)])
