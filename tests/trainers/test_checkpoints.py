"""A checkpoint is whole or not there; a damaged one is found; another run's is refused by name."""

from __future__ import annotations

import errno
import io
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
import torch
from typing_extensions import Buffer

from shards.errors import DataError
from trainers.config import ConfigError
from trainers.records.checkpoints import (
    Checkpoint,
    list_checkpoints,
    read_checkpoint,
    read_newest,
    refuse_another_run,
    save_checkpoint,
)

SMALL = Checkpoint(
    step=10,
    model={"weight": torch.arange(1000.0)},
    optimizer={"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
    scaler={},
    config={"seed": 1, "device": "cpu", "stages": [{"steps": 20, "data": [{"path": "a", "repeat": 1}]}]},
    fingerprints=[["f" * 64]],
    versions={"torch": "2"},
)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "run", SMALL, keep=3)
    assert path == tmp_path / "run" / "checkpoint-10.pt"
    found = read_checkpoint(path)
    assert torch.equal(found.model["weight"], SMALL.model["weight"])
    assert (found.config, found.fingerprints, found.step) == (SMALL.config, SMALL.fingerprints, 10)
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint-10.pt"]


def test_the_newest_are_kept_by_number_not_by_spelling(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-best.pt").write_bytes(b"mine")
    for step in (8, 9, 10, 100):
        save_checkpoint(tmp_path, replace(SMALL, step=step), keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{step}.pt" for step in (100, 10, 9)]
    assert (tmp_path / "checkpoint-best.pt").exists()


def test_a_damaged_later_one_does_not_push_out_what_is_written_after_it(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-12.pt").write_bytes(b"damaged")
    for step in (8, 10):
        save_checkpoint(tmp_path, replace(SMALL, step=step), keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-12.pt", "checkpoint-10.pt"]
    save_checkpoint(tmp_path, replace(SMALL, step=12), keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-12.pt"]
    assert read_checkpoint(tmp_path / "checkpoint-12.pt").step == 12


def test_a_failed_write_leaves_the_old_file_and_no_new_one(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, SMALL, keep=3)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path, replace(SMALL, versions={"bad": (lambda: 0)}), keep=3)  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert list_checkpoints(tmp_path) == [path]


@pytest.mark.parametrize("room", [0, 3000])
def test_a_full_disk_is_one_message_and_leaves_the_checkpoints_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    path = save_checkpoint(tmp_path, SMALL, keep=1)

    @contextmanager
    def full_disk(_path: Path) -> Iterator[IO[bytes]]:
        yield FullDisk(room)

    monkeypatch.setattr("trainers.records.checkpoints.replacing", full_disk)
    with pytest.raises(OSError, match=r"checkpoint-11\.pt cannot be written .*No space left.* make room"):
        save_checkpoint(tmp_path, replace(SMALL, step=11), keep=1)
    assert list_checkpoints(tmp_path) == [path]


class FullDisk(io.BytesIO):
    """A file on a disk with so many bytes of room."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Buffer) -> int:
        if self.tell() + memoryview(data).nbytes > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_what_a_killed_writer_left_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-9.pt.0123abcd.tmp").write_bytes(b"half")
    path = save_checkpoint(tmp_path, SMALL, keep=3)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_a_clear_error(tmp_path: Path, share: float) -> None:
    path = save_checkpoint(tmp_path, SMALL, keep=3)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(
        DataError, match=r"checkpoint-10.pt: expected a complete checkpoint, found none .*; use an older"
    ):
        read_checkpoint(path)


def test_a_flipped_bit_in_a_weight_is_found(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, SMALL, keep=3)
    data = bytearray(path.read_bytes())
    place = data.index(SMALL.model["weight"].numpy().tobytes()[2000:2400]) + 100
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="expected an undamaged checkpoint, found a wrong checksum"):
        read_checkpoint(path)


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-1.pt"
    torch.save({"model": {}}, path)
    with pytest.raises(DataError, match=r"written by tools/train.py, found a file without config, fingerprints"):
        read_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(DataError, match="a file without everything"):
        read_checkpoint(path)


def test_the_newest_readable_one_is_taken_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_newest(tmp_path) is None
    for step in (1, 2):
        save_checkpoint(tmp_path, replace(SMALL, step=step), keep=3)
    (tmp_path / "checkpoint-2.pt").write_bytes(b"PK")
    with caplog.at_level(logging.WARNING):
        found = read_newest(tmp_path)
    assert found is not None
    assert (found[0].name, found[1].step) == ("checkpoint-1.pt", 1)
    assert "checkpoint-2.pt" in caplog.text
    (tmp_path / "checkpoint-1.pt").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"checkpoint-1.pt"):
        read_newest(tmp_path)


def test_what_only_moves_or_shows_a_run_may_change(tmp_path: Path) -> None:
    config = {"seed": 1, "device": "cuda", "stages": [{"steps": 20, "data": [{"path": "b", "repeat": 1}]}], "keep": 9}
    refuse_another_run(tmp_path, SMALL, config, SMALL.fingerprints)


def test_what_changes_a_run_is_refused_by_name(tmp_path: Path) -> None:
    config = {"seed": 1, "device": "cpu", "stages": [{"steps": 30, "data": [{"path": "a", "repeat": 5}]}]}
    message = (
        r"another run: stages.0.data.0.repeat was 1 and is 5, stages.0.steps was 20 and is 30; give the old values"
    )
    with pytest.raises(ConfigError, match=message):
        refuse_another_run(tmp_path, SMALL, config, SMALL.fingerprints)
    data = [{"path": "a", "repeat": [[0.0, 1], [0.5, 4]]}]
    with pytest.raises(ConfigError, match=r"run: stages.0.data.0.repeat was 1 and is \[\[0.0, 1\], \[0.5, 4\]\]; give"):
        refuse_another_run(
            tmp_path, SMALL, SMALL.config | {"stages": [{"steps": 20, "data": data}]}, SMALL.fingerprints
        )
    with pytest.raises(ConfigError, match="the shard set was ffffffffffff and is 000000000000"):
        refuse_another_run(tmp_path, SMALL, SMALL.config, [["0" * 64]])
    with pytest.raises(ConfigError, match=r"seed was 1 and is 2, stages.0.data.0: the shard set was ffffffffffff"):
        refuse_another_run(tmp_path, SMALL, SMALL.config | {"seed": 2}, [["0" * 64]])


def test_a_row_that_comes_or_goes_and_a_section_of_another_kind_are_named_and_not_told(tmp_path: Path) -> None:
    stage = SMALL.config["stages"][0] | {"recipe": {"name": "rde_video", "shear": 10}}
    old = replace(SMALL, config=SMALL.config | {"stages": [stage]})
    rows = {"data": [*stage["data"], {"path": "b", "repeat": 2}], "recipe": {"name": "rde_bl30k", "shear": 9}}
    new = SMALL.config | {"stages": [stage | rows, {"name": "late", "steps": 9, "data": []}]}
    message = (
        r"another run: stages.0.data.1 was None and is 'b', stages.0.recipe.name was 'rde_video' and is 'rde_bl30k', "
        r"stages.1 was None and is 'late'; give"
    )
    with pytest.raises(ConfigError, match=message):
        refuse_another_run(tmp_path, old, new, [["f" * 64, "0" * 64], []])


def test_no_flipped_bit_gets_through_or_stops_the_search_for_an_older_one(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, SMALL, keep=1)
    data, generator = path.read_bytes(), random.Random(5)
    ends = [*range(1200), *range(len(data) - 800, len(data))]  # where names, sizes and places of the parts are
    damaged = 0
    for _ in range(400):
        place, flipped = generator.choice(ends), bytearray(data)
        flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            found = read_checkpoint(path)
        except DataError:
            damaged += 1
            continue
        assert torch.equal(found.model["weight"], SMALL.model["weight"]), place  # a bit that means nothing
        assert (found.config, found.step) == (SMALL.config, 10)
    assert damaged > 200
