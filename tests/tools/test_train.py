"""tools/train.py by what it prints, leaves on disk and exits with."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trainers.small_runs import assert_equal_states, build_shards, plain_config, write_config
from tools.train import duration_s, time_left, train_tool
from trainers.config import ConfigError, load_config
from trainers.running.stopping import STARTED_VARIABLE

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(REPOSITORY / "tools" / "train.py")]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of 8 steps that saves after each, without an output folder."""
    folder = tmp_path_factory.mktemp("train")
    values = plain_config(build_shards(folder), folder / "unused", checkpoint_every=1)
    values["stages"][0]["steps"] = 8
    del values["output"]
    return write_config(folder / "small.yaml", values)


def run_tool(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, check=False, timeout=300, cwd=cwd
    )


def start_and_wait_for(checkpoint: Path, *words: object) -> subprocess.Popen[str]:
    """Start the tool and return once `checkpoint` is there."""
    process = subprocess.Popen([*COMMAND, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_killed_run_goes_on_to_the_same_end_bit_for_bit(config: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run_tool(config, f"output={whole}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("finished after step 8 of 8; newest checkpoint")

    process = start_and_wait_for(killed / "checkpoint-2.pt", config, f"output={killed}")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "checkpoint-8.pt").exists()
    result = run_tool(config, f"output={killed}", "--resume")
    assert result.returncode == 0, result.stderr
    assert_equal_states(killed / "checkpoint-8.pt", whole / "checkpoint-8.pt")


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 75, "stopped"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_saves_and_exits_with_its_own_status(
    config: Path, tmp_path: Path, number: signal.Signals, status: int, word: str
) -> None:
    process = start_and_wait_for(tmp_path / "checkpoint-1.pt", config, f"output={tmp_path}")
    process.send_signal(number)
    output, errors = process.communicate()
    assert process.returncode == status, errors
    assert output.startswith(f"{word} after step")
    assert "go on with the same command and --resume" in output
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_anything_has_begun_ends_with_status_75(
    config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [COMMAND[0], "-X", "importtime", COMMAND[1], str(config), f"output={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    # tqdm is the first package the tool imports; torch, which takes seconds, comes after it.
    assert any("tqdm.version" in line for line in process.stderr)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 75
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_run_goes_to_runs_under_the_configs_name(config: Path, tmp_path: Path) -> None:
    text = config.read_text().replace("name: run\n", "")
    (tmp_path / "mine.yaml").write_text(text)
    result = run_tool("mine.yaml", "stages.0.steps=1", "threads=1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "mine" / "checkpoint-1.pt").exists()
    again = run_tool("mine.yaml", "stages.0.steps=1", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr == (
        "train.py: runs/mine: holds a run already; add --resume to go on with it, or give another output=FOLDER\n"
    )


def test_wrong_words_are_one_line_and_status_2(config: Path, tmp_path: Path) -> None:
    for words, message in (
        (["stages.0.stepz=3"], "stages.0.stepz: unknown key; did you mean 'steps'?"),
        ([f"output={tmp_path}", "device=cuda:99"], "device=cuda:99"),
    ):
        result = run_tool(config, *words)
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert run_tool(config, "stages.0.stepz=3").returncode == 2
    assert run_tool(tmp_path / "none.yaml").returncode == 2


def test_without_words_only_the_config_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train_tool([])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error == "train.py: the following arguments are required: config (see train.py --help)\n"


def test_data_that_is_not_there_is_one_line_and_status_1(config: Path, tmp_path: Path) -> None:
    result = run_tool(config, f"output={tmp_path / 'run'}", f"stages.0.data.0.path={tmp_path / 'nothing'}")
    assert result.returncode == 1
    assert str(tmp_path / "nothing") in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("3:50:00", 13_800), ("50:00", 3000), ("230m", 13_800), ("3.5h", 12_600), ("1d", 86_400)]
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "h", "-1h", "0s", "nan:00", "1:x", "infh"])
def test_other_words_are_no_time(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train_tool(["demo", f"--max-time={text}"])
    assert stop.value.code == 2
    assert "is no time; write 3:50:00, 230m or 3.5h" in capsys.readouterr().err


def test_a_time_limit_counts_from_the_start_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert time_left(100.0) == 100.0
    monkeypatch.setenv(STARTED_VARIABLE, str(time.monotonic() - 60))
    assert time_left(100.0) == pytest.approx(40, abs=5)
    assert time_left(None) is None


def test_shipped_configs_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "demo.yaml"):
        config = load_config(Path(name))
        assert (config.name, config.stages[0].name) == ("demo", "shapes")
    with pytest.raises(ConfigError, match=r"demmo: is not there; give the path of a YAML file; shipped: demo, "):
        load_config(Path("demmo"))
    (tmp_path / "demo.yaml").write_text("stages: []\n")
    with pytest.raises(ConfigError, match="stages is empty"):
        load_config(Path("demo.yaml"))


def test_arguments_that_do_not_go_together_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in ((["demo", "--force"], "--force goes with --resume"), (["demo", "--replay", "x"], "alone")):
        with pytest.raises(SystemExit) as stop:
            train_tool(words)
        error = capsys.readouterr().err
        assert (stop.value.code, error.count("\n")) == (2, 1)
        assert message in error
