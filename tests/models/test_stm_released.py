"""Files of STM-Cycle's weights: both containers, ours, and those that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.released import load
from models.released_stm import start_from
from models.stm import Stm

State = dict[str, Tensor]
CONTAINERS: dict[str, Callable[[State], object]] = {
    "bare": lambda state: state,
    "the authors'": lambda state: {"epoch": 240, "state_dict": state, "max_skip": [100] * 5 + [57]},
    "ours": lambda state: {"step": 9, "model": state, "config": {}},
}


def _saved(content: object, folder: Path) -> Path:
    path = folder / "weights.pth.tar"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_model(container: str, small_stm: Stm, tmp_path: Path) -> None:
    loaded = load("stm", _saved(CONTAINERS[container](small_stm.state_dict()), tmp_path))
    assert not loaded.training
    for name, tensor in small_stm.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_arch_is_read_from_the_file(tmp_path: Path) -> None:
    model = Stm(arch="resnet50", width=0.0625)
    loaded = load("stm", _saved(model.state_dict(), tmp_path))
    assert isinstance(loaded, Stm)
    assert loaded.KV_Q_r4.Key.weight.shape == (8, 64, 3, 3)


def test_what_nothing_reads_may_be_missing_and_nothing_else(small_stm: Stm, tmp_path: Path) -> None:
    unread = (".mean", ".std", "num_batches_tracked")
    state = {name: tensor for name, tensor in small_stm.state_dict().items() if not name.endswith(unread)}
    load("stm", _saved(state, tmp_path))
    del state["Encoder_M.bn1.running_mean"]
    with pytest.raises(ValueError, match=r"found 1 difference;.*\n  missing Encoder_M.bn1.running_mean"):
        load("stm", _saved(state, tmp_path))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_official_weights_are_refused_with_the_reason(prefix: str, small_stm: Stm, tmp_path: Path) -> None:
    state = {prefix + name.replace("conv1_bg", "conv1_o"): t for name, t in small_stm.state_dict().items()}
    with pytest.raises(ValueError, match=r"conv1_o.*other objects' masks.*what is not the object"):
        load("stm", _saved(state, tmp_path))
    with pytest.raises(ValueError, match="official STM"):
        start_from(small_stm, _saved(state, tmp_path))


def test_names_of_a_wrapped_model_are_refused_with_a_hint(small_stm: Stm, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in small_stm.state_dict().items()}
    with pytest.raises(ValueError, match=r"names begin with 'module\.'"):
        load("stm", _saved(state, tmp_path))


def test_weights_that_are_not_finite_are_refused(small_stm: Stm, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in small_stm.state_dict().items()}
    state["Decoder.pred2.bias"][1] = float("nan")
    with pytest.raises(ValueError, match=r"Decoder\.pred2\.bias"):
        load("stm", _saved(state, tmp_path))
