"""Arguments of tools/segment.py that belong to MTMFI and FRTM."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import get_args

from models.target_memory import Growth
from pipelines.first_frame.plans import Hole
from tools.argument_types import UsageError, not_negative
from tools.cli import Parser
from tools.source_arguments import positive
from trainers.methods import METHODS
from trainers.prediction.plan import SegmentationProtocol
from trainers.segmenters.mtmfi import Merging, MtmfiOptions
from trainers.views import Sight


class MtmfiArguments:
    """How target models are fitted, and how objects share the pixels."""

    names = ("trunk_weights", "fast", "merging", "target_channels", "forgetting_rate", "growth", "hole")

    def add(self, parser: Parser) -> None:
        """See MethodArguments. What can be told from the weights (MTM, MTM + FI, FRTM) is no argument."""
        usual = MtmfiOptions()
        group = parser.add_argument_group(
            "--model mtmfi", "MTM, MTM + FI or FRTM, told from the weights; every frame is shown to the model"
        )
        group.add_argument(
            "--trunk-weights", type=Path, metavar="FILE", help="torchvision's V1 weights, which authors' files lack"
        )
        group.add_argument(
            "--fast",
            action="store_const",
            const=True,
            help="fewer iterations: 35 and 5 in place of 45 and 10 per level",
        )
        group.add_argument(
            "--merging", choices=get_args(Merging), help=f"of several objects (default: {usual.merging})"
        )
        group.add_argument("--target-channels", type=positive, metavar="C", help="default: 64, with FRTM's weights 96")
        group.add_argument(
            "--forgetting-rate", type=not_negative, metavar="R", help="default: 750 (FRTM for YouTube-VOS: 75)"
        )
        group.add_argument(
            "--growth", choices=get_args(Growth), help="of the newest sample's weight (default: by the weights)"
        )
        group.add_argument(
            "--hole", choices=get_args(Hole), help="what is put behind the moved object (default: telea)"
        )

    def options(self, arguments: Namespace, protocol: SegmentationProtocol) -> MtmfiOptions:
        """See MethodArguments."""
        if arguments.mem_every is not None:
            raise UsageError("target models learn from every frame, --mem-every says nothing to them: leave it out")
        given = {
            "num_channels": arguments.target_channels,
            "growth": arguments.growth,
            "forgetting_rate": arguments.forgetting_rate,
            "hole": arguments.hole,
            "merging": arguments.merging,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        return MtmfiOptions(fast=bool(arguments.fast), amp=arguments.amp, **chosen)

    def sight(self, arguments: Namespace, protocol: SegmentationProtocol) -> Sight:
        """See MethodArguments. Frames are seen as they are, without padding, unless --shorter-side is given."""
        side = arguments.shorter_side
        return METHODS["mtmfi"].sight(None if side in (None, "native") else side)
