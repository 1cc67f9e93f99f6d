"""STM-Cycle as a method: one network for all stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.released_stm import start_from
from models.stm import Arch, Stm, base_channels
from trainers.choices import STRICT, Number
from trainers.objectives.stm_cycle import StmCycleOptions
from trainers.prediction.plan import SegmentationProtocol
from trainers.segmenters.stm import StmOptions, StmSegmenter
from trainers.views import Sight

BOX = (240, 427)
"""Height and width that frames fill as far as their aspect allows, in published results."""


def _width(value: float) -> float:
    base_channels(value)
    return value


@dataclass(frozen=True, config=STRICT)
class StmNetwork:
    """STM-Cycle's network, and what its trunks start from."""

    name: Literal["stm"] = "stm"
    arch: Arch = "resnet50"
    # Scales every channel count; 1 is the paper's.
    width: Annotated[Number, Field(gt=0), AfterValidator(_width)] = 1.0
    # Local file of ImageNet weights (torchvision's of that arch, V1), for both trunks; random where not given.
    weights: Path | None = None


class StmMethod:
    """See Method."""

    def require_stages(self, options: StmNetwork, objectives: Sequence[StmCycleOptions]) -> None:
        """See Method: any order will do."""

    def build(self, options: StmNetwork, objective: StmCycleOptions, generator: torch.Generator) -> Stm:
        """See Method."""
        return Stm(arch=options.arch, width=options.width, weights=options.weights, generator=generator)

    def restore(self, described: Mapping[str, Any], state: Mapping[str, Tensor]) -> Stm:
        """See Method."""
        return Stm(arch=described["arch"], width=described["width"], initialise=False)

    def start_from(self, model: nn.Module, path: Path, generator: torch.Generator) -> None:
        """See Method."""
        start_from(model, path)

    def fit_to(self, model: nn.Module, objective: StmCycleOptions, generator: torch.Generator) -> nn.Module:
        """See Method: the network is the same for all."""
        return model

    def segmenter(self, model: nn.Module, options: StmOptions | None = None) -> StmSegmenter:
        """See Method."""
        assert isinstance(model, Stm)
        return StmSegmenter(model, options or StmOptions())

    def sight(self, shorter_side: int | None) -> Sight:
        """See Method: frames fill BOX, and nothing is padded: the network takes any size."""
        box = BOX if shorter_side is None else None
        return Sight(shorter_side=shorter_side, box=box, multiple=1, smallest=16, images="bilinear")

    def published(self, model: nn.Module, protocol: SegmentationProtocol) -> tuple[StmOptions, Sight]:
        """See Method. It has the same settings for every benchmark."""
        return StmOptions(), self.sight(None)
