"""Which videos a stage trains on where its config names no split."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.errors import DataError
from tests.trainers.small_runs import plain_config
from tests.trainers.small_videos import write_tree
from trainers.config import make_config
from trainers.running.stages import open_sources


def splits_trained_on(folder: Path, *splits: str) -> list[str]:
    """Splits in the mix of a stage that names none, on a set with these."""
    raw = write_tree(folder / "raw", {"one": (1,)})
    lists = raw / "ImageSets" / "2017"
    names = (lists / "val.txt").read_text()
    (lists / "val.txt").unlink()
    for split in splits:
        (lists / f"{split}.txt").write_text(names)
    request = BuildRequest("davis2017", (raw,), folder)
    values = plain_config(build(request, make_plan(request), silent).root, folder / "run")
    del values["stages"][0]["data"][0]["split"]
    with ExitStack() as stack:
        (source,) = open_sources(make_config(values, source="test"), stack)
        return [entry.split for entry in source.mix.entries]


def test_train_is_taken_where_there_is_one_and_all_where_own_videos_have_no_other(tmp_path: Path) -> None:
    assert splits_trained_on(tmp_path / "usual", "train", "val", "all") == ["train"]
    assert splits_trained_on(tmp_path / "own", "all") == ["all"]


def test_validation_videos_are_never_trained_on_by_default(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no split 'train'; there are: val"):
        splits_trained_on(tmp_path, "val")


def test_a_set_that_is_not_there_is_named_by_its_key_with_what_to_do(tmp_path: Path) -> None:
    raw = write_tree(tmp_path / "raw", {"one": (1,)})
    request = BuildRequest("davis2017", (raw,), tmp_path)
    shards = build(request, make_plan(request), silent).root
    values = plain_config(shards, tmp_path / "run")
    values["stages"][0]["data"] = [
        {"path": str(shards), "split": "val", "repeat": 5},
        {"path": str(tmp_path / "youtube_vos"), "gap_step": 5},
    ]
    with ExitStack() as stack, pytest.raises(DataError, match="found no such folder") as error:
        open_sources(make_config(values, source="test"), stack)
    assert error.value.__notes__ == [
        f"config key stages.0.data.1.path; build it: tools/shard.py youtube_vos FOLDER {tmp_path}; "
        f"or do without it: 'stages.0.data=[{{path: {shards}, split: val, repeat: 5}}]'"
    ]
