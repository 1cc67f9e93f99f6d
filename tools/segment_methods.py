"""Arguments of tools/segment.py that belong to one method: how it follows objects."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Protocol

from models.memory import BANK_MODES, FIRST_TWICE
from tools.argument_types import UsageError, number_or
from tools.cli import Parser
from tools.segment_mtmfi import MtmfiArguments
from tools.segment_stm import StmArguments
from trainers.prediction.plan import SegmentationProtocol
from trainers.segmenters.rde import RdeOptions
from trainers.views import Sight


class MethodArguments(Protocol):
    """A method's own arguments. Their default is None, so that those of another method can be told and refused."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arguments, as they are in a Namespace."""

    def add(self, parser: Parser) -> None:
        """Add a group with the arguments `names`."""

    def options(self, arguments: Namespace, protocol: SegmentationProtocol) -> Any:
        """SegmenterOptions from parsed arguments; what is not given has the protocol's or the published value.

        Raises UsageError for an argument that would change nothing beside the others.
        """

    def sight(self, arguments: Namespace, protocol: SegmentationProtocol) -> Sight:
        """The sizes the model works at, likewise."""


class RdeArguments:
    """The memory bank of RDE."""

    names = ("mode", "top_k", "include_last", "first_frame_once")

    def add(self, parser: Parser) -> None:
        """See MethodArguments."""
        group = parser.add_argument_group("--model rde")
        group.add_argument("--mode", choices=BANK_MODES, help=f"memory bank (default: {RdeOptions().mode})")
        group.add_argument(
            "--top-k",
            type=number_or("all"),
            metavar="K",
            help="memory positions read per query position, or all (default: 20 for youtube_vos, else 40)",
        )
        group.add_argument("--include-last", action="store_const", const=True, help="memorise every frame")
        group.add_argument(
            "--first-frame-once",
            action="store_const",
            const=True,
            help="one copy of the first frame in memory, where the mode holds two as published",
        )

    def options(self, arguments: Namespace, protocol: SegmentationProtocol) -> RdeOptions:
        """See MethodArguments."""
        mode = arguments.mode or RdeOptions().mode
        _refuse_idle(arguments, mode)
        top_k = protocol.top_k if arguments.top_k is None else arguments.top_k
        return RdeOptions(
            mode,
            protocol.mem_every if arguments.mem_every is None else arguments.mem_every,
            None if top_k == "all" else top_k,
            bool(arguments.include_last),
            arguments.amp,
            bool(arguments.first_frame_once),
        )

    def sight(self, arguments: Namespace, protocol: SegmentationProtocol) -> Sight:
        """See MethodArguments."""
        return usual_sight(arguments, protocol)


METHOD_ARGUMENTS: dict[str, MethodArguments] = {"rde": RdeArguments(), "stm": StmArguments(), "mtmfi": MtmfiArguments()}


def usual_sight(arguments: Namespace, protocol: SegmentationProtocol) -> Sight:
    """Frames at --shorter-side or the protocol's, padded to multiples of 16."""
    shorter_side = protocol.shorter_side if arguments.shorter_side is None else arguments.shorter_side
    return Sight(shorter_side=None if shorter_side == "native" else shorter_side)


def refuse_foreign(parser: Parser, arguments: Namespace) -> None:
    """A usage error for arguments of another method than the one chosen."""
    for method, group in METHOD_ARGUMENTS.items():
        for name in group.names:
            if method != arguments.model and getattr(arguments, name) is not None:
                parser.error(f"--{name.replace('_', '-')} goes with --model {method}, not {arguments.model}")


def _refuse_idle(arguments: Namespace, mode: str) -> None:
    """UsageError for what a bank of this mode never asks about."""
    if arguments.include_last and arguments.mem_every is not None:
        raise UsageError("--include-last memorises every frame: leave --mem-every out")
    if mode == "gt" and (arguments.include_last or arguments.mem_every is not None):
        word = "--include-last" if arguments.include_last else "--mem-every"
        raise UsageError(f"--mode gt remembers the first frame alone: leave {word} out")
    if arguments.first_frame_once and mode not in FIRST_TWICE:
        several = ", ".join(sorted(FIRST_TWICE))
        raise UsageError(f"--mode {mode} holds the first frame once anyway; --first-frame-once is for {several}")
