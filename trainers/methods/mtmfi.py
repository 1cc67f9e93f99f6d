"""MTMFI and FRTM as a method: a trunk from ImageNet that stays as it is, and a refiner that learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.frozen_trunk import TrunkName
from models.mtmfi import TRUNK_PREFIX, Mtmfi
from models.refiner import Variant
from models.released_mtmfi import read_model
from models.weight_files import load_strictly, require_finite
from trainers.choices import STRICT, Count, Number
from trainers.prediction.plan import SegmentationProtocol
from trainers.segmenters.mtmfi import MtmfiOptions, MtmfiSegmenter
from trainers.views import Sight


@dataclass(frozen=True, config=STRICT)
class MtmfiNetwork:
    """Which refiner on which trunk."""

    name: Literal["mtmfi"] = "mtmfi"
    # bise: MTM + FI; initial: MTM; frtm: one target model, on layer4; bise-full: in their source, never released.
    variant: Variant = "bise"
    trunk: TrunkName = "resnet101"
    # Channels of the trunk's stem; 64 is torchvision's.
    base: Count = 64
    # Local file of ImageNet weights (torchvision's, V1) or of a trunk of ours; random where not given.
    trunk_weights: Path | None = None
    # The trunk learns too, which the method does not do; for trunks that start at random.
    train_trunk: bool = False
    # Probability of an object that the untrained refiner begins with, for short runs from a random trunk; null: about
    # 1/2, as published. Without it such runs may kill every channel that speaks for an object while they learn that
    # most pixels are background.
    prior: Annotated[Number, Field(gt=0, lt=1)] | None = None


class MtmfiMethod:
    """See Method."""

    def require_stages(self, options: MtmfiNetwork, objectives: Sequence[Any]) -> None:
        """See Method. Any order will do."""
        if options.train_trunk and any(objective.cache for objective in objectives):
            raise ValueError("target models of a trunk that learns cannot be kept; set objective.cache: false")

    def build(self, options: MtmfiNetwork, objective: Any, generator: torch.Generator) -> Mtmfi:
        """See Method."""
        return Mtmfi(
            options.variant,
            options.trunk,
            options.base,
            train_trunk=options.train_trunk,
            prior=options.prior,
            trunk_weights=options.trunk_weights,
            generator=generator,
        )

    def restore(self, described: Mapping[str, Any], state: Mapping[str, Tensor]) -> Mtmfi:
        """See Method."""
        return Mtmfi(initialise=False, train_trunk=bool(described.get("train_trunk")), **Mtmfi.options_of(state))

    def start_from(self, model: nn.Module, path: Path, generator: torch.Generator) -> None:
        """See Method. An authors' file fills the refiner, and the trunk stays as it is."""
        assert isinstance(model, Mtmfi)
        state = read_model(path)
        if not any(name.startswith(TRUNK_PREFIX) for name in state):
            state = {f"{TRUNK_PREFIX}{name}": tensor for name, tensor in model.trunk.state_dict().items()} | state
        load_strictly(model, state, path)
        require_finite(model.state_dict(), path)

    def fit_to(self, model: nn.Module, objective: Any, generator: torch.Generator) -> nn.Module:
        """See Method."""
        return model

    def segmenter(self, model: nn.Module, options: MtmfiOptions | None = None) -> MtmfiSegmenter:
        """See Method."""
        assert isinstance(model, Mtmfi)
        return MtmfiSegmenter(model, options or MtmfiOptions())

    def sight(self, shorter_side: int | None) -> Sight:
        """See Method: frames as they are, without padding."""
        return Sight(shorter_side=shorter_side, multiple=1, smallest=1)

    def published(self, model: nn.Module, protocol: SegmentationProtocol) -> tuple[MtmfiOptions, Sight]:
        """See Method. It has the same settings for every benchmark."""
        return MtmfiOptions(), self.sight(None)
