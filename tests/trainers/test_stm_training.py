"""STM-Cycle through the trainer: configs, a small run, exact resume, and a checkpoint that segments."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from models.released import load
from models.stm import Stm
from tests.trainers.small_runs import assert_equal_states, build_shards, plain_config, write_config
from tests.trainers.test_distributed import reports_of, start_ranks
from trainers.benchmarks.stm_step import LOOP, OURS, StmStepSize, time_stm_steps
from trainers.config import Config, ConfigError, load_config, make_config
from trainers.methods import METHODS
from trainers.records.checkpoints import read_checkpoint
from trainers.running.training import train

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = Path(__file__).resolve().parents[2] / "trainers" / "configs"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tmp_path_factory.mktemp("shards"))


def stm_values(shards: Path, output: Path) -> dict[str, Any]:
    """Four steps of two clips with frames of no even size."""
    values = plain_config(shards, output, model={"name": "stm", "arch": "resnet18", "width": 0.0625})
    stage = values["stages"][0]
    stage |= {"steps": 4, "recipe": {"name": "stm_cycle", "size": [33, 47], "max_gap": [[0, 2]]}}
    stage["objective"] = {"name": "stm_cycle"}
    return values


def config_of(values: dict[str, Any]) -> Config:
    return make_config(values, source="test")


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(shards: Path, tmp_path: Path) -> None:
    whole, halves = stm_values(shards, tmp_path / "whole"), stm_values(shards, tmp_path / "halves")
    losses: list[float] = []
    train(config_of(whole), on_step=lambda _, loss: losses.append(loss))
    train(config_of(halves))
    (tmp_path / "halves" / "checkpoint-4.pt").unlink()
    train(config_of(halves), resume=True)
    assert len(losses) == 4
    assert all(0 < loss < 20 for loss in losses)
    ends = [tmp_path / name / "checkpoint-4.pt" for name in ("whole", "halves")]
    assert_equal_states(*ends)
    start, end = _start(whole), read_checkpoint(ends[0]).model
    moved = [name for name, tensor in end.items() if not torch.equal(tensor, start[name])]
    assert "Encoder_M.conv1_bg.weight" in moved
    assert not [name for name in moved if "running" in name]


def test_a_checkpoint_is_loaded_as_the_authors_files_are(shards: Path, tmp_path: Path) -> None:
    train(config_of(stm_values(shards, tmp_path / "run")))
    loaded = load("stm", tmp_path / "run" / "checkpoint-4.pt")
    assert isinstance(loaded, Stm)
    _assert_equal(loaded.state_dict(), read_checkpoint(tmp_path / "run" / "checkpoint-4.pt").model)


def test_accumulating_gradients_changes_rounding_only(shards: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    for parts in (1, 2):
        values = stm_values(shards, tmp_path / str(parts))
        values["stages"][0] |= {"accumulate": parts, "steps": 2}
        train(config_of(values), on_step=lambda _, loss: losses.append(loss))
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-4)


def test_a_run_starts_from_the_weights_of_a_file(shards: Path, tmp_path: Path) -> None:
    values = stm_values(shards, tmp_path / "run")
    path = tmp_path / "released.pth.tar"
    given = Stm(arch="resnet18", width=0.0625, generator=torch.Generator().manual_seed(9))
    torch.save({"epoch": 3, "state_dict": given.state_dict(), "max_skip": [5]}, path)
    train(config_of(values | {"start_from": str(path)}))
    _assert_equal(read_checkpoint(tmp_path / "run" / "checkpoint-0.pt").model, given.state_dict())


def test_two_ranks_train_as_one(shards: Path, tmp_path: Path) -> None:
    """One clip each: only the sum of two gradients is taken elsewhere, so losses differ by rounding."""
    for name in ("one", "two"):
        values = stm_values(shards, tmp_path / name) | {"report_every": 1}
        values["stages"][0]["accumulate"] = 2 if name == "one" else 1
        if name == "one":
            train(config_of(values))
            continue
        process = start_ranks(write_config(tmp_path / "two.yaml", values))
        assert process.wait(240) == 0, (tmp_path / "two.log").read_text()
        assert "Warning" not in (tmp_path / "two.log").read_text()
    one, two = (reports_of(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 4
    for number in ("loss", "forward", "cycle", "gates_open", "iou_loss"):
        assert [report[number] for report in one] == pytest.approx([report[number] for report in two], rel=1e-3), number
    (start,) = reports_of(tmp_path / "two", "start")
    assert (start["world_size"], start["stages"][0]["clips_per_rank"]) == (2, 1)


@pytest.mark.parametrize("name", ["stm_cycle", "stm_cycle_dali", "stm_cycle_corrected"])
def test_the_published_recipes_hold_the_published_numbers(name: str) -> None:
    stage = load_config(CONFIGS / f"{name}.yaml").stages[0]
    recipe = stage.clip_recipe()
    assert (recipe.num_frames, recipe.size, recipe.num_slots) == (3, (240, 427), 5)
    assert (stage.learning_rate.rows, stage.weight_decay) == (((0.0, 1e-5),), 5e-4)
    assert [(entry.repeat, entry.gap_step) for entry in stage.data] == [(5, 1), (1, 5)]
    assert stage.batch_size == 4
    assert stage.steps == 240 * (5 * 60 + 3471) // 4
    assert recipe.normalisation.mean[0] == (0.45 if name == "stm_cycle_dali" else 0.485)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": "stm", "arch": "resnet34"}}, "resnet18"),
        ({"model": {"name": "stm", "width": 0.1}}, "multiple of 1/16"),
        ({"model": {"name": "stm", "weight": "x"}}, "did you mean 'weights'"),
        ({"model": {"name": "rde"}}, "the model is rde"),
        ({"activation_checkpointing": "maybe"}, "activation_checkpointing"),
    ],
)
def test_a_wrong_config_is_refused_with_a_remedy(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = copy.deepcopy(stm_values(tmp_path, tmp_path)) | change
    with pytest.raises(ConfigError, match=message):
        config_of(values)


def test_the_step_and_the_loop_it_is_measured_beside_have_one_loss() -> None:
    size = StmStepSize(width=0.0625, size=(32, 48), batch_size=2)
    costs = time_stm_steps(size, rounds=1)
    assert costs[OURS].loss == pytest.approx(costs[LOOP].loss, rel=1e-5)
    assert min(cost.step_ms for cost in costs.values()) > 0


def _assert_equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def _start(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights before the first step."""
    config = config_of(values)
    generator = torch.Generator().manual_seed(config.seed)
    model = METHODS["stm"].build(config.model, config.stages[0].objective, generator)
    return dict(model.state_dict())
