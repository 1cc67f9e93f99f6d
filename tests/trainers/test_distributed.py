"""Ranks, devices and threads from what torchrun and the machine say; two ranks train like one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainers.small_runs import build_shards, plain_config, write_config
from trainers.checkpoints import read_checkpoint
from trainers.distributed import Ranks, Threads, choose_device, read_ranks, share_threads
from trainers.journal import read_journal

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
    with pytest.raises(ValueError, match="device=cuda but torch sees no GPU; use device=cpu or device=auto"):
        choose_device("cuda", Ranks())
    for name in ("gpu0", "meta", "mps", "cuda:x", ""):
        with pytest.raises(ValueError, match=f"unknown device {name!r}; use auto, cpu, cuda"):
            choose_device(name, Ranks())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    second = Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2)
    assert choose_device("auto", second) == choose_device("cuda", second) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="2 GPUs here, none has number 7"):
        choose_device("cuda:7", Ranks())


def test_two_ranks_take_the_same_batches_and_nearly_the_same_steps_as_one(tmp_path: Path) -> None:
    shards = build_shards(tmp_path)
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        values = plain_config(shards, folder, report_every=1, checkpoint_every=3)
        values["stages"][0]["steps"] = 3
        config = write_config(tmp_path / f"{world_size}.yaml", values)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
        result = subprocess.run(
            [*command, REPOSITORY / "tools" / "train.py", config],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("step 3/3 small") == 1
    one, two = ([r for r in read_journal(tmp_path / name) if r["kind"] == "report"] for name in ("1", "2"))
    start = next(record for record in read_journal(tmp_path / "2") if record["kind"] == "start")
    assert (start["world_size"], start["stages"][0]["clips_per_rank"]) == (2, 1)
    # Sums of float32 in another order: 1e-4 relative for the first loss, a little more after each update.
    for name in ("loss", "cross_entropy", "divergence_4", "iou_1"):
        assert [r.get(name) for r in one] == pytest.approx([r.get(name) for r in two], rel=2e-3), json.dumps(name)
    states = [read_checkpoint(tmp_path / name / "checkpoint-3.pt").model for name in ("1", "2")]
    for name, tensor in states[0].items():
        # Adam's first steps have the size of the learning rate whatever the gradient; 3 steps of 1e-4 at most apart.
        torch.testing.assert_close(tensor, states[1][name], atol=3e-4, rtol=1e-3, msg=name)


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
