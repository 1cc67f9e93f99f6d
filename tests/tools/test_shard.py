"""tools/shard.py as people run it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.manifest import read_manifest
from shards.reader import ShardSet
from tests.shards.small_tree import files_of, label_maps, write_tree
from tools.datasets import datasets
from tools.shard import shard

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL = REPOSITORY / "tools" / "shard.py"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    videos = {"bear": label_maps(3, (1, 2)), "cup": [*label_maps(1, (3,)), None, None]}
    return write_tree(tmp_path / "tree", videos, {"train": ["bear"], "val": ["cup"]})


def run_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def test_a_summary_tells_what_was_built(tree, tmp_path, capsys):
    assert shard(["davis2017", str(tree), str(tmp_path / "out"), "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "2 videos, 6 frames" in printed and "splits: train 1, val 1" in printed
    assert "3 objects, 66.7% of the frames annotated" in printed
    with ShardSet.open(tmp_path / "out" / "davis2017") as shard_set:
        assert shard_set.num_frames == 6 and shard_set.fingerprint[:16] in printed


def test_the_arguments_reach_the_build(tree, tmp_path):
    arguments = ["--split", "train", "--name", "small", "--mask-codec", "png", "--shard-size", "5KB", "--jobs", "1"]
    assert shard(["davis2017", str(tree), str(tmp_path), *arguments]) == 0
    with ShardSet.open(tmp_path / "small") as shard_set:
        assert (shard_set.mask_codec, shard_set.manifest.shard_size) == ("png", 5000)
        assert shard_set.manifest.splits == {"train": 1}


@pytest.mark.parametrize("given", [["--split", "train,val"], ["--split", "train", "--split", "val"]])
def test_splits_before_the_paths_do_not_swallow_them(tree, tmp_path, given):
    assert shard(["davis2017", *given, str(tree), str(tmp_path), "--jobs", "1"]) == 0
    assert read_manifest(tmp_path / "davis2017").splits == {"train": 1, "val": 1}


def test_a_dry_run_writes_nothing(tree, tmp_path, capsys):
    assert shard(["davis2017", str(tree), str(tmp_path / "out"), "--dry-run"]) == 0
    assert "1 shard in" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_a_finished_build_says_so(tree, tmp_path, capsys):
    arguments = ["davis2017", str(tree), str(tmp_path / "out"), "--jobs", "1"]
    assert shard(arguments) == 0
    capsys.readouterr()
    assert shard(arguments) == 0
    assert "complete already: nothing to do" in capsys.readouterr().out


def test_refused_input_is_counted_by_reason(tree, tmp_path, capsys):
    (tree / "Annotations/480p/bear/00001.png").write_bytes(b"")
    assert shard(["davis2017", str(tree), str(tmp_path / "out"), "--on-bad", "skip", "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "1 video left out because of refused input" in printed
    assert "refused        1 x empty file: video dropped" in printed and "rejected.jsonl" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["davis2018", "a", "b"], "davis2017"),
        (["davis2017", "a"], "out"),
        (["davis2017", "a", "b", "--shard-size", "big"], "'big' is no size; write 1GB"),
        (["davis2017", "a", "b", "--jobs", "0"], "'0' is no whole number of at least 1"),
        (["davis2017", "a", "b", "--jobs", "x"], "argument --jobs: 'x' is no whole number of at least 1"),
        (["davis2017", "a", "b", "--name", "../x"], "name '../x' may hold letters"),
        (["davis2017", "a", "b", "c"], "davis2017 takes one source folder, not 2"),
        (["davis2017", "a", "b", "--split", "train,"], "'train,' names no split"),
        (["davis2017", "a", "b", "--on-bad", "ignore"], "stop"),
        (["davis2017", "a", "b", "--part", "3/2"], "'3/2' is no part; write 3/16"),
        (["davis2017", "a", "b", "--part", "1/2", "--finish"], "not allowed with"),
        (["davis2017", "a", "b", "--scheduler", "tcp://x"], "needs --engine dask"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        shard(arguments)
    printed = capsys.readouterr().err
    assert caught.value.code == 2 and printed.count("\n") == 1 and message in printed


def test_bad_data_is_one_message_and_status_1(tree, tmp_path):
    bad = tree / "JPEGImages/480p/bear/00001.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    result = run_tool("davis2017", tree, tmp_path / "out", "--jobs", "1")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "expected" in line]
    assert f"{bad}: expected a JPEG with every pixel, found" in line
    assert "--on-bad skip" in line
    result = run_tool("davis2017", tmp_path / "nothing", tmp_path / "out")
    assert result.returncode == 1 and "no folder" in result.stderr and "Traceback" not in result.stderr


def test_a_folder_that_cannot_be_made_gets_advice_that_helps(tree, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    result = run_tool("davis2017", tree, blocked / "below", "--jobs", "1")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"{blocked}: expected a folder for the set, found a file; give another OUT" in result.stderr
    assert "run the same command again" not in result.stderr

    def denied(*_arguments, **_options):
        raise PermissionError(13, "Permission denied", "out")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(PermissionError) as caught:
        shard(["davis2017", str(tree), str(tmp_path / "out"), "--jobs", "1"])
    assert not hasattr(caught.value, "__notes__")


def test_a_build_that_had_begun_is_gone_on_with(tree, tmp_path, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shards.building.jobs.write_shard", full)
    with pytest.raises(OSError, match="No space left") as caught:
        shard(["davis2017", str(tree), str(tmp_path / "out"), "--jobs", "1"])
    assert caught.value.__notes__ == ["run the same command again to go on from the finished shards"]


def test_the_help_says_every_default(capsys):
    for tool, arguments in ((shard, ["--help"]), (datasets, ["append", "--help"]), (datasets, ["subset", "--help"])):
        with pytest.raises(SystemExit):
            tool(arguments)
        entries = re.split(r"\n  (?=-)", " ".join(capsys.readouterr().out.split(" ")))
        for entry in entries[1:]:
            words = " ".join(entry.split())
            name = words.split()[0].rstrip(",")
            told = "(default: " in words or name in SWITCHES or name in NO_DEFAULT
            assert told, words


# On or off; what is not given is off.
SWITCHES = ("-h", "--dry-run", "--finish", "--enlarge")
NO_DEFAULT = ("--part", "--list", "--split")


def test_a_redirected_log_has_no_bar(tree, tmp_path):
    result = run_tool("davis2017", tree, tmp_path / "out", "--jobs", "1")
    assert result.returncode == 0 and "it/s" not in result.stderr and "%|" not in result.stderr
    assert "\r" not in result.stderr


def test_ctrl_c_is_one_message_and_the_next_run_goes_on(tmp_path):
    tree = write_tree(tmp_path / "tree", {f"video{n:02d}": label_maps(12, (1,), seed=n) for n in range(40)})
    command = [
        sys.executable,
        str(TOOL),
        "davis2017",
        str(tree),
        str(tmp_path / "out"),
        "--shard-size",
        "20KB",
        "--jobs",
        "2",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/*/*.tar")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in printed and "run the same command again" in printed
    assert shard(command[2:]) == 0


def test_real_video_is_sharded_whole(shared_data, tmp_path):
    assert shard(["davis2017", str(shared_data / "davis_mini"), str(tmp_path), "--jobs", "2"]) == 0
    with ShardSet.open(tmp_path / "davis2017") as shard_set:
        assert (shard_set.num_videos, shard_set.num_frames) == (2, 48)
        assert [shard_set.videos.object_ids(row) for row in range(2)] == [(1,), (1, 2)]
        shutil.rmtree(tmp_path / "davis2017")


def test_parts_and_their_finish_make_the_set_of_one_run(tree, tmp_path, capsys):
    common = ["davis2017", str(tree)]
    options = ["--shard-size", "5KB", "--jobs", "1"]
    assert shard([*common, str(tmp_path / "one"), *options]) == 0
    assert shard([*common, str(tmp_path / "parts"), *options, "--part", "2/2"]) == 0
    assert "part 2 of 2 is done: 1 shard;" in capsys.readouterr().out
    with pytest.raises(DataError, match="run --part I/N again"):
        shard([*common, str(tmp_path / "parts"), *options, "--finish"])
    assert shard([*common, str(tmp_path / "parts"), *options, "--part", "1/2"]) == 0
    assert shard([*common, str(tmp_path / "parts"), *options, "--finish"]) == 0
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "one")
    assert shard([*common, str(tmp_path / "parts"), *options, "--finish"]) == 0
    assert "complete already" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["here", "running scheduler"])
def test_dask_makes_the_same_bytes(tree, tmp_path, where):
    pytest.importorskip("distributed")
    arguments = ["davis2017", tree, tmp_path / "dask", "--shard-size", "5KB", "--jobs", "2", "--engine", "dask"]
    assert shard(["davis2017", str(tree), str(tmp_path / "one"), "--shard-size", "5KB", "--jobs", "1"]) == 0
    with running_cluster(tmp_path) if where != "here" else nullcontext(None) as address:
        result = run_tool(*arguments, *(["--scheduler", address] if address else []))
    assert result.returncode == 0, result.stderr
    assert "Dask dashboard: http" in result.stdout
    assert files_of(tmp_path / "dask") == files_of(tmp_path / "one")


def test_dask_tells_refused_input_like_any_engine(tree, tmp_path):
    pytest.importorskip("distributed")
    (tree / "Annotations/480p/cup/00000.png").write_bytes(b"")
    result = run_tool("davis2017", tree, tmp_path / "out", "--engine", "dask", "--jobs", "1")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "cup/00000.png: expected a PNG, found 0 bytes" in result.stderr
    assert not (tmp_path / "out/davis2017/manifest.json").exists()


@contextmanager
def running_cluster(folder: Path) -> Iterator[str]:
    """Address of a Dask scheduler with one worker, each a process of its own as on a cluster."""
    file = folder / "scheduler.json"
    module = [sys.executable, "-m"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": REPOSITORY}
    command = [*module, "distributed.cli.dask_scheduler", "--scheduler-file", str(file), "--port", "0"]
    with subprocess.Popen([*command, "--dashboard-address", ":0"], **quiet) as scheduler:
        while not file.exists():
            assert scheduler.poll() is None
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        command = [*module, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
        with subprocess.Popen(command, **quiet) as worker:
            yield address
            worker.terminate()
        scheduler.terminate()


def test_a_dry_run_estimates_from_frames_of_the_source(tree, tmp_path, capsys):
    assert shard(["davis2017", str(tree), str(tmp_path / "out"), "--dry-run", "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "on 2 cores (from 6 frames" in printed and "MB in 1 shard," in printed


def test_a_set_is_built_from_and_into_urls(tree, tmp_path):
    assert shard(["davis2017", f"file://{tree}", f"file://{tmp_path}/out", "--jobs", "1"]) == 0
    with ShardSet.open(f"file://{tmp_path}/out/davis2017") as shard_set:
        assert shard_set.num_frames == 6
