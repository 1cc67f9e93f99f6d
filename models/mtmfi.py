"""MTMFI, and FRTM inside it: a trunk that stays as it is, target models fitted while segmenting, a trained refiner.

Source: Learning video object segmentation with multi-level target models and feature integration (MTMFI); FRTM,
Robinson et al. 2020. The spec's variants: `initial` is MTM, `bise` MTM + FI, `frtm` has one target model, on layer4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.frozen_trunk import Features, FrozenTrunk, TrunkName, start_trunk, trunk_options
from models.layers import initialise_layers
from models.refiner import Refiner, Variant, refiner_options
from models.weight_files import NoWeightsError

TRUNK_PREFIX = "trunk."
REFINER_PREFIX = "refiner."


class Mtmfi(nn.Module):
    """Trunk and refiner; target models are not part of it, they belong to a video's objects.

    variant: of the refiner. trunk: which ResNet, with `base` stem channels. train_trunk: let the trunk learn with the
    refiner, which the method does not; for trunks without ImageNet weights. prior: the probability of an object that
    the untrained refiner gives about everywhere (the published start gives 1/2). initialise: draw a start from
    `generator`, the trunk's from the file `trunk_weights` where there is one.
    """

    def __init__(
        self,
        variant: Variant = "bise",
        trunk: TrunkName = "resnet101",
        base: int = 64,
        *,
        train_trunk: bool = False,
        prior: float | None = None,
        trunk_weights: Path | None = None,
        generator: torch.Generator | None = None,
        initialise: bool = True,
    ) -> None:
        super().__init__()
        self.trunk = FrozenTrunk(trunk, base)
        self.refiner = Refiner(variant, self.trunk.num_channels)
        self.train_trunk = train_trunk
        self.trunk.requires_grad_(train_trunk)
        if initialise:
            source = torch.Generator().manual_seed(0) if generator is None else generator
            start_trunk(self.trunk, trunk_weights, source)
            initialise_layers(self.refiner, source)
            if prior is not None:
                nn.init.constant_(self.refiner.get_parameter("project.conv2.bias"), math.log(prior / (1 - prior)))

    @property
    def target_levels(self) -> tuple[str, ...]:
        """Levels with a target model, in the order in which the refiner reads their scores."""
        return ("layer3", "layer4")[2 - self.refiner.num_scores :]

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """variant, trunk and base of the network with these weights. Raises NoWeightsError if they are of none."""
        variant, channels = refiner_options(state, REFINER_PREFIX)
        trunk, base = trunk_options(state, TRUNK_PREFIX)
        expected = FrozenTrunk(trunk, base).num_channels
        if channels != expected:
            raise NoWeightsError(f"the refiner reads {channels}, the trunk has {expected}")
        return {"variant": variant, "trunk": trunk, "base": base}

    def look(self, images: Tensor, *, with_layer5: bool = True) -> Features:
        """Features of normalised images (B, 3, H, W); with a gradient only where the trunk is trained."""
        with self._trunk_context():
            features: Features = self.trunk(images, with_layer5=with_layer5)
            return features

    def target_features(self, features: Features) -> list[Tensor]:
        """The maps that target models read, by `target_levels`; without gradient, since fits have none."""
        return [getattr(features, level).detach() for level in self.target_levels]

    def refine(self, features: Features, scores: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits (N, 1, H, W) of N objects; see Refiner.forward."""
        assert features.layer5 is not None
        logits: Tensor = self.refiner(features, scores, size)
        return logits

    def _trunk_context(self) -> AbstractContextManager[object]:
        return nullcontext() if self.train_trunk else torch.no_grad()
