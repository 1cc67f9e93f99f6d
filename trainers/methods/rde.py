"""RDE as a method: a network that grows a SAM and a stem channel between still images and video."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.memory import BankMode
from models.rde import Rde, base_channels
from models.released_rde import advance, start_from
from trainers.choices import STRICT, Number
from trainers.objectives.rde_parts import CommonOptions
from trainers.prediction.plan import SegmentationProtocol
from trainers.segmenters.rde import RdeOptions, RdeSegmenter
from trainers.views import Sight

logger = logging.getLogger(__name__)


def _width(value: float) -> float:
    base_channels(value)
    return value


@dataclass(frozen=True, config=STRICT)
class RdeNetwork:
    """RDE's network, and what its trunks start from."""

    name: Literal["rde"] = "rde"
    # Scales every channel count; 1 is the paper's.
    width: Annotated[Number, Field(gt=0), AfterValidator(_width)] = 1.0
    # Local files of ImageNet weights (torchvision's ResNet-50 and ResNet-18, V1); random where not given.
    key_weights: Path | None = None
    value_weights: Path | None = None


class RdeMethod:
    """See Method."""

    def require_stages(self, options: RdeNetwork, objectives: Sequence[CommonOptions]) -> None:
        """See Method."""
        still = [objective.still for objective in objectives]
        if still != sorted(still, reverse=True):
            raise ValueError("a stage of still images follows one of video; put it first, a SAM cannot be taken away")

    def build(self, options: RdeNetwork, objective: CommonOptions, generator: torch.Generator) -> Rde:
        """See Method."""
        return Rde(
            width=options.width,
            stage0=objective.still,
            key_weights=options.key_weights,
            value_weights=options.value_weights,
            generator=generator,
        )

    def restore(self, described: Mapping[str, Any], state: Mapping[str, Tensor]) -> Rde:
        """See Method."""
        return Rde(initialise=False, **(Rde.options_of(state) | {"width": described["width"]}))

    def start_from(self, model: nn.Module, path: Path, generator: torch.Generator) -> None:
        """See Method."""
        start_from(model, path, generator)

    def fit_to(self, model: nn.Module, objective: CommonOptions, generator: torch.Generator) -> nn.Module:
        """See Method."""
        assert isinstance(model, Rde)
        if objective.still or model.mem_compress is not None:
            return model
        logger.info("the network grows a SAM and a stem channel")
        return advance(model, generator)

    def segmenter(self, model: nn.Module, options: RdeOptions | None = None) -> RdeSegmenter:
        """See Method."""
        assert isinstance(model, Rde)
        return RdeSegmenter(model, options or RdeOptions(mode=_usual_mode(model)))

    def sight(self, shorter_side: int | None) -> Sight:
        """See Method: frames as they are, padded to multiples of 16."""
        return Sight(shorter_side=shorter_side)

    def published(self, model: nn.Module, protocol: SegmentationProtocol) -> tuple[RdeOptions, Sight]:
        """See Method."""
        assert isinstance(model, Rde)
        options = RdeOptions(mode=_usual_mode(model), mem_every=protocol.mem_every, top_k=protocol.top_k)
        return options, self.sight(protocol.shorter_side)


def _usual_mode(model: Rde) -> BankMode:
    """A network of still images has no SAM: it remembers the first and the last frame."""
    return RdeOptions().mode if model.mem_compress is not None else "two-frames"
