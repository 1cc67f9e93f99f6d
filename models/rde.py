"""RDE: video object segmentation with a recurrent dynamic embedding (Li et al., CVPR 2022). Reads from top to bottom.

All channel counts are multiples of `base`, the width of the stems: 64 in the paper. In the comments below B is the
batch, T frames, O objects, (h, w) = (H/16, W/16); channel counts are the paper's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.backbones import (
    BiasedResNet18Trunk,
    ResNet50Trunk,
    initialise_trunk,
    load_imagenet,
)
from models.layers import Aspp, Cbam, FrameConv, NonLocal, ResBlock, initialise_layers
from models.memory import read_memory

logger = logging.getLogger(__name__)

PAPER_BASE = 64
RANDOM_MASK_GAIN = 4.0
"""Start of the mask channels of a random value trunk, in units of the published start beside ImageNet's RGB weights.

At 1, what tells two objects apart is 1 % of the first logits' deviation, and a run learns to find objects long before
it learns to follow one. At 4 the second object's training IoU after 400 small steps was 0.75, not 0.57 (one run each).
"""


class FrameFeatures(NamedTuple):
    """What the model knows of one frame: key (B, 64, h, w), thin (B, 512, h, w), f16 (B, 1024, h, w), f8, f4."""

    key: Tensor
    thin: Tensor
    f16: Tensor
    f8: Tensor
    f4: Tensor


class KeyFeatures(NamedTuple):
    """What the model knows of T frames before any mask.

    key (B, 64, T, h, w), memory and query key alike; thin (B, T, 512, h, w), for the decoder; trunk features
    f16 (B, T, 1024, h, w), f8 (B, T, 512, 2h, 2w), f4 (B, T, 256, 4h, 4w).
    """

    key: Tensor
    thin: Tensor
    f16: Tensor
    f8: Tensor
    f4: Tensor

    def frame(self, time: int) -> FrameFeatures:
        """The features of one frame (views)."""
        return FrameFeatures(
            self.key[:, :, time], self.thin[:, time], self.f16[:, time], self.f8[:, time], self.f4[:, time]
        )


class KeyProjection(nn.Module):
    """Linear 3x3 projection of f16 (B, 1024, h, w) to keys (B, 64, h, w)."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.key_proj = nn.Conv2d(16 * base, base, 3, padding=1)

    def forward(self, f16: Tensor) -> Tensor:
        return self.key_proj(f16)


class Fuser(nn.Module):
    """Join mask-aware features (B, O, 256, h, w) with f16 (B, 1024, h, w) of the frame: (B*O, 512, h, w)."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.block1 = ResBlock(4 * base + 16 * base, 8 * base)
        self.attention = Cbam(8 * base)
        self.block2 = ResBlock(8 * base, 8 * base)

    def forward(self, features: Tensor, f16: Tensor) -> Tensor:
        fused = self.block1.forward_joined(features, f16)
        return self.block2(fused + self.attention(fused))


class ValueEncoder(BiasedResNet18Trunk):
    """Values of all objects of a frame; with `others`, a fifth input channel is the sum of the other objects' masks."""

    def __init__(self, base: int, *, others: bool) -> None:
        super().__init__(num_in=5 if others else 4, base=base)
        self.others = others
        self.fuser = Fuser(base)

    def forward(self, image: Tensor, f16: Tensor, masks: Tensor, num_sets: int = 1) -> Tensor:
        """image (B, 3, H, W), f16 (B, 1024, h, w), masks (B, O, H, W) in [0, 1] -> (B, O, 512, h, w).

        The O objects are num_sets sets, one after the other; an object's others are those of its own set.
        """
        masks = masks.to(image.dtype)
        planes = masks.unsqueeze(2)
        if self.others:
            sets = masks.unflatten(1, (num_sets, -1))
            others = (sets.sum(2, keepdim=True) - sets).flatten(1, 2)
            planes = torch.stack([masks, others], 2)  # (B, O, 2, H, W)
        features = self.features_of_objects(image, planes).unflatten(0, masks.shape[:2])
        return self.fuser(features, f16).unflatten(0, masks.shape[:2])


class SpatioTemporalAggregation(nn.Module):
    """SAM over two frames: non-local block, then atrous pyramid. Frames (N*2, C, h, w), time fastest; shape kept."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.non_local = NonLocal(num_channels, num_frames=2)
        self.conv1 = Aspp(num_channels)

    def forward(self, frames: Tensor) -> Tensor:
        return self.conv1(self.non_local(frames))


class MemoryCompressor(nn.Module):
    """Old memory and one new frame in, one memory frame out; key and value apart, values of all objects at once."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.key_encoder = SpatioTemporalAggregation(base)
        self.value_encoder = SpatioTemporalAggregation(8 * base)
        self.compress_key = FrameConv(base, base, 3, num_frames=2)
        self.compress_value = FrameConv(8 * base, 8 * base, 3, num_frames=2)

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """key (B, 64, 2, h, w), value (B, O, 512, 2, h, w) -> key (B, 64, 1, h, w), value (B, O, 512, 1, h, w)."""
        key_frames = key.transpose(1, 2).flatten(0, 1)  # (B*2, 64, h, w)
        value_frames = value.transpose(2, 3).flatten(0, 2)  # (B*O*2, 512, h, w)
        new_key = self.compress_key(self.key_encoder(key_frames))
        new_value = self.compress_value(self.value_encoder(value_frames))
        return new_key.unsqueeze(2), new_value.unflatten(0, value.shape[:2]).unsqueeze(3)


class UpsampleBlock(nn.Module):
    """Twice the resolution of coarse (B*O, num_in, h, w); skip (B, num_in, 2h, 2w) is shared by the objects."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.skip_conv = nn.Conv2d(num_in, num_in, 3, padding=1)
        self.out_conv = ResBlock(num_in, num_out)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        upsampled = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        joined = upsampled.unflatten(0, (skip.shape[0], -1)) + self.skip_conv(skip).unsqueeze(
            1
        )  # (B, O, num_in, 2h, 2w)
        return self.out_conv(joined.flatten(0, 1))


class Decoder(nn.Module):
    """Object logits from what the memory says of each object and what the frame looks like."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.compress = ResBlock(16 * base, 8 * base)
        self.up_16_8 = UpsampleBlock(8 * base, 4 * base)
        self.up_8_4 = UpsampleBlock(4 * base, 4 * base)
        self.pred = nn.Conv2d(4 * base, 1, 3, padding=1)

    def forward(self, decoder_input: Tensor, f8: Tensor, f4: Tensor) -> Tensor:
        """decoder_input (B, O, 1024, h, w), f8 (B, 512, 2h, 2w), f4 (B, 256, 4h, 4w) -> logits (B, O, H, W).

        The second half of decoder_input's channels is the frame's: the same for all objects.
        """
        readout, thin = decoder_input.chunk(2, dim=2)
        at_16 = self.compress.forward_joined(readout, thin[:, 0])
        at_8 = self.up_16_8(at_16, f8)
        at_4 = self.up_8_4(at_8, f4)
        logits = F.interpolate(self.pred(F.relu(at_4)), scale_factor=4, mode="bilinear", align_corners=False)
        return logits.unflatten(0, decoder_input.shape[:2]).squeeze(2)


class Rde(nn.Module):
    """The RDE network; training objectives and memory banks call its five methods.

    stage0: for still images: no SAM, no channel for other objects. width scales every channel count (1 is the
    paper's; a multiple of 1/16). key_weights, value_weights: local torchvision files of ResNet-50 and ResNet-18 (V1).
    Without them the trunk starts random, damped so that it can be trained (`initialise_trunk`), and a warning says
    so. Randomness comes from `generator` alone (None: one seeded with 0). initialise=False leaves all weights
    undefined, for a caller that loads every one of them.

    Batch norm always uses its running statistics, whatever `train()` says: the network is trained with frozen
    statistics and trained affine weights. H and W of all images must be multiples of 16 (32 at least where memory is
    compressed). At width 1 the state dict has the names and shapes of the authors' checkpoints.

    checkpoint_activations (False) may be set to keep only what enters the network's parts and compute the rest again
    in the backward pass: equal results, less memory, about a third more work.
    """

    def __init__(
        self,
        *,
        stage0: bool = False,
        width: float = 1.0,
        key_weights: Path | None = None,
        value_weights: Path | None = None,
        generator: torch.Generator | None = None,
        initialise: bool = True,
    ) -> None:
        super().__init__()
        base = base_channels(width)
        with torch.device("meta"):  # the constructors of layers would draw from the global generator
            self.key_encoder = ResNet50Trunk(base)
            self.value_encoder = ValueEncoder(base, others=not stage0)
            self.mem_compress = None if stage0 else MemoryCompressor(base)
            self.key_proj = KeyProjection(base)
            self.key_comp = nn.Conv2d(16 * base, 8 * base, 3, padding=1)
            self.decoder = Decoder(base)
        self.checkpoint_activations = False
        self.to_empty(device="cpu")
        if initialise:
            self._initialise(generator or torch.Generator().manual_seed(0))
            self._load_trunks(key_weights, value_weights)
            if value_weights is None:
                self.value_encoder.conv1.weight.data[:, 3:] *= RANDOM_MASK_GAIN

    def encode_key(self, images: Tensor) -> KeyFeatures:
        """Features of normalised images (B, T, 3, H, W), all frames as one batch."""
        clips = images.shape[:2]
        f16, f8, f4 = self._run(self.key_encoder, images.flatten(0, 1))
        key = self.key_proj(f16).unflatten(0, clips).transpose(1, 2)  # (B, 64, T, h, w)
        thin = self.key_comp(f16).unflatten(0, clips)
        return KeyFeatures(key, thin, f16.unflatten(0, clips), f8.unflatten(0, clips), f4.unflatten(0, clips))

    def encode_value(self, image: Tensor, f16: Tensor, masks: Tensor, *, num_sets: int = 1) -> Tensor:
        """Values (B, O, 512, 1, h, w) of one frame for all objects at once.

        image (B, 3, H, W) normalised, f16 (B, 1024, h, w), masks (B, O, H, W) probabilities in [0, 1]. Each object
        sees the sum of the other objects' masks (not clamped), zeros where O = 1; a stage-0 model sees its own mask
        only. The objects may be num_sets sets of equal size, one after the other, that do not see each other.
        """
        value: Tensor = self._run(self.value_encoder, image, f16, masks, num_sets)
        return value.unsqueeze(3)

    def compress(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Merge old memory (time 0) and a new frame (time 1) into one memory frame.

        key (B, 64, 2, h, w), value (B, O, 512, 2, h, w) -> key (B, 64, 1, h, w), value (B, O, 512, 1, h, w).
        """
        if self.mem_compress is None:
            raise ValueError("a stage-0 model has no SAM to compress memory; build the model with stage0=False")
        if key.shape[2] != 2 or value.shape[3] != 2:
            raise ValueError(f"compress merges exactly 2 frames, got {key.shape[2]} keys and {value.shape[3]} values")
        merged: tuple[Tensor, Tensor] = self._run(self.mem_compress, key, value)
        return merged

    def read(
        self, memory_key: Tensor, memory_value: Tensor, query_key: Tensor, thin: Tensor, *, top_k: int | None = None
    ) -> Tensor:
        """Decoder input (B, O, 1024, h, w): the readout of each object (512), then the frame's thin features (512).

        memory_key (B, 64, T, h, w), memory_value (B, O, 512, T, h, w), query_key (B, 64, h, w), thin (B, 512, h, w).
        top_k: see `read_memory`; None in training.
        """
        readout = read_memory(memory_key, memory_value, query_key, top_k=top_k)
        return torch.cat([readout, thin.unsqueeze(1).expand(-1, readout.shape[1], -1, -1, -1)], 2)

    def decode(self, decoder_input: Tensor, f8: Tensor, f4: Tensor) -> Tensor:
        """Object logits (B, O, H, W) of a frame.

        decoder_input (B, O, 1024, h, w) as `read` gives it: its second half is the same for all objects;
        f8 (B, 512, 2h, 2w), f4 (B, 256, 4h, 4w).
        """
        logits: Tensor = self._run(self.decoder, decoder_input, f8, f4)
        return logits

    def _run(self, part: nn.Module, *inputs: Tensor | int) -> Any:
        if self.checkpoint_activations and torch.is_grad_enabled():
            # Nothing in the network is random, so there is no generator state to keep.
            return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
        return part(*inputs)

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The constructor options that fit a state dict: its width (1.0 if the state does not tell), its kind."""
        key_bias = state.get("key_proj.key_proj.bias")
        stem = state.get("value_encoder.conv1.weight")
        return {
            "width": 1.0 if key_bias is None else key_bias.numel() / PAPER_BASE,
            "stage0": stem is not None and stem.dim() == 4 and stem.shape[1] == 4,
        }

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        initialise_layers(self, generator)
        initialise_trunk(self.key_encoder, generator)
        initialise_trunk(self.value_encoder, generator)
        initialise_layers(self.value_encoder.fuser, generator)  # not part of the trunk
        nn.init.orthogonal_(self.key_proj.key_proj.weight, generator=generator)
        self.key_proj.get_parameter("key_proj.bias").zero_()

    def _load_trunks(self, key_weights: Path | None, value_weights: Path | None) -> None:
        random = []
        for trunk, path, option in (
            (self.key_encoder, key_weights, "key_weights"),
            (self.value_encoder, value_weights, "value_weights"),
        ):
            if path is None:
                random.append(option)
            else:
                load_imagenet(trunk, path)
        if random:
            logger.warning("RDE starts from random trunks: no ImageNet file for %s", " and ".join(random))


def base_channels(width: float) -> int:
    """Width of the stems of a model of this width. Raises ValueError unless every channel count comes out whole."""
    if not math.isfinite(width):
        raise ValueError(f"width is {width}, expected a number")
    base = round(PAPER_BASE * width)
    if base < 4 or base % 4 or base != PAPER_BASE * width:
        raise ValueError(f"width is {width}, expected a positive multiple of 1/16 (every channel count must be whole)")
    return base
