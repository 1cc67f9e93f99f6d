"""One run from still images to video: the network grows between the stages, also where the run is resumed there."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.rde import Rde
from models.released_rde import VALUE_STEM, advance, start_from
from shards.building.build import build as build_shard_set
from shards.building.build import silent
from shards.building.plan import BuildRequest, make_plan
from shards.errors import DataError
from tests.conftest import REPOSITORY
from tests.trainers.small_runs import assert_equal_states, build_shards, plain_config, write_config
from trainers.config import make_config
from trainers.looking.sheets import clip_sheet
from trainers.records.checkpoints import load_model, read_checkpoint
from trainers.records.journal import read_journal
from trainers.running.training import train


def build_stills(folder: Path) -> Path:
    """A shard set of three still images with soft masks."""
    rng = np.random.default_rng(0)
    (folder / "raw" / "few").mkdir(parents=True)
    for name in "abc":
        mask = np.zeros((60, 80), np.uint8)
        mask[10:40, 20:60], mask[9, 20:60] = 255, 100
        Image.fromarray(mask).save(folder / "raw" / "few" / f"{name}.png")
        image = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)
        Image.fromarray(image).save(folder / "raw" / "few" / f"{name}.jpg", quality=95)
    request = BuildRequest("static", (folder / "raw",), folder)
    build_shard_set(request, make_plan(request), silent)
    return request.root


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two steps of still images, then three of video, saved after each."""
    folder = tmp_path_factory.mktemp("sets")
    plain = plain_config(build_shards(folder / "video"), folder / "unused", checkpoint_every=1)
    still, video = copy.deepcopy(plain["stages"][0]), plain["stages"][0]
    still |= {
        "name": "stills",
        "steps": 2,
        "data": [{"path": str(build_stills(folder / "stills")), "split": "few"}],
        "recipe": {"name": "rde_static", "size": 32, "spline": 0.5},
        "objective": {"name": "rde_still", "top_p_start_step": 0, "top_p_end_step": 1},
    }
    return plain | {"stages": [still, video | {"name": "video", "steps": 3}]}


@pytest.fixture(scope="module")
def whole(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(make_config(values | {"output": str(folder)}, source="test"))
    return folder


def test_the_network_grows_between_the_stages(whole: Path) -> None:
    end_of_stills, video = (read_checkpoint(whole / f"checkpoint-{step}.pt").model for step in (2, 3))
    assert (len(end_of_stills), len(video)) == (405, 435)
    assert (end_of_stills[VALUE_STEM].shape[1], video[VALUE_STEM].shape[1]) == (4, 5)
    # One step of video at a rate of 1e-4 moves no weight by more than Adam allows: the weights were carried over.
    for name, tensor in end_of_stills.items():
        carried = video[name][:, :4] if name == VALUE_STEM else video[name]
        assert (carried.float() - tensor.float()).abs().max() < 1.1e-4, name
    names = [record["stage"] for record in read_journal(whole) if record["kind"] == "report"]
    assert names == ["stills", "video", "video"]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_resuming_before_at_and_after_the_border_ends_bit_for_bit_alike(
    values: dict[str, Any], whole: Path, tmp_path: Path, step: int
) -> None:
    config = make_config(values | {"output": str(tmp_path / "run")}, source="test")
    config.folder.mkdir()
    name = f"checkpoint-{step}.pt"
    (config.folder / name).write_bytes((whole / name).read_bytes())
    train(config, resume=True)
    assert_equal_states(config.folder / "checkpoint-5.pt", whole / "checkpoint-5.pt")


def test_a_run_stopped_at_the_border_goes_on_alike(values: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    config = make_config(values | {"output": str(tmp_path / "run")}, source="test")

    def stop_at_the_first(step: int, _loss: float) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(config, on_step=stop_at_the_first).step == 2
    assert train(config, resume=True).step == 5
    assert_equal_states(config.folder / "checkpoint-5.pt", whole / "checkpoint-5.pt")


def test_the_network_grows_alike_on_two_ranks(values: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "two.yaml", values | {"output": str(tmp_path / "run")})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*command, str(REPOSITORY / "tools" / "train.py"), str(config)]
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    one, two = (read_checkpoint(folder / "checkpoint-5.pt").model for folder in (whole, tmp_path / "run"))
    assert two[VALUE_STEM].shape[1] == 5
    for name, tensor in one.items():
        # A new channel or SAM drawn otherwise would be off by its own size; 5 steps of Adam are 5e-4 at most apart.
        torch.testing.assert_close(tensor, two[name], atol=5e-4, rtol=1e-3, msg=name)


def test_a_checkpoint_knows_the_kind_of_its_network(whole: Path) -> None:
    still, _ = load_model(whole / "checkpoint-2.pt")
    video, _ = load_model(whole / "checkpoint-5.pt")
    assert (still.mem_compress is None, video.mem_compress is None) == (True, False)


def test_growing_in_a_run_is_growing_from_a_file(whole: Path, tmp_path: Path) -> None:
    earlier, _ = load_model(whole / "checkpoint-2.pt")
    before = {name: tensor.clone() for name, tensor in earlier.state_dict().items()}
    later = advance(earlier, torch.Generator().manual_seed(4))  # type: ignore[arg-type]
    again = advance(earlier, torch.Generator().manual_seed(4))  # type: ignore[arg-type]
    from_file = Rde(width=0.0625)
    start_from(from_file, whole / "checkpoint-2.pt", torch.Generator().manual_seed(4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in earlier.state_dict().items())
    for name, tensor in later.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        if not name.startswith("mem_compress."):  # whose start a new model draws before it reads the file
            assert torch.equal(tensor, from_file.state_dict()[name]), name
    spread = [later.state_dict()[f"mem_compress.compress_{kind}.weight"].std().item() for kind in ("key", "value")]
    fresh = [from_file.state_dict()[f"mem_compress.compress_{kind}.weight"].std().item() for kind in ("key", "value")]
    assert spread == pytest.approx(fresh, rel=0.15)


def test_a_grown_network_cannot_grow_again(whole: Path) -> None:
    later, _ = load_model(whole / "checkpoint-5.pt")
    with pytest.raises(ValueError, match="has 5 input channels, expected the 4 of stage 0"):
        advance(later, torch.Generator())  # type: ignore[arg-type]


def test_video_weights_do_not_start_a_stage_of_stills(values: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    changes = {"output": str(tmp_path / "run"), "start_from": str(whole / "checkpoint-5.pt")}
    with pytest.raises(ValueError, match="expected the 405 entries of Rde, found 31 differences"):
        train(make_config(values | changes, source="test"))


def test_stills_are_previewed_as_video_is(values: dict[str, Any]) -> None:
    picture = clip_sheet(make_config(values, source="test"), stage=0, step=1)
    assert picture.size[0] > 4 * 128 - 40


def test_a_stage_on_masks_of_the_other_kind_is_refused_before_it_starts(values: dict[str, Any], tmp_path: Path) -> None:
    wrong = copy.deepcopy(values) | {"output": str(tmp_path / "run")}
    wrong["stages"][1]["data"] = wrong["stages"][0]["data"]
    with pytest.raises(DataError, match="expected label maps of video"):
        train(make_config(wrong, source="test"))
    # The lock comes first and stays; nothing of a run does.
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_activation_checkpointing_survives_the_border(values: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    config = make_config(values | {"output": str(tmp_path / "run"), "activation_checkpointing": True}, source="test")
    train(config)
    losses = [[r["loss"] for r in read_journal(run) if r["kind"] == "report"] for run in (whole, config.folder)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert train(make_config(values | {"output": str(config.folder)}, source="test"), resume=True).step == 5
