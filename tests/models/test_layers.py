"""Each block against its formula written out with plain functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Aspp, Cbam, FrameConv, NonLocal, ResBlock, ShortcutConv, initialise_layers


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _initialised(layer: nn.Module) -> nn.Module:
    initialise_layers(layer, torch.Generator().manual_seed(5))
    return layer


def _as_volume(frames: Tensor, num_frames: int) -> Tensor:
    """(N*T, C, h, w) -> (N, C, T, h, w)."""
    return frames.unflatten(0, (-1, num_frames)).transpose(1, 2)


def _as_frames(volume: Tensor) -> Tensor:
    """(N, C, T, h, w) -> (N*T, C, h, w)."""
    return volume.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize(("num_frames", "dilation"), [(1, 1), (1, 4), (2, 1)])
def test_a_frame_convolution_is_a_3d_convolution(num_frames: int, dilation: int) -> None:
    layer = _initialised(FrameConv(6, 4, 3, num_frames=num_frames, dilation=dilation))
    frames = _random(2 * 2, 6, 7, 5)
    expected = F.conv3d(
        _as_volume(frames, 2),
        layer.get_parameter("weight"),
        layer.get_parameter("bias"),
        padding=(0, dilation, dilation),
        dilation=(1, dilation, dilation),
    )
    torch.testing.assert_close(layer(frames), _as_frames(expected))


def test_the_non_local_block_relates_all_positions_of_both_frames() -> None:
    block = _initialised(NonLocal(8, num_frames=2))
    frames = _random(2 * 2, 8, 5, 6)
    weights = {name: parameter.flatten(1) for name, parameter in block.named_parameters() if name.endswith("weight")}
    biases = {
        name: parameter.view(1, -1, 1, 1, 1) for name, parameter in block.named_parameters() if parameter.dim() == 1
    }

    def projected(name: str, pooled: bool) -> Tensor:
        volume = torch.einsum("oc,ncthw->nothw", weights[f"{name}.weight"], _as_volume(frames, 2))
        volume = volume + biases[f"{name}.bias"]
        return (F.max_pool3d(volume, (1, 2, 2)) if pooled else volume).flatten(2)

    theta, phi, g = projected("theta", False), projected("phi.0", True), projected("g.0", True)
    assert phi.shape[2] == 2 * 2 * 3
    relations = theta.transpose(1, 2) @ phi / phi.shape[2]  # (N, all positions, pooled positions)
    seen = (relations @ g.transpose(1, 2)).transpose(1, 2).unflatten(2, (2, 5, 6))
    added = torch.einsum("oc,ncthw->nothw", weights["W.weight"], seen) + biases["W.bias"]
    torch.testing.assert_close(block(frames), frames + _as_frames(added), atol=1e-6, rtol=1e-5)


def test_the_atrous_pyramid_dilates_by_two_four_and_six_in_space_only() -> None:
    block = _initialised(Aspp(8))
    frames = _random(2, 8, 14, 15)
    volume = _as_volume(frames, 2)
    levels = [F.conv3d(volume, block.get_parameter("aspp1.atrous_conv.weight"))]
    for level, dilation in ((2, 2), (3, 4), (4, 6)):
        weight = block.get_parameter(f"aspp{level}.atrous_conv.weight")
        levels.append(F.conv3d(volume, weight, padding=(0, dilation, dilation), dilation=(1, dilation, dilation)))
    joined = torch.cat(levels, 1).relu()
    merged = F.conv3d(joined, block.get_parameter("conv1.weight"), padding=(0, 1, 1))
    expected = volume + merged.relu()
    torch.testing.assert_close(block(frames), _as_frames(expected))


def test_a_residual_block_of_equal_widths_has_an_identity_shortcut() -> None:
    block = _initialised(ResBlock(6, 6))
    assert "downsample.weight" not in dict(block.named_parameters())
    nn.init.zeros_(block.get_parameter("conv2.weight"))
    nn.init.zeros_(block.get_parameter("conv2.bias"))
    features = _random(2, 6, 5, 5)
    assert torch.equal(block(features), features)


def test_a_residual_block_on_shared_features_equals_the_block_on_joined_ones() -> None:
    block = ResBlock(4 + 6, 8)
    initialise_layers(block, torch.Generator().manual_seed(5))
    own, shared = _random(2, 3, 4, 5, 5, seed=1), _random(2, 6, 5, 5, seed=2)
    joined = torch.cat([own, shared.unsqueeze(1).expand(-1, 3, -1, -1, -1)], 2).flatten(0, 1)
    activated = joined.relu()
    branch = F.conv2d(activated, block.conv1.weight, block.conv1.bias, padding=1).relu()
    branch = F.conv2d(branch, block.conv2.weight, block.conv2.bias, padding=1)
    assert block.downsample is not None
    expected = branch + F.conv2d(joined, block.downsample.weight, block.downsample.bias, padding=1)
    torch.testing.assert_close(block(joined), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(block.forward_joined(own, shared), expected, atol=1e-6, rtol=1e-5)


def test_attention_gates_channels_then_positions() -> None:
    block = _initialised(Cbam(32))
    features = _random(2, 32, 5, 6)

    def mlp(pooled: Tensor) -> Tensor:
        hidden = F.linear(pooled, *(block.get_parameter(f"ChannelGate.mlp.1.{kind}") for kind in ("weight", "bias")))
        return F.linear(
            hidden.relu(), *(block.get_parameter(f"ChannelGate.mlp.3.{kind}") for kind in ("weight", "bias"))
        )

    gate = (mlp(features.flatten(2).mean(2)) + mlp(features.flatten(2).max(2).values)).sigmoid()
    gated = features * gate.view(2, 32, 1, 1)
    pooled = torch.stack([gated.max(1).values, gated.mean(1)], 1)
    weight, bias = (block.get_parameter(f"SpatialGate.spatial.conv.{kind}") for kind in ("weight", "bias"))
    position_gate = F.conv2d(pooled, weight, bias, padding=3).sigmoid()
    torch.testing.assert_close(block(features), gated * position_gate)


@pytest.mark.parametrize("num_in", [4, 8, 16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_shortcut_is_a_strided_convolution_with_the_same_gradients(num_in: int, layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(num_in)
    ours, plain = ShortcutConv(num_in, 2 * num_in, 2, bias=True), nn.Conv2d(num_in, 2 * num_in, 1, 2).double()
    initialise_layers(ours, generator)
    plain.load_state_dict(ours.state_dict())
    features = torch.randn(3, num_in, 9, 16, generator=generator).to(memory_format=layout).requires_grad_()
    exact = features.detach().double().requires_grad_()
    expected = plain(exact)
    weights = torch.randn(expected.shape, generator=generator)
    (ours(features) * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(ours(features).double(), expected, atol=1e-5)
    for mine, theirs in ((features, exact), (ours.weight, plain.weight), (ours.bias, plain.bias)):
        assert mine is not None and theirs is not None and mine.grad is not None and theirs.grad is not None
        assert torch.allclose(mine.grad.double(), theirs.grad, atol=1e-4)
