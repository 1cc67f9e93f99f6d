"""Writing beside the training: what is written is what was submitted, errors come back, one write at a time."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.errors import DataError
from tests.trainers.test_checkpoints import SMALL
from trainers.config import ConfigError
from trainers.records.checkpoint_writer import CheckpointWriter, Written, copied
from trainers.records.checkpoints import (
    list_checkpoints,
    read_checkpoint,
    refuse_another_run,
    save_checkpoint,
    warn_of_other_versions,
)


def make_writer(folder: Path, written: list[Written], **changes: Any) -> CheckpointWriter:
    return CheckpointWriter(folder, **({"keep": 2, "is_kept": lambda _: False, "on_written": written.append} | changes))


def test_a_copy_is_written_so_that_training_may_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, go_on, written = torch.ones(3), threading.Event(), []

    def slow(*arguments: Any, **options: Any) -> Path:
        assert go_on.wait(30)
        return save_checkpoint(*arguments, **options)

    monkeypatch.setattr("trainers.records.checkpoint_writer.save_checkpoint", slow)
    with make_writer(tmp_path, written) as writer:
        writer.submit(replace(SMALL, model={"weight": weight}))
        writer.check()  # does not wait
        weight.zero_()  # the next update
        assert not written
        go_on.set()
        writer.finish()
        assert [entry.path.name for entry in written] == ["checkpoint-10.pt"]
    assert torch.equal(read_checkpoint(tmp_path / "checkpoint-10.pt").model["weight"], torch.ones(3))


def test_a_disk_that_fails_is_an_error_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Path:
        raise OSError("No space left on device")

    monkeypatch.setattr("trainers.records.checkpoint_writer.save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"), make_writer(tmp_path, []) as writer:
        writer.submit(SMALL)
    with make_writer(tmp_path, []) as writer:
        writer.submit(SMALL)
        with pytest.raises(OSError, match="No space left"):
            writer.finish()
        writer.check()  # said once


def test_what_is_kept_for_good_stays_beside_the_newest(tmp_path: Path) -> None:
    written: list[Written] = []
    with make_writer(tmp_path, written, keep=1, is_kept=lambda step: step % 20 == 0) as writer:
        for step in (0, 10, 20, 30, 40, 50):
            writer.submit(replace(SMALL, step=step))
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{n}.pt" for n in (50, 40, 20, 0)]
    assert [entry.step for entry in written] == [0, 10, 20, 30, 40, 50]


def test_copies_share_no_memory_and_keep_their_layout() -> None:
    image = torch.rand(1, 3, 4, 5).to(memory_format=torch.channels_last)
    copy = copied({"a": [image, (1, "x")]})
    assert copy["a"][1] == (1, "x")
    assert torch.equal(copy["a"][0], image)
    assert copy["a"][0].stride() == image.stride()
    assert copy["a"][0].data_ptr() != image.data_ptr()


def test_another_format_is_refused_with_the_commit_that_reads_it(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, replace(SMALL, versions={"commit": "abc123"}), keep=1)
    fields = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in fields.items() if name not in ("format", "trained")}, path)
    with pytest.raises(DataError, match=r"format 2, found format 1, written by commit abc123; go on with that version"):
        read_checkpoint(path)
    torch.save(fields | {"format": 3}, path)
    with pytest.raises(DataError, match="format 2, found format 3"):
        read_checkpoint(path)


def test_force_goes_on_as_another_run_but_not_with_another_network(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = SMALL.config | {"seed": 2}
    refuse_another_run(tmp_path, SMALL, config, SMALL.fingerprints, force=True)
    assert "going on as another run, by force: seed was 1 and is 2" in caplog.text
    refuse_another_run(tmp_path, SMALL, SMALL.config, [["0" * 64]], force=True)
    assert "the shard set was ffffffffffff and is 000000000000" in caplog.text
    with pytest.raises(ConfigError, match=r"model was None and is \{'width': 1\}"):
        refuse_another_run(tmp_path, SMALL, SMALL.config | {"model": {"width": 1}}, SMALL.fingerprints, force=True)


def test_parts_to_accumulate_and_validation_may_change(tmp_path: Path) -> None:
    stage = SMALL.config["stages"][0] | {"accumulate": 2}
    config = SMALL.config | {"stages": [stage], "validation": {"every": 3}}
    refuse_another_run(tmp_path, SMALL, config, SMALL.fingerprints)


def test_a_run_that_another_version_goes_on_with_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = {"commit": "a" * 40, "torch": "2", "numpy": "2.4", "nvidia-dali-cuda110": "1.34"}
    path = tmp_path / "checkpoint-10.pt"
    warn_of_other_versions(path, replace(SMALL, versions=old), old)
    assert not caplog.text
    new = {"commit": "b" * 40 + "+changes", "torch": "3", "numpy": "2.4"}
    warn_of_other_versions(path, replace(SMALL, versions=old), new)
    assert (
        "checkpoint-10.pt was written by another version: commit was aaaaaaaaaaaa and is bbbbbbbbbbbb+changes, "
        "nvidia-dali-cuda110 was 1.34 and is none, torch was 2 and is 3" in caplog.text
    )
