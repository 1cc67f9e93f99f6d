"""Looking at a GPU, with a stand-in for nvidia-smi."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from trainers.throughput.gpu_load import FIELDS, OLD_FIELDS, gpu_name, mean_load, watch_gpu

ANSWERS = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *{unknown}*) echo 'Field "x" is not a valid field to query.'; exit 2;; esac
case "$*" in
  *loop-ms*) trap 'exit 0' TERM; while true; do echo "{line}"; sleep 0.05; done;;
  *) echo "{line}";;
esac
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *, line: str, unknown: str = "nothing-of-this") -> Path:
    """Put a script before everything else on the PATH; returns the file it writes its arguments to."""
    log, script = folder / "log", folder / "nvidia-smi"
    script.write_text(ANSWERS.format(log=log, line=line, unknown=unknown))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return log


def wait_for(log: Path, word: str) -> None:
    deadline = time.monotonic() + 60
    while word not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_means_are_taken_over_lines_and_units_that_are_not_there_left_out() -> None:
    lines = ["10, 2, 0, [N/A]", "30, 4, 0, [N/A]", "cut sh"]
    assert mean_load(tuple(FIELDS), lines) == {"GPU": 20.0, "GPU memory bus": 3.0, "video decoder": 0.0}
    assert mean_load(OLD_FIELDS, []) == {}


def test_a_gpu_is_watched_while_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install(tmp_path, monkeypatch, line="50, 10, 1, 7")
    with watch_gpu("GPU-abc") as busy:
        assert busy == {}
        wait_for(log, "loop-ms")
        time.sleep(0.3)
    assert busy == {"GPU": 50.0, "GPU memory bus": 10.0, "video decoder": 1.0, "JPEG decoder": 7.0}
    assert "--id=GPU-abc" in log.read_text()


def test_an_old_driver_is_asked_for_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install(tmp_path, monkeypatch, line="60, 20", unknown="utilization.jpeg")
    with watch_gpu("GPU-abc") as busy:
        wait_for(log, "loop-ms")
        time.sleep(0.3)
    assert busy == {"GPU": 60.0, "GPU memory bus": 20.0}


def test_without_gpu_or_tool_there_is_nothing_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_name(torch.device("cpu")) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    for gpu in (None, "GPU-abc"):
        with watch_gpu(gpu) as busy:
            pass
        assert busy == {}
