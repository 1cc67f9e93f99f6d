"""A process that hangs says where and ends; one that works is left alone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from trainers.running.watchdog import HUNG_STATUS, watch

REPOSITORY = Path(__file__).resolve().parents[2]

HANG = """
import logging, sys, time
from pathlib import Path
from trainers.running.watchdog import watch
logging.basicConfig(format="%(message)s")
def stuck_in_the_loader():
    time.sleep(60)
with watch(0.5, "rank 1 on node07", Path(sys.argv[1])) as watchdog:
    watchdog.begin("")
    time.sleep(1)
    watchdog.begin("waiting for data")
    stuck_in_the_loader()
"""


def test_a_process_that_hangs_leaves_its_stacks_and_ends_with_a_status_of_its_own(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", HANG, tmp_path], capture_output=True, text=True, check=False, timeout=50, cwd=REPOSITORY
    )
    assert result.returncode == HUNG_STATUS
    path = tmp_path / "stacks-rank-1-on-node07.txt"
    assert "rank 1 on node07: no progress for " in result.stderr
    assert f"while waiting for data; its stacks are in {path}; ending with status 70" in result.stderr
    text = path.read_text()
    assert text.startswith("rank 1 on node07: no progress for ")
    assert "in stuck_in_the_loader" in text


def test_progress_and_phases_without_limit_are_no_hang(tmp_path: Path) -> None:
    with watch(0.2, "rank 0 on here", tmp_path) as watchdog:
        assert watchdog is not None
        for _ in range(5):
            watchdog.begin("computing")
            time.sleep(0.05)
        watchdog.begin("")
        time.sleep(0.4)
    assert not list(tmp_path.iterdir())
    with watch(0.1, "rank 0 on here", tmp_path) as watchdog:
        assert watchdog is not None
        watchdog.begin("taking a first step", 100)
        time.sleep(0.4)
    assert not list(tmp_path.iterdir())
    with watch(None, "rank 0 on here", tmp_path) as nobody:
        assert nobody is None
