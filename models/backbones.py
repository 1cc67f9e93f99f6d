"""ResNet trunks with frozen batch-norm statistics, and their ImageNet weights from a local file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import ShortcutConv, convolve_joined
from models.weight_files import list_differences, read_state, require_finite

RESIDUAL_START = 0.2
"""Weight of the last batch norm of each residual branch where there are no ImageNet weights."""


class FrozenBatchNorm(nn.Module):
    """Batch norm that always uses its running statistics, in `train()` too; the affine weights are trained.

    Parameters, buffers and names are those of `nn.BatchNorm2d`. Shape (B, C, h, w) kept.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 residual block: (B, C, h, w) -> (B, 4*num_inner, h/stride, w/stride)."""

    def __init__(self, num_in: int, num_inner: int, stride: int) -> None:
        super().__init__()
        num_out = 4 * num_inner
        self.conv1 = nn.Conv2d(num_in, num_inner, 1, bias=False)
        self.bn1 = FrozenBatchNorm(num_inner)
        self.conv2 = nn.Conv2d(num_inner, num_inner, 3, stride, padding=1, bias=False)
        self.bn2 = FrozenBatchNorm(num_inner)
        self.conv3 = nn.Conv2d(num_inner, num_out, 1, bias=False)
        self.bn3 = FrozenBatchNorm(num_out)
        self.downsample = None if num_in == num_out else _shortcut(num_in, num_out, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        branch = F.relu(self.bn1(self.conv1(features)))
        branch = F.relu(self.bn2(self.conv2(branch)))
        shortcut = features if self.downsample is None else self.downsample(features)
        return F.relu(self.bn3(self.conv3(branch)) + shortcut)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first with the stride: (B, C, h, w) -> (B, num_out, h/stride, w/stride)."""

    def __init__(self, num_in: int, num_out: int, stride: int, *, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=bias)
        self.bn1 = FrozenBatchNorm(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=bias)
        self.bn2 = FrozenBatchNorm(num_out)
        self.downsample = None if num_in == num_out else _shortcut(num_in, num_out, stride, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        branch = F.relu(self.bn1(self.conv1(features)))
        shortcut = features if self.downsample is None else self.downsample(features)
        return F.relu(self.bn2(self.conv2(branch)) + shortcut)


def _shortcut(num_in: int, num_out: int, stride: int, *, bias: bool) -> nn.Sequential:
    return nn.Sequential(ShortcutConv(num_in, num_out, stride, bias=bias), FrozenBatchNorm(num_out))


class ResNet50Trunk(nn.Module):
    """ResNet-50 without its last stage; `base` is the width of the stem (64 in the paper).

    Maps normalised images (B, 3, H, W) to (f16 (B, 16*base, H/16, W/16), f8 (B, 8*base, H/8, W/8),
    f4 (B, 4*base, H/4, W/4)). The first stage is named `res2`, the others as in torchvision.
    """

    def __init__(self, base: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = FrozenBatchNorm(base)
        self.res2 = bottlenecks(base, base, num_blocks=3, stride=1)
        self.layer2 = bottlenecks(4 * base, 2 * base, num_blocks=4, stride=2)
        self.layer3 = bottlenecks(8 * base, 4 * base, num_blocks=6, stride=2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stem = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        f4 = self.res2(stem)
        f8 = self.layer2(f4)
        return self.layer3(f8), f8, f4


def bottlenecks(num_in: int, num_inner: int, *, num_blocks: int, stride: int) -> nn.Sequential:
    """A stage of a ResNet: (B, num_in, h, w) -> (B, 4*num_inner, h/stride, w/stride)."""
    later = [Bottleneck(4 * num_inner, num_inner, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(Bottleneck(num_in, num_inner, stride), *later)


class BiasedResNet18Trunk(nn.Module):
    """ResNet-18 without its last stage, a bias in every convolution; `base` is the width of the stem (64 in the paper).

    Maps (B, num_in, H, W) to (B, 4*base, H/16, W/16). Channels 0..2 of the input are the normalised image.
    """

    def __init__(self, num_in: int, base: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, base, 7, stride=2, padding=3)
        self.bn1 = FrozenBatchNorm(base)
        self.layer1 = basic_blocks(base, base, stride=1, bias=True)
        self.layer2 = basic_blocks(base, 2 * base, stride=2, bias=True)
        self.layer3 = basic_blocks(2 * base, 4 * base, stride=2, bias=True)

    def features(self, inputs: Tensor) -> Tensor:
        return self._after_stem(self.conv1(inputs))

    def features_of_objects(self, image: Tensor, planes: Tensor) -> Tensor:
        """`features` of the image (B, 3, H, W) joined with each object's own planes (B, O, num_in - 3, H, W).

        Returns (B*O, 4*base, H/16, W/16). The image goes through the stem once for all objects.
        """
        return self._after_stem(convolve_joined(self.conv1, planes, image, shared_first=True).flatten(0, 1))

    def _after_stem(self, stem: Tensor) -> Tensor:
        pooled = F.max_pool2d(F.relu(self.bn1(stem)), 3, stride=2, padding=1)
        return self.layer3(self.layer2(self.layer1(pooled)))


def basic_blocks(num_in: int, num_out: int, *, stride: int, bias: bool) -> nn.Sequential:
    """A stage of ResNet-18: (B, num_in, h, w) -> (B, num_out, h/stride, w/stride)."""
    return nn.Sequential(
        BasicBlock(num_in, num_out, stride, bias=bias), BasicBlock(num_out, num_out, stride=1, bias=bias)
    )


@torch.no_grad()
def initialise_trunk(trunk: nn.Module, generator: torch.Generator) -> None:
    """Random start for a trunk that will be trained with frozen batch norm (statistics 0 and 1, so nothing normalises).

    Convolutions keep the second moment of what they read (He, fan-in), biases are 0, and each residual branch is
    damped to RESIDUAL_START, so that activations stay of order 1 through all blocks. Input channels after the third
    (masks) get an orthogonal stem weight.
    """
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, FrozenBatchNorm):
            _reset_batch_norm(layer)
    for block in trunk.modules():
        if isinstance(block, Bottleneck):
            _damp(block.bn3, block.downsample, generator)
        elif isinstance(block, BasicBlock):
            _damp(block.bn2, block.downsample, generator)
    stem = trunk.get_parameter("conv1.weight")
    if stem.shape[1] > 3:
        stem[:, 3:] = orthogonal_stem(stem.shape[0], stem.shape[1] - 3, generator)


def _damp(branch_end: FrozenBatchNorm, shortcut: nn.Sequential | None, generator: torch.Generator) -> None:
    branch_end.weight.fill_(RESIDUAL_START)
    if shortcut is not None:
        convolution = shortcut.get_submodule("0")
        nn.init.kaiming_normal_(convolution.get_parameter("weight"), nonlinearity="linear", generator=generator)


def _reset_batch_norm(layer: FrozenBatchNorm) -> None:
    values = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    for name, tensor in layer.state_dict().items():
        tensor.fill_(values[name])


def orthogonal_stem(num_out: int, num_extra: int, generator: torch.Generator) -> Tensor:
    """Orthogonal stem weight (num_out, num_extra, 7, 7) for input channels that ImageNet does not know."""
    return nn.init.orthogonal_(torch.empty(num_out, num_extra, 7, 7), generator=generator)


@torch.no_grad()
def load_imagenet(trunk: nn.Module, path: Path) -> None:
    """Copy ImageNet weights (a torchvision state dict in a local file) into a trunk of this module.

    `layer1` of the file becomes `res2` where the trunk has one, and `layer2` and `layer3` `res3` and `res4`; `layer4`
    and `fc` are dropped; convolution biases, which the file does not have, become 0; input channels after the third
    keep their start. Raises ValueError listing every name that is missing, unexpected or of another shape, or naming a
    tensor that is not finite; the trunk is untouched then. The published weights are torchvision's V1 files,
    resnet50-19c8e357 and resnet18-5c106cde.
    """
    target = _imagenet_part(trunk)
    source = _read_imagenet(path, _stage_names(target))
    optional = {name for name in target if re.search(r"(conv\d|downsample\.0)\.bias$|num_batches_tracked$", name)}
    problems = list_differences(target, source, optional=optional)
    if problems:
        raise ValueError(
            f"{path}: not ImageNet weights of this trunk; give torchvision's V1 file: " + "; ".join(problems)
        )
    require_finite(source, path)
    for name, tensor in target.items():
        tensor.copy_(source.get(name, torch.zeros_like(tensor)))


def _imagenet_part(trunk: nn.Module) -> dict[str, Tensor]:
    """What ImageNet weights can fill: the trunk without extra input channels, and nothing else the module holds."""
    state = {
        name: tensor for name, tensor in trunk.state_dict().items() if re.match(r"(conv1|bn1|res\d|layer\d)\.", name)
    }
    state["conv1.weight"] = state["conv1.weight"][:, :3]
    return state


def _stage_names(target: Mapping[str, Tensor]) -> dict[str, str]:
    """torchvision's names of the stages -> those of a trunk."""
    return {
        f"layer{stage}": f"res{stage + 1}" if f"res{stage + 1}.0.conv1.weight" in target else f"layer{stage}"
        for stage in (1, 2, 3)
    }


def _read_imagenet(path: Path, stages: Mapping[str, str]) -> dict[str, Tensor]:
    return {
        re.sub(r"^layer[123](?=\.)", lambda found: stages[found.group()], name): tensor
        for name, tensor in read_state(path).items()
        if not name.startswith(("layer4.", "fc."))
    }
