"""A whole ResNet as a fixed feature extractor: torchvision's names, batch norm that only uses its statistics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import RESIDUAL_START, Bottleneck, FrozenBatchNorm, initialise_trunk
from models.layers import ShortcutConv
from models.weight_files import NoWeightsError, list_differences, read_state, require_finite

logger = logging.getLogger(__name__)

TrunkName = Literal["resnet18", "resnet101"]

BLOCKS: dict[str, tuple[int, int, int, int]] = {"resnet18": (2, 2, 2, 2), "resnet101": (3, 4, 23, 3)}
EXPANSION = {"resnet18": 1, "resnet101": 4}
"""Channels that leave a block, per channel inside it."""


class Features(NamedTuple):
    """Feature maps by the names of the method, which are one above torchvision's; strides 32, 16, 8 and 4.

    layer5 is None where the trunk stopped early.
    """

    layer5: Tensor | None
    layer4: Tensor
    layer3: Tensor
    layer2: Tensor


class PlainBlock(nn.Module):
    """Two 3x3 convolutions without biases, the first with the stride: (B, C, h, w) -> (B, num_out, h/s, w/s)."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.bn1 = FrozenBatchNorm(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.bn2 = FrozenBatchNorm(num_out)
        self.downsample: nn.Sequential | None = None
        if num_in != num_out:
            shortcut = ShortcutConv(num_in, num_out, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, FrozenBatchNorm(num_out))

    def forward(self, features: Tensor) -> Tensor:
        branch = F.relu(self.bn1(self.conv1(features)))
        shortcut = features if self.downsample is None else self.downsample(features)
        return F.relu(self.bn2(self.conv2(branch)) + shortcut)


class FrozenTrunk(nn.Module):
    """ResNet-18 or ResNet-101 without pooling and classifier; none of its parameters asks for a gradient.

    base: channels of the stem (64 in torchvision). Source: FRTM, Robinson et al. 2020, and MTMFI, whose layerN is
    torchvision's layer(N-1).
    """

    def __init__(self, name: TrunkName = "resnet101", base: int = 64) -> None:
        super().__init__()
        if name not in BLOCKS:
            raise ValueError(f"unknown trunk {name!r}; choose one of {', '.join(BLOCKS)}")
        if base < 1:
            raise ValueError(f"a trunk of {base} stem channels; give at least 1")
        self.name, self.base = name, base
        self.conv1 = nn.Conv2d(3, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = FrozenBatchNorm(base)
        blocks, expansion = BLOCKS[name], EXPANSION[name]
        self.layer1 = _stage(name, base, base, blocks[0], stride=1)
        self.layer2 = _stage(name, expansion * base, 2 * base, blocks[1], stride=2)
        self.layer3 = _stage(name, 2 * expansion * base, 4 * base, blocks[2], stride=2)
        self.layer4 = _stage(name, 4 * expansion * base, 8 * base, blocks[3], stride=2)
        self.requires_grad_(False)

    @property
    def num_channels(self) -> dict[str, int]:
        """Channels of each feature map, by the names of `Features`."""
        return {f"layer{level}": EXPANSION[self.name] * self.base * 2 ** (level - 2) for level in (5, 4, 3, 2)}

    def forward(self, images: Tensor, *, with_layer5: bool = True) -> Features:
        """Features of normalised images (B, 3, H, W); sides are halved rounding up. with_layer5: go to the end."""
        stem = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        layer2 = self.layer1(stem)
        layer3 = self.layer2(layer2)
        layer4 = self.layer3(layer3)
        return Features(self.layer4(layer4) if with_layer5 else None, layer4, layer3, layer2)


def _stage(name: str, num_in: int, num_inner: int, num_blocks: int, *, stride: int) -> nn.Sequential:
    num_out = EXPANSION[name] * num_inner
    block = PlainBlock if name == "resnet18" else Bottleneck
    return nn.Sequential(
        block(num_in, num_inner, stride), *(block(num_out, num_inner, 1) for _ in range(num_blocks - 1))
    )


def trunk_options(state: Mapping[str, Tensor], prefix: str = "") -> tuple[TrunkName, int]:
    """Name and base width of the trunk whose weights a state dict holds. Raises NoWeightsError if none."""
    stem = state.get(f"{prefix}conv1.weight")
    if stem is None or stem.dim() != 4:
        raise NoWeightsError(f"no {prefix}conv1.weight of a ResNet")
    name = "resnet101" if f"{prefix}layer1.0.conv3.weight" in state else "resnet18"
    return cast(TrunkName, name), int(stem.shape[0])


@torch.no_grad()
def start_trunk(trunk: FrozenTrunk, weights: Path | None, generator: torch.Generator) -> None:
    """Fill a trunk from a file of weights (see `load_trunk`), or at random where there is none, with a warning."""
    if weights is not None:
        load_trunk(trunk, weights)
        return
    logger.warning("the trunk starts at random: give torchvision's V1 weights of %s as weights", trunk.name)
    initialise_trunk(trunk, generator)
    for block in trunk.modules():
        if isinstance(block, PlainBlock):
            block.bn2.weight.fill_(RESIDUAL_START)


@torch.no_grad()
def load_trunk(trunk: FrozenTrunk, path: Path) -> None:
    """Copy the weights in a file into `trunk`: torchvision's V1 state dict, or a trunk of ours.

    `fc` is dropped, and `num_batches_tracked`, which nothing reads, may be absent. Raises ValueError listing every name
    that is missing, unexpected or of another shape, or naming a tensor that is not finite; the trunk is untouched then.
    The published files are resnet101-5d3b4d8f and resnet18-5c106cde.
    """
    source = {name: tensor for name, tensor in read_state(path).items() if not name.startswith("fc.")}
    target = trunk.state_dict()
    optional = {name for name in target if name.endswith("num_batches_tracked")}
    problems = list_differences(target, source, optional=optional)
    if problems:
        raise ValueError(f"{path}: not weights of a {trunk.name}; give torchvision's V1 file: " + "; ".join(problems))
    require_finite(source, path)
    for name, tensor in source.items():
        target[name].copy_(tensor)
