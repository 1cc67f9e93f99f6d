"""MTMFI through the program: trained from a config, resumed, with a cache, and its checkpoint segments videos."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from models.released import load
from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.sources.moving_shapes import MovingShapes, write_moving_shapes
from tests.trainers.small_runs import assert_equal_states, plain_config
from tools.segment import segment
from trainers.config import Config, ConfigError, load_config, make_config
from trainers.objectives.mtmfi import MtmfiObjectiveOptions
from trainers.running.distributed import Ranks, Threads
from trainers.running.stages import Place
from trainers.running.target_prefit import prefit
from trainers.running.training import train

CONFIGS = Path(__file__).resolve().parents[2] / "trainers" / "configs"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_moving_shapes(
        folder / "raw", MovingShapes(num_train=2, num_val=1, num_frames=4, height=72, width=96, max_objects=2)
    )
    request = BuildRequest("davis2017", (folder / "raw",), folder)
    build(request, make_plan(request), silent)
    return request.root


def config(shards: Path, output: Path, *, steps: int = 3, **objective: Any) -> Config:
    values = plain_config(shards, output)
    values["model"] = {"name": "mtmfi", "trunk": "resnet18", "base": 8}
    values["stages"][0] |= {
        "steps": steps,
        "data": [{"path": str(shards), "split": "train"}],
        "recipe": {"name": "mtmfi", "size": [48, 64], "visibility": "area"},
        "learning_rate": [[0.0, 1.0e-3]],
        "optimizer": {"amsgrad": True},
        "objective": {
            "name": "mtmfi",
            "num_channels": 4,
            "num_samples": 3,
            "hole": "smooth",
            "init_iterations": [3],
            "update_iterations": [2],
            "fit_at_once": 1,
            **objective,
        },
    }
    values["report_every"] = values["checkpoint_every"] = 1
    return make_config(values, source="test")


def kept_shares(folder: Path) -> list[float]:
    """The share of target models that came from the cache, step by step."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [line["targets_kept"] for line in lines if "targets_kept" in line]


@pytest.mark.usefixtures("one_thread")
def test_models_that_two_processes_fitted_before_leave_nothing_to_fit_and_the_same_weights(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ahead = config(shards, tmp_path / "ahead", steps=2, cache=True)
    counts: list[int] = []
    for rank in (0, 1, 0):
        place = Place(Ranks(rank, 2, rank), torch.device("cpu"), Threads(1, 1))
        done = prefit(ahead, 0, place, on_start=counts.append, on_fit=lambda _: None)
        assert done.fitted == counts[-1]
    assert abs(counts[0] - counts[1]) <= 1
    assert counts[2] == 0
    (report,) = done.caches
    assert report.models == counts[0] + counts[1]
    train(config(shards, tmp_path / "plain", steps=2))
    with caplog.at_level(logging.INFO):
        train(ahead)
    assert f"{report.models} target models" in caplog.text
    assert kept_shares(tmp_path / "plain") == [0, 0]
    assert kept_shares(tmp_path / "ahead") == [1, 1]
    assert_equal_states(tmp_path / "plain" / "checkpoint-2.pt", tmp_path / "ahead" / "checkpoint-2.pt")
    (folder,) = (shards / "target_models").iterdir()
    assert {path.suffix for path in folder.iterdir()} == {".json", ".bin"}


def test_a_stage_without_a_cache_cannot_be_fitted_before(shards: Path, tmp_path: Path) -> None:
    place = Place(Ranks(), torch.device("cpu"), Threads(1, 1))
    with pytest.raises(ConfigError, match="keeps no target models"):
        prefit(config(shards, tmp_path), 0, place, on_start=lambda _: None, on_fit=lambda _: None)


@pytest.mark.usefixtures("one_thread")
def test_a_resumed_run_ends_as_one_that_was_never_stopped(shards: Path, tmp_path: Path) -> None:
    train(config(shards, tmp_path / "run", steps=2))
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    (tmp_path / "run" / "checkpoint-2.pt").unlink()
    train(config(shards, tmp_path / "run", steps=2, cache=True), resume=True)
    assert_equal_states(tmp_path / "whole" / "checkpoint-2.pt", tmp_path / "run" / "checkpoint-2.pt")


@pytest.mark.usefixtures("one_thread")
def test_a_checkpoint_segments_videos(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(shards, tmp_path / "run", steps=1))
    weights = tmp_path / "run" / "checkpoint-1.pt"
    assert load("mtmfi", weights).refiner.variant == "bise"
    words = ["--model", "mtmfi", "--weights", str(weights), str(shards), str(tmp_path / "out")]
    more = ["--fast", "--target-channels", "4", "--hole", "grey", "--shorter-side", "48", "--threads", "1"]
    assert segment([*words, *more]) == 0
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert len(list(folder.glob("*.png"))) == 4
    assert segment([*words, *more]) == 0
    assert f"skipped, finished before: {folder.name}" in capsys.readouterr().out


def test_arguments_of_another_method_are_refused(shards: Path, tmp_path: Path) -> None:
    words = ["--model", "rde", "--weights", "w.pt", str(shards), str(tmp_path / "out"), "--merging", "once"]
    with pytest.raises(SystemExit) as stopped:
        segment(words)
    assert stopped.value.code == 2


def test_target_models_of_clips_that_are_augmented_are_never_kept(shards: Path, tmp_path: Path) -> None:
    values = config(shards, tmp_path, cache=True)
    stage = dataclasses.replace(
        values.stages[0], objective=MtmfiObjectiveOptions(), recipe={"name": "rde_video", "size": 64}
    )
    with pytest.raises(ValueError, match=r"recipe rde_video draws .* set objective\.cache: false"):
        dataclasses.replace(stage, objective=MtmfiObjectiveOptions(cache=True))


@pytest.mark.parametrize("name", ["mtmfi", "mtmfi_initial", "frtm", "mtmfi_overfit", "mtmfi_small"])
def test_published_recipes_are_configs(name: str) -> None:
    values = load_config(CONFIGS / f"{name}.yaml")
    assert values.model.name == "mtmfi"
    for stage in values.stages:
        assert stage.optimizer.amsgrad
        assert stage.objective.name == "mtmfi"
        assert stage.weight_decay == 1e-5


def test_learning_rates_fall_after_the_published_epochs() -> None:
    (stage,) = load_config(CONFIGS / "frtm.yaml").stages
    per_epoch = stage.steps / 260
    epochs = [progress * 260 for progress, _ in stage.learning_rate.rows]
    assert epochs == pytest.approx([0, 127, 254], abs=0.01)
    assert [value for _, value in stage.learning_rate.rows] == [1e-3, 1e-4, 1e-5]
    assert per_epoch == sum(entry.clips_per_pass or 0 for entry in stage.data) / stage.batch_size


def test_a_trunk_that_learns_and_a_cache_are_refused_before_anything_starts(shards: Path, tmp_path: Path) -> None:
    values = plain_config(shards, tmp_path)
    values["model"] = {"name": "mtmfi", "trunk": "resnet18", "base": 8, "train_trunk": True}
    values["stages"][0] |= {"recipe": {"name": "mtmfi", "size": 64}, "objective": {"name": "mtmfi", "cache": True}}
    with pytest.raises(ConfigError, match=r"trunk that learns.*set objective\.cache: false"):
        make_config(values, source="test")


def test_a_misspelt_variant_names_the_right_ones(shards: Path, tmp_path: Path) -> None:
    values = plain_config(shards, tmp_path)
    values["model"] = {"name": "mtmfi", "variant": "bice"}
    with pytest.raises(ConfigError, match="bise"):
        make_config(values, source="test")
