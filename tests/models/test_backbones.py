"""ImageNet weights from a local file: names mapped, everything else refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.backbones import BiasedResNet18Trunk, FrozenBatchNorm, ResNet50Trunk, load_imagenet
from models.rde import Rde
from tests.models.deterministic_fill import fill_weights

BASE = 4


def _torchvision_state(trunk: torch.nn.Module, *, convolution_biases: bool) -> dict[str, Tensor]:
    """A file as torchvision writes it: first stage `layer1`, three input channels, `layer4` and `fc` besides."""
    fill_weights(trunk)
    state = {name.replace("res2.", "layer1."): tensor.clone() for name, tensor in trunk.state_dict().items()}
    state["conv1.weight"] = state["conv1.weight"][:, :3].clone()
    if not convolution_biases:
        state = {name: tensor for name, tensor in state.items() if not _is_convolution_bias(name)}
    return {**state, "layer4.0.conv1.weight": torch.ones(2, 2), "fc.weight": torch.ones(3, 2), "fc.bias": torch.ones(3)}


def _is_convolution_bias(name: str) -> bool:
    return name.endswith(".bias") and ("conv" in name or "downsample.0" in name)


def _saved(state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "resnet.pth"
    torch.save(state, path)
    return path


def test_batch_norm_uses_its_running_statistics_in_training_mode() -> None:
    ours, theirs = FrozenBatchNorm(6), torch.nn.BatchNorm2d(6).eval()
    fill_weights(ours)
    theirs.load_state_dict(ours.state_dict())
    features = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours.train()(features), theirs(features))


def test_the_first_stage_of_a_resnet_50_file_becomes_res2(tmp_path: Path) -> None:
    state = _torchvision_state(ResNet50Trunk(BASE), convolution_biases=True)
    trunk = ResNet50Trunk(BASE)
    load_imagenet(trunk, _saved(state, tmp_path))
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, state[name.replace("res2.", "layer1.")]), name


def test_a_resnet_18_file_fills_the_image_channels_and_zeroes_the_convolution_biases(tmp_path: Path) -> None:
    state = _torchvision_state(BiasedResNet18Trunk(5, BASE), convolution_biases=False)
    trunk = BiasedResNet18Trunk(5, BASE)
    masks_before = trunk.conv1.weight[:, 3:].clone()
    load_imagenet(trunk, _saved(state, tmp_path))
    assert torch.equal(trunk.conv1.weight[:, :3], state["conv1.weight"])
    assert torch.equal(trunk.conv1.weight[:, 3:], masks_before)
    filled = trunk.state_dict()
    biases = [name for name in filled if _is_convolution_bias(name)]
    assert len(biases) == 1 + 12 + 2
    assert all(filled[name].eq(0).all() for name in biases)
    assert torch.equal(filled["layer3.1.bn2.bias"], state["layer3.1.bn2.bias"])


def test_files_older_than_batch_counters_are_read(tmp_path: Path) -> None:
    state = _torchvision_state(ResNet50Trunk(BASE), convolution_biases=True)
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    trunk = ResNet50Trunk(BASE)
    load_imagenet(trunk, _saved(old, tmp_path))
    assert torch.equal(trunk.get_buffer("layer3.5.bn3.running_var"), state["layer3.5.bn3.running_var"])


def test_every_difference_is_listed_and_the_trunk_is_untouched(tmp_path: Path) -> None:
    trunk = ResNet50Trunk(BASE)
    state = _torchvision_state(ResNet50Trunk(BASE), convolution_biases=True)
    del state["layer2.0.conv1.weight"], state["layer1.0.bn1.weight"]
    state["layer5.weight"] = torch.ones(1)
    state["bn1.bias"] = torch.ones(BASE + 1)
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    with pytest.raises(ValueError, match=r"not ImageNet weights") as caught:
        load_imagenet(trunk, _saved(state, tmp_path))
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "resnet.pth"))
    for problem in (
        "missing layer2.0.conv1.weight",
        "missing res2.0.bn1.weight",
        "unexpected layer5.weight",
        "bn1.bias is [5], expected [4]",
    ):
        assert problem in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())


def test_imagenet_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    state = _torchvision_state(ResNet50Trunk(BASE), convolution_biases=True)
    state["bn1.bias"] = torch.full((BASE,), torch.nan)
    with pytest.raises(ValueError, match=r"resnet\.pth: expected finite weights, found NaN or infinity in bn1\.bias"):
        load_imagenet(ResNet50Trunk(BASE), _saved(state, tmp_path))


def test_rde_takes_its_trunks_from_files_and_then_has_nothing_to_warn_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key_path, value_path = tmp_path / "key.pth", tmp_path / "value.pth"
    key_state = _torchvision_state(ResNet50Trunk(BASE), convolution_biases=True)
    value_state = _torchvision_state(BiasedResNet18Trunk(5, BASE), convolution_biases=False)
    torch.save(key_state, key_path)
    torch.save(value_state, value_path)
    model = Rde(width=BASE / 64, key_weights=key_path, value_weights=value_path)
    assert caplog.messages == []
    assert torch.equal(model.key_encoder.conv1.weight, key_state["conv1.weight"])
    assert torch.equal(model.get_parameter("value_encoder.layer3.1.conv2.weight"), value_state["layer3.1.conv2.weight"])
    mask_channels = model.value_encoder.conv1.weight[:, 3:].flatten(1)
    torch.testing.assert_close(mask_channels @ mask_channels.T, torch.eye(BASE), atol=1e-5, rtol=0)


def test_a_file_that_holds_no_weights_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "page.pth"
    path.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.pth: expected a checkpoint of tensors written by torch\.save"):
        load_imagenet(ResNet50Trunk(BASE), path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"page\.pth: expected a state dict .* found a list"):
        load_imagenet(ResNet50Trunk(BASE), path)


def test_an_image_shared_by_objects_gives_the_features_of_each_joined_input() -> None:
    trunk = BiasedResNet18Trunk(5, BASE)
    fill_weights(trunk)
    generator = torch.Generator().manual_seed(0)
    image, planes = torch.randn(2, 3, 32, 48, generator=generator), torch.randn(2, 3, 2, 32, 48, generator=generator)
    joined = torch.cat([image.unsqueeze(1).expand(-1, 3, -1, -1, -1), planes], 2).flatten(0, 1)
    torch.testing.assert_close(trunk.features_of_objects(image, planes), trunk.features(joined), atol=1e-5, rtol=1e-4)
