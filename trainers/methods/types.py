"""The questions every method answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainers.prediction.plan import SegmentationProtocol
from trainers.segmenters import Segmenter, SegmenterOptions
from trainers.views import Sight


class Method(Protocol):
    """A network from its options, from files and between stages; networks come on the CPU, randomness is `generator`'s.

    options: of the config's `model` section, of the method's own dataclass. objective: of a stage, likewise.
    """

    def require_stages(self, options: Any, objectives: Sequence[Any]) -> None:
        """Raise ValueError if stages with these objectives' options, in this order, cannot train such a network."""

    def build(self, options: Any, objective: Any, generator: torch.Generator) -> nn.Module:
        """A fresh network for a first stage with these objective options."""

    def restore(self, described: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
        """A network, weights undefined, that takes `state`. described: the `model` section of the checkpoint."""

    def start_from(self, model: nn.Module, path: Path, generator: torch.Generator) -> None:
        """Fill `model` with the weights of a file, growing what an earlier stage lacks. Raises ValueError."""

    def fit_to(self, model: nn.Module, objective: Any, generator: torch.Generator) -> nn.Module:
        """The network a stage with these objective options trains: `model` itself wherever it fits."""

    def segmenter(self, model: nn.Module, options: Any | None = None) -> Segmenter:
        """Follows objects with `model`, in the published way unless options say otherwise."""

    def sight(self, shorter_side: int | None) -> Sight:
        """The sizes its published results were made at; shorter_side: pixels, where something else asks for them."""

    def published(self, model: nn.Module, protocol: SegmentationProtocol) -> tuple[SegmenterOptions, Sight]:
        """How objects are followed, and at what sizes, in its results of a benchmark: as segment.py does by default.

        model: of networks that lack a part as yet, the nearest they can do.
        """
