"""Runs of a few steps on a shard set of two small videos: 32-pixel clips, a sixteenth of RDE's width."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import yaml

from shards.building.build import build
from shards.building.plan import BuildRequest, make_plan
from tests.trainers.small_videos import write_tree
from trainers.config import Config, make_config
from trainers.records.checkpoints import read_checkpoint


def build_shards(folder: Path, *, num_frames: int = 6) -> Path:
    """A shard set of two videos, split "val"; returns its folder."""
    write_tree(folder / "raw", {"one": (1, 2), "two": (3,)}, num_frames=num_frames)
    request = BuildRequest("davis2017", (folder / "raw",), folder)
    build(request, make_plan(request), lambda _progress: None)
    return request.root


def plain_config(shards: Path, output: Path, **changes: object) -> dict[str, Any]:
    """A run of one stage of 6 steps, as plain values; `changes` replace top-level keys."""
    stage = {
        "name": "small",
        "steps": 6,
        "batch_size": 2,
        "data": [{"path": str(shards), "split": "val"}],
        "recipe": {"name": "rde_video", "size": 32, "max_gap": [[0, 2], [0.5, 1]]},
        "learning_rate": [[0.0, 1.0e-4], [0.5, 1.0e-5]],
        "objective": {"top_p_start_step": 2, "top_p_end_step": 4},
    }
    values = {
        "name": "run",
        "output": str(output),
        "model": {"name": "rde", "width": 0.0625},
        "stages": [stage],
        "device": "cpu",
        "threads": 1,
        "report_every": 2,
        "checkpoint_every": 2,
        "keep": 100,
        "tensorboard": False,
        "plots": False,
    }
    return values | changes


def two_stages(values: dict[str, Any]) -> dict[str, Any]:
    """The same run split into stages "small" of 2 steps and "second" of 3."""
    first, second = copy.deepcopy(values["stages"][0]), copy.deepcopy(values["stages"][0])
    first["steps"], second["steps"], second["name"] = 2, 3, "second"
    return values | {"stages": [first, second]}


def small_config(shards: Path, output: Path, **changes: object) -> Config:
    """`plain_config` as a Config."""
    return make_config(plain_config(shards, output, **changes), source="test")


def write_config(path: Path, values: dict[str, Any]) -> Path:
    """`values` as a YAML file at `path`."""
    path.write_text(yaml.safe_dump(values))
    return path


def assert_equal_states(first: Path, second: Path) -> None:
    """Weights and optimiser of two checkpoint files are equal bit for bit."""
    states = [read_checkpoint(path) for path in (first, second)]
    assert states[0].step == states[1].step
    for name, tensor in states[0].model.items():
        assert torch.equal(tensor, states[1].model[name]), name
    moments = [state.optimizer["state"] for state in states]
    assert moments[0].keys() == moments[1].keys()
    for number, moment in moments[0].items():
        for name, tensor in moment.items():
            assert torch.equal(tensor, moments[1][number][name]), (number, name)
    assert states[0].optimizer["param_groups"] == states[1].optimizer["param_groups"]
