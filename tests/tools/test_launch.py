"""tools/launch.py and what tools/train.py tells it: statuses that a queue can act on."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.argument_types import UsageError
from tools.launch import launch_tool
from tools.train import _failures_in_the_status_file
from trainers.config import ConfigError
from trainers.running.distributed import LostRankError
from trainers.running.stopping import ENDING_VARIABLE, LAUNCHER_VARIABLE, STOPPED_STATUS

LAUNCHER = Path(__file__).resolve().parents[2] / "tools" / "launch.py"


@pytest.fixture
def status_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a rank 0 of two finds that its status is wanted."""
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**ranks, ENDING_VARIABLE: str(tmp_path / "status")}.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "status"


def test_a_failure_while_the_launcher_is_being_stopped_is_in_the_status_file(status_file: Path) -> None:
    with pytest.raises(OSError, match="No space"), _failures_in_the_status_file():
        raise OSError("No space left on device")
    assert status_file.read_text() == "1"


def test_the_status_of_an_attempt_before_is_forgotten_and_a_lost_rank_leaves_none(status_file: Path) -> None:
    status_file.write_text("1")
    with pytest.raises(LostRankError), _failures_in_the_status_file():
        raise LostRankError("rank 0: another process has ended")
    assert not status_file.exists()


def test_wrong_usage_stops_the_launcher_when_it_has_been_said(
    status_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: list[Callable[[], None]] = []
    stopped: list[tuple[int, int]] = []
    monkeypatch.setattr(atexit, "register", later.append)
    monkeypatch.setattr(os, "kill", lambda *call: stopped.append(call))
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(os.getppid()))
    with pytest.raises(ConfigError), _failures_in_the_status_file():
        raise ConfigError("run", "is wrong", remedy="mend it")
    assert status_file.read_text() == "2"
    (at_exit,) = later
    at_exit()
    monkeypatch.setenv(LAUNCHER_VARIABLE, "1234567")  # it died, and its process id is nobody's
    at_exit()
    assert stopped == [(os.getppid(), signal.SIGTERM)]


@pytest.mark.parametrize(
    ("option", "value"), [("--nproc-per-node", "zwei"), ("--nnodes", "2:x"), ("--nnodes", "1:2:3")]
)
def test_counts_that_are_none_are_wrong_usage(option: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"argument {option}: '{value}' does not do here"):
        launch_tool([option, value, "tools/train.py", "demo"])


def test_a_notice_while_launchers_wait_for_each_other_ends_with_the_status_of_a_stop() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-conf=is_host=1"]
    process = subprocess.Popen([sys.executable, str(LAUNCHER), *meeting, "never.py"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not is_answered(port):  # by the first launcher, which hosts the meeting
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == STOPPED_STATUS


def is_answered(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) == 0
