"""STM-Cycle's network: a space-time memory with one memory per object (Li et al. 2020). Reads top to bottom.

All channel counts are multiples of `base`, the width of the stems: 64 in the paper. Objects are rows: N rows belong
to B frames, and `clips` (N,) int64 names the frame of each, so clips with different numbers of objects fit in one
batch without padding. In the comments (h, w) = (H/16, W/16), rounded up, M = memory positions; channel counts are the
paper's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.backbones import FrozenBatchNorm, basic_blocks, bottlenecks, initialise_trunk, load_imagenet
from models.layers import ResBlock, initialise_layers
from models.stm_reading import read_own_memory

logger = logging.getLogger(__name__)

Arch = Literal["resnet18", "resnet50"]
ARCHS: tuple[Arch, ...] = get_args(Arch)

PAPER_BASE = 64
IMAGE_MEAN, IMAGE_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Query(NamedTuple):
    """What the network knows of B frames before it reads memory.

    key (B, 128, h, w); the decoder's share of the frame: value (B, 256, h, w), skip_8 (B, 256, H/8, W/8), skip_4
    (B, 256, H/4, W/4).
    """

    key: Tensor
    value: Tensor
    skip_8: Tensor
    skip_4: Tensor

    def frames(self, which: Tensor | slice) -> Query:
        """The query of some of the frames."""
        return Query(*(part[which] for part in self))


class Memory(NamedTuple):
    """Memory of N objects, each its own: key (N, 128, M), value (N, 512, M)."""

    key: Tensor
    value: Tensor

    def rows(self, which: Tensor | slice) -> Memory:
        """The memory of some of the objects."""
        return Memory(self.key[which], self.value[which])


def join_memories(memories: list[Memory], *, over_objects: bool = False) -> Memory:
    """One memory with the positions of all, in order; over_objects: with the objects of all."""
    keys, values = zip(*memories, strict=True)
    dim = 0 if over_objects else 2
    return Memory(torch.cat(keys, dim), torch.cat(values, dim))


class Trunk(nn.Module):
    """A ResNet without its last stage; its attributes have the names of the authors' checkpoints.

    The mean and deviation of ImageNet are in those files but are never used: frames come normalised.
    """

    def __init__(self, arch: Arch, base: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(1, 3, 1, 1))
        self.register_buffer("std", torch.empty(1, 3, 1, 1))
        self.conv1 = nn.Conv2d(3, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = FrozenBatchNorm(base)
        if arch == "resnet18":
            self.res2 = basic_blocks(base, base, stride=1, bias=False)
            self.res3 = basic_blocks(base, 2 * base, stride=2, bias=False)
            self.res4 = basic_blocks(2 * base, 4 * base, stride=2, bias=False)
        else:
            self.res2 = bottlenecks(base, base, num_blocks=3, stride=1)
            self.res3 = bottlenecks(4 * base, 2 * base, num_blocks=4, stride=2)
            self.res4 = bottlenecks(8 * base, 4 * base, num_blocks=6, stride=2)

    def stages(self, stem: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stem (B, 64, H/2, W/2) before its norm -> r4 (B, 256e, h, w), r3 (B, 128e, ...), r2 (B, 64e, ...)."""
        pooled = F.max_pool2d(F.relu(self.bn1(stem)), 3, stride=2, padding=1)
        r2 = self.res2(pooled)
        r3 = self.res3(r2)
        return self.res4(r3), r3, r2


class QueryEncoder(Trunk):
    """Frames (B, 3, H, W) -> r4 (B, 256e, h, w), r3 (B, 128e, H/8, W/8), r2 (B, 64e, H/4, W/4); e = 1 or 4."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.stages(self.conv1(images))


class MemoryEncoder(Trunk):
    """The stem sees the frame, the object's own mask, and what is not the object; other objects are never seen."""

    def __init__(self, arch: Arch, base: int) -> None:
        super().__init__(arch, base)
        self.conv1_m = nn.Conv2d(1, base, 7, stride=2, padding=3, bias=False)
        self.conv1_bg = nn.Conv2d(1, base, 7, stride=2, padding=3, bias=False)

    def forward(self, stem: Tensor, masks: Tensor) -> Tensor:
        """Stem (N, 64, H/2, W/2) of each object's frame, masks (N, H, W) -> r4 (N, 256e, h, w).

        Masks may leave [0, 1] (gradient correction); the background is clamped to it, the mask is not, as published.
        """
        both = torch.stack([masks, (1 - masks).clamp(0, 1)], 1)
        kernel = torch.cat([self.conv1_m.weight, self.conv1_bg.weight], 1)
        return self.stages(stem + F.conv2d(both, kernel, stride=2, padding=3))[0]


class KeyValue(nn.Module):
    """Linear 3x3 projections of r4: key (B, 128, h, w), value (B, 512, h, w)."""

    def __init__(self, num_in: int, base: int) -> None:
        super().__init__()
        self.Key = nn.Conv2d(num_in, 2 * base, 3, padding=1)
        self.Value = nn.Conv2d(num_in, 8 * base, 3, padding=1)

    def forward(self, r4: Tensor) -> tuple[Tensor, Tensor]:
        return self.Key(r4), self.Value(r4)


class Refinement(nn.Module):
    """Add a skip connection to a coarser map, which grows to the size of the skip."""

    def __init__(self, num_skip: int, num_channels: int) -> None:
        super().__init__()
        self.convFS = nn.Conv2d(num_skip, num_channels, 3, padding=1)
        self.ResFS = ResBlock(num_channels, num_channels)
        self.ResMM = ResBlock(num_channels, num_channels)

    def forward(self, coarse: Tensor, skip: Tensor, clips: Tensor) -> Tensor:
        """Coarse (N, 256, h', w'), skip (B, 256, h, w) of `prepare` -> (N, 256, h, w)."""
        grown = F.interpolate(coarse, skip.shape[2:], mode="bilinear", align_corners=False)
        refined: Tensor = self.ResMM(grown + skip[clips])
        return refined

    def prepare(self, features: Tensor) -> Tensor:
        """What the skip connection carries, the same for all objects of a frame."""
        skip: Tensor = self.ResFS(self.convFS(features))
        return skip


class Decoder(nn.Module):
    """Object logits from what each object's memory says and what the frame looks like."""

    def __init__(self, expansion: int, base: int) -> None:
        super().__init__()
        width = 4 * base
        self.convFM = nn.Conv2d(2 * 8 * base, width, 3, padding=1)
        self.ResMM = ResBlock(width, width)
        self.RF3 = Refinement(2 * base * expansion, width)
        self.RF2 = Refinement(base * expansion, width)
        self.pred2 = nn.Conv2d(width, 2, 3, padding=1)

    def prepare(self, value: Tensor, r3: Tensor, r2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The part of every layer that sees the frame alone: value (B, 512, h, w), r3, r2 -> as in Query."""
        share = F.conv2d(value, self.convFM.weight[:, value.shape[1] :], self.convFM.bias, padding=1)
        return share, self.RF3.prepare(r3), self.RF2.prepare(r2)

    def forward(self, readout: Tensor, query: Query, clips: Tensor, size: tuple[int, int]) -> Tensor:
        """Readout (N, 512, h, w), the frames' Query -> logits (N, H, W) of object against not object."""
        share = F.conv2d(readout, self.convFM.weight[:, : readout.shape[1]], padding=1)
        at_16 = self.ResMM(share + query.value[clips])
        at_8 = self.RF3(at_16, query.skip_8, clips)
        at_4 = self.RF2(at_8, query.skip_4, clips)
        both = self.pred2(F.relu(at_4))
        logits = both[:, 1:] - both[:, :1]  # softmax over the two channels is the sigmoid of this
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)[:, 0]


class Stm(nn.Module):
    """The STM-Cycle network.

    arch: of both trunks. width scales every channel count (1 is the paper's; a multiple of 1/16). weights: a local
    torchvision file of that ResNet (V1), for both trunks. Without it they start random, damped so that they can be
    trained (`initialise_trunk`), and a warning says so. Randomness comes from `generator` alone (None: one seeded with
    0). initialise=False leaves all weights undefined, for a caller that loads every one of them.

    Batch norm always uses its running statistics, whatever `train()` says. Frames have any size: the decoder grows to
    the size of its skip connections, nothing is padded. At width 1 the state dict has the names and shapes of the
    authors' checkpoints.

    checkpoint_activations (False) may be set to keep only what enters the network's parts and compute the rest again in
    the backward pass: equal results, less memory, about a third more work.
    """

    def __init__(
        self,
        *,
        arch: Arch = "resnet50",
        width: float = 1.0,
        weights: Path | None = None,
        generator: torch.Generator | None = None,
        initialise: bool = True,
    ) -> None:
        super().__init__()
        if arch not in ARCHS:
            raise ValueError(f"unknown arch {arch!r}; choose one of {', '.join(ARCHS)}")
        base = base_channels(width)
        expansion = 1 if arch == "resnet18" else 4
        with torch.device("meta"):  # the constructors of layers would draw from the global generator
            self.Encoder_M = MemoryEncoder(arch, base)
            self.Encoder_Q = QueryEncoder(arch, base)
            self.KV_M_r4 = KeyValue(4 * base * expansion, base)
            self.KV_Q_r4 = KeyValue(4 * base * expansion, base)
            self.Decoder = Decoder(expansion, base)
        self.checkpoint_activations = False
        self.to_empty(device="cpu")
        if initialise:
            self._initialise(weights, generator or torch.Generator().manual_seed(0))

    def encode_query(self, images: Tensor) -> Query:
        """Query of normalised frames (B, 3, H, W)."""
        r4, r3, r2 = self._run(self.Encoder_Q, images)
        key, value = self.KV_Q_r4(r4)
        return Query(key, *self.Decoder.prepare(value, r3, r2))

    def look(self, images: Tensor) -> Tensor:
        """What `memorise` needs of normalised frames (B, 3, H, W), whatever the masks: (B, 64, H/2, W/2)."""
        stem: Tensor = self.Encoder_M.conv1(images)
        return stem

    def memorise(self, stems: Tensor, masks: Tensor, clips: Tensor) -> Memory:
        """Memory of one frame per object: stems (B, 64, H/2, W/2) of `look`, masks (N, H, W) probabilities."""
        key, value = self.KV_M_r4(self._run(self.Encoder_M, stems[clips], masks))
        return Memory(key.flatten(2), value.flatten(2))

    def segment(self, query: Query, memory: Memory, clips: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (N, H, W) of each object against all else, in frames of `size` (H, W)."""
        readout = read_own_memory(memory.key, memory.value, query.key[clips])
        logits: Tensor = self._run(self.Decoder, readout, query, clips, size)
        return logits

    def _run(self, part: nn.Module, *inputs: Any) -> Any:
        if self.checkpoint_activations and torch.is_grad_enabled():
            # Nothing in the network is random, so there is no generator state to keep.
            return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
        return part(*inputs)

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The constructor options that fit a state dict: its arch, its width (1.0 if the state does not tell)."""
        key_bias = state.get("KV_M_r4.Key.bias")
        return {
            "arch": "resnet50" if "Encoder_M.res2.0.conv3.weight" in state else "resnet18",
            "width": 1.0 if key_bias is None else key_bias.numel() / (2 * PAPER_BASE),
        }

    @torch.no_grad()
    def _initialise(self, weights: Path | None, generator: torch.Generator) -> None:
        initialise_layers(self, generator)
        if weights is None:
            logger.warning("STM-Cycle starts from random trunks: no ImageNet file for weights")
        for encoder in (self.Encoder_M, self.Encoder_Q):
            encoder.get_buffer("mean").copy_(torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1))
            encoder.get_buffer("std").copy_(torch.tensor(IMAGE_DEVIATION).view(1, 3, 1, 1))
            initialise_trunk(encoder, generator)
            if weights is not None:
                load_imagenet(encoder, weights)
        # Not part of the trunk: the default start, as published.
        initialise_layers(self.Encoder_M.conv1_m, generator)
        initialise_layers(self.Encoder_M.conv1_bg, generator)


def base_channels(width: float) -> int:
    """Width of the stems of a model of this width. Raises ValueError unless it is a positive multiple of 1/16."""
    steps = 16 * width
    if not (steps > 0 and steps == int(steps)):
        raise ValueError(f"width is {width}, expected a positive multiple of 1/16 (every channel count must be whole)")
    return int(steps) * PAPER_BASE // 16
