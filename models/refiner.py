"""MTMFI's segmentation network ("refiner"): deep features and coarse scores in, an object's logits out.

Source: MTMFI, and FRTM, Robinson et al. 2020, inside it. Names of the parts are those of the released files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.weight_files import NoWeightsError

LEVELS = ("layer5", "layer4", "layer3", "layer2")
"""Deep to shallow, the order in which they are worked through."""

NUM_CHANNELS = 64

TO_EVEN = (-0.03515625, 0.26171875, 0.87890625, -0.10546875, 0.0)
TO_ODD = TO_EVEN[::-1]
"""Weights of five neighbours where bicubic interpolation doubles, a quarter of a pixel before and behind the middle."""

Variant = Literal["bise", "initial", "bise-full", "frtm"]


class Design(NamedTuple):
    """What distinguishes a variant: scores it reads, feature integration (a channel gate), RRB before and after CAB."""

    num_scores: int
    integrates: bool
    refines_twice: bool


DESIGNS: dict[str, Design] = {
    "bise": Design(num_scores=2, integrates=True, refines_twice=False),
    "initial": Design(num_scores=2, integrates=False, refines_twice=True),
    "bise-full": Design(num_scores=2, integrates=True, refines_twice=True),
    "frtm": Design(num_scores=1, integrates=False, refines_twice=True),
}
"""`bise` is MTM + FI, `initial` MTM alone; `frtm` reads the score of layer4 alone."""


class ScoreEncoder(nn.Module):
    """Features and scores of one level -> (B, 64, h, w); named TSE, or with feature integration TFFM."""

    def __init__(self, num_in: int, design: Design) -> None:
        super().__init__()
        inner = NUM_CHANNELS + design.num_scores
        self.reduce = nn.Sequential(
            nn.Conv2d(num_in, NUM_CHANNELS, 1), nn.ReLU(), nn.Conv2d(NUM_CHANNELS, NUM_CHANNELS, 1)
        )
        self.att: nn.Sequential | None = None
        if design.integrates:
            self.att = nn.Sequential(nn.Conv2d(inner, inner, 1), nn.ReLU(), nn.Conv2d(inner, inner, 1, bias=False))
        self.transform = nn.Sequential(
            nn.Conv2d(inner, inner, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(inner, NUM_CHANNELS, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, reduced: Tensor, scores: Sequence[Tensor]) -> Tensor:
        """reduced: what `reduce` made of features, (B, 64, h, w). scores: (B, 1, any, any), layer3 before layer4."""
        size = reduced.shape[-2:]
        joined = torch.cat([reduced, *(resize(score, size) for score in scores)], 1)  # (B, 66, h, w)
        if self.att is not None:
            joined = joined + joined * self.att(pool(joined)).sigmoid()
        encoded: Tensor = self.transform(joined)
        return encoded


class ChannelAttention(nn.Module):
    """CAB: the current level's channels weighed by both levels' means, plus the deeper level."""

    def __init__(self) -> None:
        super().__init__()
        self.convreluconv = nn.Sequential(
            nn.Conv2d(2 * NUM_CHANNELS, NUM_CHANNELS, 1), nn.ReLU(), nn.Conv2d(NUM_CHANNELS, NUM_CHANNELS, 1)
        )

    def forward(self, deeper: Tensor, current: Tensor) -> Tensor:
        """deeper (B, 64, any, any), current (B, 64, h, w) -> (B, 64, h, w)."""
        weights = self.convreluconv(torch.cat([pool(current), pool(deeper)], 1)).sigmoid()
        return current * weights + resize(deeper, current.shape[-2:])


class Residual(nn.Module):
    """RRB: 1x1, then a residual branch with the only batch norm of the network. (B, 64, h, w) is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(NUM_CHANNELS, NUM_CHANNELS, 1)
        self.bblock = nn.Sequential(
            nn.Conv2d(NUM_CHANNELS, NUM_CHANNELS, 3, padding=1),
            nn.BatchNorm2d(NUM_CHANNELS),
            nn.ReLU(),
            nn.Conv2d(NUM_CHANNELS, NUM_CHANNELS, 3, padding=1, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        mixed = self.conv1x1(features)
        return F.relu(mixed + self.bblock(mixed))


class Upsampler(nn.Module):
    """(B, 64, h, w) at stride 4 -> logits (B, 1, H, W): bicubic x2 twice, then bilinear to the exact size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(NUM_CHANNELS, NUM_CHANNELS // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(NUM_CHANNELS // 2, 1, 3, padding=1)
        self.taps: Tensor
        self.register_buffer("taps", torch.tensor((TO_EVEN, TO_ODD)), persistent=False)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        half = F.relu(self.conv1(double(features, self.taps)))
        logits: Tensor = self.conv2(resize(double(half, self.taps), size))
        return logits


class Refiner(nn.Module):
    """A variant of the network. num_channels: of each level's features, by `LEVELS`."""

    def __init__(self, variant: Variant, num_channels: Mapping[str, int]) -> None:
        super().__init__()
        design = find_design(variant)
        self.variant, self.num_scores, self.refines_twice = variant, design.num_scores, design.refines_twice
        self.encoder_name = "TFFM" if design.integrates else "TSE"
        first, last = ("RRB1", "RRB2") if design.refines_twice else (None, "RRB")
        # The order of registration is that of the released files, whose optimiser states are lists.
        self.add_module(
            self.encoder_name, nn.ModuleDict({level: ScoreEncoder(num_channels[level], design) for level in LEVELS})
        )
        if first is not None:
            self.add_module(first, nn.ModuleDict({level: Residual() for level in LEVELS}))
        self.CAB = nn.ModuleDict({level: ChannelAttention() for level in LEVELS})
        self.add_module(last, nn.ModuleDict({level: Residual() for level in LEVELS}))
        self.project = Upsampler()

    def forward(self, features: Sequence[Tensor], scores: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits (N, 1, H, W) of N objects, `size` = (H, W).

        features: by LEVELS, each (N, C, h, w), or (1, C, h, w) where one image shows all objects. scores: one map
        (N, 1, h, w) per target model, layer3 before layer4, at its own size. Raises ValueError for another number.
        """
        if len(scores) != self.num_scores:
            raise ValueError(f"{len(scores)} scores, but {self.variant} reads {self.num_scores}")
        num_objects = len(scores[0])
        current: Tensor | None = None
        for level, feature in zip(LEVELS, features, strict=True):
            encoder = cast(ScoreEncoder, self._part(self.encoder_name, level))
            reduced = encoder.reduce(feature).expand(num_objects, -1, -1, -1)
            deeper = pool(reduced) if current is None else current
            current = self._integrate(level, deeper, encoder(reduced, scores))
        assert current is not None
        logits: Tensor = self.project(current, size)
        return logits

    def _integrate(self, level: str, deeper: Tensor, encoded: Tensor) -> Tensor:
        if self.refines_twice:
            encoded = self._part("RRB1", level)(encoded)
        attended = self._part("CAB", level)(deeper, encoded)
        refined: Tensor = self._part("RRB2" if self.refines_twice else "RRB", level)(attended)
        return refined

    def _part(self, name: str, level: str) -> nn.Module:
        return self.get_submodule(f"{name}.{level}")


def find_design(variant: str) -> Design:
    """The design of that name. Raises ValueError listing the names if there is none."""
    if variant not in DESIGNS:
        raise ValueError(f"unknown variant {variant!r}; choose one of {', '.join(get_args(Variant))}")
    return DESIGNS[variant]


def refiner_options(state: Mapping[str, Tensor], prefix: str = "refiner.") -> tuple[Variant, dict[str, int]]:
    """Variant and channels of each level of the refiner whose weights a state dict holds. Raises NoWeightsError."""
    keys = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
    heads = {name.split(".")[0] for name in keys}
    encoder = "TFFM" if "TFFM" in heads else "TSE"
    reduce = {level: state.get(f"{prefix}{encoder}.{level}.reduce.0.weight") for level in LEVELS}
    transform = state.get(f"{prefix}{encoder}.layer5.transform.0.weight")
    channels = {level: int(weight.shape[1]) for level, weight in reduce.items() if weight is not None}
    if transform is None or len(channels) < len(LEVELS):
        raise NoWeightsError(f"no refiner: neither {prefix}TSE nor {prefix}TFFM on {', '.join(LEVELS)}")
    found = Design(int(transform.shape[0]) - NUM_CHANNELS, encoder == "TFFM", "RRB1" in heads)
    for variant, design in DESIGNS.items():
        if design == found:
            return cast(Variant, variant), channels
    raise NoWeightsError(f"no known variant of the refiner: {found}")


def pool(features: Tensor) -> Tensor:
    """Mean over all positions: (B, C, h, w) -> (B, C, 1, 1)."""
    return features.mean((2, 3), keepdim=True)


def resize(features: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned, no antialias, in both directions; a single position is spread."""
    if features.shape[-2:] == torch.Size(size):
        return features
    if features.shape[-2:] == (1, 1):
        return features.expand(-1, -1, *size)
    return F.interpolate(features, tuple(size), mode="bilinear", align_corners=False)


def double(features: Tensor, taps: Tensor) -> Tensor:
    """Bicubic x2 (a = -0.75, half-pixel centres, border repeated): (B, C, h, w) -> (B, C, 2h, 2w). taps (2, 5).

    As two depthwise convolutions. F.interpolate gives the same to rounding, but its backward pass takes a CPU 2.5 times
    as long and is not deterministic on a GPU.
    """
    channels = features.shape[1]
    kernels = taps.repeat(channels, 1)[:, None]  # (2C, 1, 5)
    padded = F.pad(features, (0, 0, 2, 2), mode="replicate")
    rows = F.conv2d(padded, kernels[..., None], groups=channels).unflatten(1, (channels, 2))
    tall = rows.transpose(2, 3).flatten(2, 3)  # (B, C, 2h, w)
    padded = F.pad(tall, (2, 2, 0, 0), mode="replicate")
    columns = F.conv2d(padded, kernels[:, :, None], groups=channels).unflatten(1, (channels, 2))
    return columns.permute(0, 1, 3, 4, 2).flatten(3, 4)
