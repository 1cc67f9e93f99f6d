"""Ranks, devices and threads from what torchrun and the machine say; two ranks train like one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.small_runs import assert_equal_states, build_shards, plain_config, write_config
from trainers.config import make_config
from trainers.records.checkpoints import load_model, read_checkpoint
from trainers.records.journal import read_journal
from trainers.running.distributed import DeviceError, Ranks, Threads, choose_device, read_ranks, share_threads
from trainers.running.stages import Place
from trainers.running.stopping import STOPPED_STATUS
from trainers.running.training import train
from trainers.running.validation import RESULTS_FOLDER, Validator

REPOSITORY = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_one_process_where_torchrun_says_nothing() -> None:
    assert read_ranks({}) == Ranks(0, 1, 0, 1)
    assert read_ranks({}).is_first


def test_torchruns_variables_become_ranks() -> None:
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert read_ranks(environment) == Ranks(5, 8, 1, 4)
    del environment["LOCAL_RANK"]
    with pytest.raises(ValueError, match="LOCAL_RANK not set though other variables"):
        read_ranks(environment)


def test_cores_are_shared_among_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    four = Ranks(rank=5, world_size=8, local_rank=1, local_world_size=4)
    assert share_threads(None, four, CPU) == Threads(compute=8, loading=2)
    assert share_threads(None, four, torch.device("cuda", 1)) == Threads(compute=2, loading=8)
    assert share_threads(1, four, CPU) == Threads(compute=1, loading=1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert share_threads(None, four, CPU) == Threads(compute=1, loading=1)


def test_a_device_that_is_not_there_is_refused_with_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", Ranks()) == CPU
    with pytest.raises(DeviceError, match="device=cuda but torch sees no GPU; use device=cpu or device=auto") as error:
        choose_device("cuda", Ranks())
    assert error.value.exit_status == 2
    for name in ("gpu0", "meta", "mps", "cuda:x", ""):
        with pytest.raises(ValueError, match=f"unknown device {name!r}; use auto, cpu, cuda"):
            choose_device(name, Ranks())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    second = Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2)
    assert choose_device("auto", second) == choose_device("cuda", second) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="2 GPUs here, none has number 7"):
        choose_device("cuda:7", Ranks())


def launch_command(*words: object) -> list[str]:
    launcher, tool = REPOSITORY / "tools" / "launch.py", REPOSITORY / "tools" / "train.py"
    return [
        sys.executable,
        str(launcher),
        "--standalone",
        "--nproc-per-node=2",
        *map(str, words[:-1]),
        str(tool),
        *words[-1],
    ]


def start_ranks(config: Path, *words: str, restarts: int = 0) -> subprocess.Popen[str]:
    """Two ranks under the launcher; logs go to a file beside the config, so that nobody waits for a full pipe."""
    with config.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            launch_command(f"--max-restarts={restarts}", [str(config), *words]),
            stdout=log,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def processes_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The ranks: children of the launcher that run the tool."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(child) for child in children if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


def reports_of(folder: Path, kind: str = "report") -> list[dict[str, Any]]:
    return [record for record in read_journal(folder) if record["kind"] == kind]


def run_values(shards: Path, output: Path) -> dict[str, Any]:
    validation = {"path": str(shards), "every": 6, "split": "val"}
    return plain_config(shards, output, report_every=1, checkpoint_every=1, validation=validation)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def two_ranks(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run of six steps on two ranks."""
    folder = tmp_path_factory.mktemp("two")
    process = start_ranks(write_config(folder / "config.yaml", run_values(shards, folder / "run")))
    assert process.wait(240) == 0, (folder / "config.log").read_text()
    log = (folder / "config.log").read_text()
    assert log.count("step 6/6 small") == 1
    assert "Warning" not in log
    return folder / "run"


def test_two_ranks_take_the_same_batches_and_nearly_the_same_steps_as_one(
    two_ranks: Path, shards: Path, tmp_path: Path
) -> None:
    train(make_config(run_values(shards, tmp_path), source="test"))
    one, two = reports_of(tmp_path), reports_of(two_ranks)
    (start,) = reports_of(two_ranks, "start")
    assert (start["world_size"], start["stages"][0]["clips_per_rank"]) == (2, 1)
    # Sums of float32 in another order: 1e-4 relative for the first loss, a little more after each update.
    for name in ("loss", "cross_entropy", "divergence_4", "iou_1"):
        assert [r.get(name) for r in one] == pytest.approx([r.get(name) for r in two], rel=5e-3), json.dumps(name)
    assert two[-1]["slowest"].startswith("rank ")
    states = [read_checkpoint(folder / "checkpoint-3.pt").model for folder in (tmp_path, two_ranks)]
    for name, tensor in states[0].items():
        # Adam's first steps have the size of the learning rate whatever the gradient; 3 steps of 1e-4 at most apart.
        torch.testing.assert_close(tensor, states[1][name], atol=3e-4, rtol=1e-3, msg=name)


def test_another_world_size_goes_on_with_the_same_batches(two_ranks: Path, shards: Path, tmp_path: Path) -> None:
    values = run_values(shards, tmp_path)
    values["stages"][0]["accumulate"] = 2
    (tmp_path / "checkpoint-4.pt").write_bytes((two_ranks / "checkpoint-4.pt").read_bytes())
    train(make_config(values, source="test"), resume=True)
    one, two = reports_of(tmp_path), reports_of(two_ranks)[4:]
    assert [r["step"] for r in one] == [r["step"] for r in two] == [5, 6]
    # Each rank had one clip, and so has each part here: only the sum of two gradients is taken elsewhere.
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], rel=1e-4)


def test_validation_on_two_ranks_has_the_figures_of_one(two_ranks: Path, shards: Path, tmp_path: Path) -> None:
    (found,) = reports_of(two_ranks, "validation")
    config = make_config(run_values(shards, two_ranks), source="test")
    assert config.validation is not None
    model, _ = load_model(two_ranks / "checkpoint-6.pt")
    validator = Validator(config.validation, "rde", model, Place(Ranks(), CPU, Threads(1, 1)), tmp_path)
    alone = validator.score(model, None, lambda: False, lambda _: None)
    assert alone is not None
    assert alone.figures == {name: found[name] for name in alone.figures}
    assert found["videos"] == 2
    assert not (two_ranks / RESULTS_FOLDER).exists()


def test_a_killed_rank_is_replaced_and_a_notice_saves_and_the_end_is_the_same_bit_for_bit(
    two_ranks: Path, shards: Path, tmp_path: Path
) -> None:
    config, folder = write_config(tmp_path / "config.yaml", run_values(shards, tmp_path / "run")), tmp_path / "run"
    process = start_ranks(config, restarts=3)
    wait_for(folder / "checkpoint-1.pt", process)
    os.kill(processes_of(process)[1], signal.SIGKILL)
    wait_for(folder / "checkpoint-3.pt", process)
    process.send_signal(signal.SIGUSR1)
    status = process.wait(240)
    log = (tmp_path / "config.log").read_text()
    assert "Traceback" not in log, log
    assert status == (STOPPED_STATUS if "stopped after step" in log else 0), log  # the notice may have come too late
    if status:
        assert start_ranks(config, "--resume").wait(240) == 0
    assert_equal_states(folder / "checkpoint-6.pt", two_ranks / "checkpoint-6.pt")
    assert [r["step"] for r in reports_of(folder)] == [1, 2, 3, 4, 5, 6]


def test_a_wrong_config_is_said_once_without_tracebacks_and_leaves_no_folder(shards: Path, tmp_path: Path) -> None:
    values = run_values(shards, tmp_path / "run")
    values["stages"][0]["batch_size"] = 3
    process = start_ranks(write_config(tmp_path / "config.yaml", values), restarts=3)
    assert process.wait(120) == 2
    lines = (tmp_path / "config.log").read_text().splitlines()
    message = "run: stages.0.batch_size: batch_size 3 does not divide by the 2 processes; use 2 or 4, or another number"
    assert lines == [f"train.py: {message} of processes"]
    assert not (tmp_path / "run").exists()


def test_ranks_that_found_different_checkpoints_do_not_start(tmp_path: Path) -> None:
    """Two machines with disks of their own: only one of them has the checkpoint."""
    values = plain_config(build_shards(tmp_path), Path("run"))
    config = write_config(tmp_path / "config.yaml", values)
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    script = tmp_path / "start_in_a_folder_of_its_own.py"
    tool = REPOSITORY / "tools" / "train.py"
    script.write_text(
        "import os, runpy, sys\n"
        f"os.chdir(os.path.join({str(tmp_path)!r}, os.environ.get('RANK', '0')))\n"
        f"sys.argv[0] = {str(tool)!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = subprocess.run(
        [sys.executable, script, config, "stages.0.steps=6"], capture_output=True, env=environment, check=True
    )
    assert b"finished after step 6" in alone.stdout
    together = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            script,
            config,
            "--resume",
        ],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert together.returncode != 0
    message = "run: processes would start from different steps: 6, 0; let every machine see the same output folder"
    assert message in together.stderr
