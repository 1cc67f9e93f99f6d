"""However a tool ends, a person gets one clear message and the right status."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shards.errors import DataError
from tests.conftest import REPOSITORY
from tools.cli import Parser, run


def status_of(error: BaseException | None) -> int:
    def tool(_arguments: list[str]) -> int:
        if error is not None:
            raise error
        return 0

    with pytest.raises(SystemExit) as stopped:
        run(tool, [])
    return int(stopped.value.code or 0)


class UsageError(ValueError):
    exit_status = 2


def test_success_is_status_0() -> None:
    assert status_of(None) == 0


def test_bad_data_is_one_line_with_all_there_is_to_know(capsys: pytest.CaptureFixture[str]) -> None:
    error = DataError("a/b.png", expected="ids 0..3", found="id 9", remedy="restore the file")
    error.add_note("shard x-000000.tar")
    assert status_of(error) == 1
    shown = capsys.readouterr().err
    assert "a/b.png: expected ids 0..3, found id 9; restore the file\n  shard x-000000.tar\n" in shown
    assert "Traceback" not in shown


def test_a_missing_file_is_status_1_and_a_bad_config_status_2() -> None:
    assert status_of(FileNotFoundError(2, "No such file or directory", "x")) == 1
    assert status_of(UsageError("unknown key")) == 2


def test_a_file_where_a_folder_is_to_be_made_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(FileExistsError(17, "File exists", "out")) == 1
    assert "out: expected a folder or nothing, found a file; give another path" in capsys.readouterr().err


def test_ctrl_c_is_status_130_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    error = KeyboardInterrupt()
    error.add_note("run it again to go on")
    assert status_of(error) == 130
    assert capsys.readouterr().err.endswith("stopped by Ctrl-C\n  run it again to go on\n")


def test_an_extra_that_is_not_installed_is_a_message_not_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(ModuleNotFoundError("the dali executor needs NVIDIA DALI; install one of the extras")) == 1
    assert "install one of the extras" in capsys.readouterr().err


def test_a_store_without_credentials_is_a_message_not_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    botocore = pytest.importorskip("botocore.exceptions")
    assert status_of(botocore.NoCredentialsError()) == 1
    shown = capsys.readouterr().err
    assert "Unable to locate credentials; see that the store is reached" in shown and "Traceback" not in shown


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    def tool(_arguments: list[str]) -> int:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        run(tool, [])


def test_tracebacks_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def tool(_arguments: list[str]) -> int:
        raise ValueError("bad data")

    monkeypatch.setenv("VOSFORGE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="bad data"):
        run(tool, [])


def test_wrong_usage_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        Parser(prog="tool.py").parse_args(["--no-such"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "tool.py: unrecognized arguments: --no-such (see tool.py --help)\n"


def test_a_reader_that_goes_away_ends_a_tool_quietly() -> None:
    code = "from tools.cli import run\nrun(lambda _: [print('x' * 100) for _ in range(100_000)] and 0, [])"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as tool:
        assert tool.stdout is not None and tool.stderr is not None
        tool.stdout.readline()
        tool.stdout.close()
        assert tool.stderr.read() == b""
    assert tool.returncode == 141
