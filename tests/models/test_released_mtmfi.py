"""Released checkpoints of MTMFI and FRTM, made here in their layout: read without running what they name."""

from __future__ import annotations

import collections
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from models.frozen_trunk import FrozenTrunk, load_trunk
from models.mtmfi import Mtmfi
from models.released_mtmfi import load


@pytest.fixture(scope="module")
def network() -> Mtmfi:
    logging.disable(logging.WARNING)
    model = Mtmfi("bise", "resnet18", generator=torch.Generator().manual_seed(7))
    logging.disable(logging.NOTSET)
    return model


@pytest.fixture
def trunk_file(network: Mtmfi, tmp_path: Path) -> Path:
    """The trunk as torchvision saves it: with a classifier, which nothing here has."""
    path = tmp_path / "trunk.pth"
    torch.save({**network.trunk.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, path)
    return path


def save_as_released(path: Path, network: Mtmfi, *, zipped: bool, extra: Any = None) -> None:
    """A checkpoint as the authors' program writes it, with meters of a class that is gone afterwards."""
    package, module = types.ModuleType("lib"), types.ModuleType("lib.utils")
    meter = type("AverageMeter", (), {"__module__": "lib.utils"})
    module.AverageMeter = meter  # type: ignore[attr-defined]
    sys.modules.update({"lib": package, "lib.utils": module})
    try:
        stats = collections.defaultdict(meter)
        stats["loss"].total = torch.ones(3)
        weights = {f"refiner.{name}": tensor for name, tensor in network.refiner.state_dict().items()}
        content = {"name": "run", "epoch": 260, "stats": stats, "model": weights, "optimizer": {}, "extra": extra}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    finally:
        del sys.modules["lib"], sys.modules["lib.utils"]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_released_file_loads_with_the_trunk_from_a_file_of_its_own(
    network: Mtmfi, trunk_file: Path, tmp_path: Path, zipped: bool
) -> None:
    save_as_released(tmp_path / "released.pth", network, zipped=zipped)
    found = load(tmp_path / "released.pth", trunk_file)
    assert found.refiner.variant == "bise"
    assert not found.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


class Intruder:
    """Pickles as a call of something with an effect."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_nothing_that_a_file_names_is_called(network: Mtmfi, trunk_file: Path, tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    save_as_released(tmp_path / "released.pth", network, zipped=True, extra=Intruder(mark))
    load(tmp_path / "released.pth", trunk_file)
    assert not mark.exists()


def test_our_own_checkpoint_needs_no_second_file(network: Mtmfi, trunk_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-1.pt"
    torch.save({"model": network.state_dict(), "step": 1}, path)
    assert torch.equal(load(path).refiner.project.conv2.bias, network.refiner.project.conv2.bias)
    with pytest.raises(ValueError, match="holds its trunk"):
        load(path, trunk_file)


def test_a_released_file_alone_says_what_is_missing(network: Mtmfi, tmp_path: Path) -> None:
    save_as_released(tmp_path / "released.pth", network, zipped=True)
    with pytest.raises(ValueError, match="holds no trunk; give torchvision's V1 weights of resnet18"):
        load(tmp_path / "released.pth")


def test_every_difference_of_names_is_listed(network: Mtmfi, trunk_file: Path, tmp_path: Path) -> None:
    weights = {f"refiner.{name}": tensor for name, tensor in network.refiner.state_dict().items()}
    del weights["refiner.CAB.layer3.convreluconv.0.bias"]
    weights["refiner.CAB.layer9.convreluconv.0.bias"] = torch.zeros(1)
    torch.save({"model": weights}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"(?s)missing CAB\.layer3.*unexpected CAB\.layer9"):
        load(tmp_path / "odd.pth", trunk_file)


@pytest.mark.parametrize("content", [{"model": {"conv.weight": torch.zeros(1)}}, [1, 2], {"model": {"refiner.x": 3}}])
def test_files_of_something_else_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="give a checkpoint of MTMFI or FRTM"):
        load(tmp_path / "other.pth")


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="torch cannot read"):
        load(tmp_path / "page.pth")


def test_trunk_weights_of_another_trunk_list_the_differences(trunk_file: Path) -> None:
    with pytest.raises(ValueError, match=r"not weights of a resnet101.*missing layer1\.0\.bn3\.bias"):
        load_trunk(FrozenTrunk("resnet101"), trunk_file)


@torch.no_grad()
def test_features_have_the_strides_and_channels_of_their_names(network: Mtmfi) -> None:
    features = network.look(torch.zeros(1, 3, 96, 171))
    assert features.layer5 is not None
    assert [tuple(each.shape[1:]) for each in features] == [(512, 3, 6), (256, 6, 11), (128, 12, 22), (64, 24, 43)]  # type: ignore[union-attr]
    assert FrozenTrunk("resnet101").num_channels == {"layer5": 2048, "layer4": 1024, "layer3": 512, "layer2": 256}


def test_only_the_refiner_learns_unless_the_trunk_is_to(network: Mtmfi) -> None:
    trained = [name for name, weight in network.named_parameters() if weight.requires_grad]
    assert trained == [name for name, _ in network.named_parameters() if name.startswith("refiner.")]
    both = Mtmfi("bise", "resnet18", base=8, train_trunk=True, initialise=False)
    assert all(weight.requires_grad for weight in both.parameters())


@torch.no_grad()
def test_a_prior_is_what_the_untrained_network_says_of_every_pixel() -> None:
    model = Mtmfi("bise", "resnet18", base=8, prior=0.05, generator=torch.Generator().manual_seed(2)).eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1, 3, 64, 64, generator=generator)
    scores = [torch.rand(1, 1, 8, 8, generator=generator), torch.rand(1, 1, 4, 4, generator=generator)]
    assert model.refine(model.look(images), scores, (64, 64)).sigmoid().mean().item() == pytest.approx(0.05, abs=0.02)


@torch.no_grad()
def test_training_mode_leaves_the_trunks_statistics_alone(network: Mtmfi) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = network.look(images)
    network.train()
    found = network.look(images)
    network.eval()
    assert torch.equal(found.layer4, expected.layer4)
