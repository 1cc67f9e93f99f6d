"""The demo runs the real tools from end to end, and never removes what it did not make."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from shards.errors import DataError
from shards.locks import hold_alone
from shards.sources.moving_shapes import MovingShapes, write_moving_shapes
from tests.conftest import REPOSITORY
from tools.demo import MARKER, _fresh_folder, demo


def test_given_videos_go_the_whole_way(tmp_path: Path) -> None:
    write_moving_shapes(tmp_path / "davis", MovingShapes(num_train=2, num_val=1, num_frames=5, height=48, width=80))
    command = [sys.executable, "tools/demo.py", "--davis", tmp_path / "davis", "--output", tmp_path / "out"]
    ended = subprocess.run(
        [*command, "--steps", "1"], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    for name in ("shard", "check", "train", "segment", "evaluate"):
        assert f"$ python tools/{name}.py" in ended.stdout
    assert "J&F on val after training" in ended.stdout
    lower = re.search(r"before training +(\S+)\n.*after training +(\S+)\n", ended.stdout)
    assert lower is not None
    assert ("Lower after training: objects cover" in ended.stdout) == (float(lower[2]) < float(lower[1]))
    for picture in ("clips.png", "masks.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="give --output FOLDER"):
        demo(["--output", str(tmp_path)])
    assert (tmp_path / "thesis.txt").exists()
    assert not (tmp_path / MARKER).exists()


def test_a_running_demo_keeps_its_folder(tmp_path: Path) -> None:
    (tmp_path / MARKER).touch()
    (tmp_path / "work.txt").touch()
    with hold_alone(tmp_path), pytest.raises(DataError, match="another one running"):
        demo(["--output", str(tmp_path)])
    assert (tmp_path / "work.txt").exists()


def test_a_demo_stopped_while_it_empties_its_folder_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    (tmp_path / MARKER).touch()
    for name in "abcdef":
        (tmp_path / name).mkdir()
    with monkeypatch.context() as patched, ExitStack() as stack:
        patched.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            _fresh_folder(tmp_path, stack)
    with ExitStack() as stack:
        assert sorted(path.name for path in _fresh_folder(tmp_path, stack).iterdir()) == ["lock", MARKER]


def test_no_steps_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        demo(["--steps", "0"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("demo.py: --steps is 0, expected at least 1")
