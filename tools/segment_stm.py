"""Arguments of tools/segment.py for STM-Cycle: sizes, memory, gradient correction."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from models.stm import Stm
from shards.wording import counted
from tools.argument_types import UsageError, not_negative, number_or
from tools.cli import Parser, sigterm_as_ctrl_c
from tools.progress import Progress
from tools.source_arguments import positive
from trainers.looking.cycle_erf import drawn_frames, write_cycle_erf
from trainers.methods import METHODS
from trainers.methods.stm import BOX
from trainers.prediction.files import OutputForm
from trainers.prediction.plan import SegmentationProtocol, VideoPlan
from trainers.prediction.videos import VideoSource
from trainers.segmenters.stm import LateObjects, StmOptions, Written
from trainers.segmenters.stm_correction import CorrectionOptions
from trainers.views import Sight

Normalise = Literal["imagenet", "scalar"]
MaskResize = Literal["nearest", "truncated"]
PICTURE_EVERY = 5


class StmArguments:
    """See MethodArguments in tools/segment_methods.py."""

    names = (
        "box",
        "fill_box",
        "correct",
        "correction_rate",
        "clamp",
        "objects_at_once",
        "write",
        "late_objects",
        "max_kept",
        "mask_resize",
        "normalise",
        "cycle_erf",
        "cycle_erf_every",
    )

    def add(self, parser: Parser) -> None:
        """See MethodArguments."""
        group = parser.add_argument_group("--model stm")
        group.add_argument(
            "--box",
            type=_box,
            metavar="HxW",
            help=f"pixels that frames fill as far as their aspect allows (default: {BOX[0]}x{BOX[1]}; or give "
            "--shorter-side)",
        )
        group.add_argument(
            "--fill-box",
            action="store_const",
            const=True,
            help="fill the rest of the box with black, as published (default: frames are as large as fits, not padded)",
        )
        group.add_argument(
            "--max-kept", type=number_or("all"), metavar="N", help="frames in memory at most (default: 40), or all"
        )
        group.add_argument(
            "--late-objects",
            choices=get_args(LateObjects),
            help="new masks are laid over the others, or replace them in memory, as published (default: merge)",
        )
        group.add_argument(
            "--mask-resize",
            choices=get_args(MaskResize),
            help="of given masks; published: truncated, which erodes them (default: nearest)",
        )
        group.add_argument(
            "--normalise", choices=get_args(Normalise), help="as the model was trained (default: imagenet)"
        )
        _add_correction(parser)
        _add_pictures(parser)

    def options(self, arguments: Namespace, protocol: SegmentationProtocol) -> StmOptions:
        """See MethodArguments."""
        if arguments.late_objects is not None and not protocol.late_objects:
            raise UsageError(
                f"--late-objects is about objects that begin later; {protocol.name} follows those of the first frame: "
                "leave it out, or use --protocol youtube_vos"
            )
        if arguments.cycle_erf_every is not None and arguments.cycle_erf is None:
            raise UsageError("--cycle-erf-every is about the pictures of --cycle-erf FOLDER: add that")
        usual = StmOptions()
        max_kept = usual.max_kept if arguments.max_kept is None else arguments.max_kept
        return StmOptions(
            mem_every=arguments.mem_every or usual.mem_every,
            correction=_correction(arguments),
            written=arguments.write or usual.written,
            late_objects=arguments.late_objects or usual.late_objects,
            max_kept=None if max_kept == "all" else max_kept,
            amp=arguments.amp,
        )

    def sight(self, arguments: Namespace, protocol: SegmentationProtocol) -> Sight:
        """See MethodArguments. Nothing is padded unless asked for: the network takes frames of any size."""
        native = arguments.shorter_side == "native"
        for name in ("box", "fill_box"):
            if getattr(arguments, name) is not None and arguments.shorter_side is not None:
                word = name.replace("_", "-")
                raise UsageError(f"--{word} is about the box, which --shorter-side replaces: leave one of them out")
        if native and arguments.mask_resize is not None:
            raise UsageError("--shorter-side native resizes no masks: leave --mask-resize out")
        shorter_side = None if native else arguments.shorter_side
        return dataclasses.replace(
            METHODS["stm"].sight(shorter_side),
            box=None if native or shorter_side is not None else arguments.box or BOX,
            fill_box=bool(arguments.fill_box),
            masks=arguments.mask_resize or "nearest",
            normalise=arguments.normalise or "imagenet",
        )


def _add_correction(parser: Parser) -> None:
    usual = CorrectionOptions()
    group = parser.add_argument_group("--model stm, gradient correction")
    group.add_argument(
        "--correct",
        nargs="?",
        type=positive,
        const=usual.iterations,
        metavar="N",
        help=f"correct the masks of kept frames by N gradient steps before they are remembered (N: {usual.iterations})",
    )
    group.add_argument(
        "--correction-rate", type=not_negative, metavar="R", help=f"length of a step (default: {usual.rate:g})"
    )
    group.add_argument("--clamp", action="store_const", const=True, help="keep corrected masks within 0..1")
    group.add_argument(
        "--objects-at-once",
        type=positive,
        metavar="N",
        help=f"of a correction: bounds its memory, not its result (default: {usual.objects_at_once})",
    )
    group.add_argument(
        "--write",
        choices=get_args(Written),
        help="label maps of kept frames: predicted as the published test.py, corrected as demo.py (default: predicted)",
    )


def _add_pictures(parser: Parser) -> None:
    group = parser.add_argument_group("--model stm, pictures")
    group.add_argument(
        "--cycle-erf",
        type=Path,
        metavar="FOLDER",
        help="draw which places of a frame lead back to the first masks: FOLDER/<video>/<frame>.png",
    )
    group.add_argument("--cycle-erf-every", type=positive, metavar="N", help=f"frames (default: {PICTURE_EVERY})")


def draw_cycle_erf(
    arguments: Namespace, model: nn.Module, source: VideoSource, plans: Sequence[VideoPlan], form: OutputForm
) -> str:
    """Draw the pictures asked for; what to say about them."""
    assert isinstance(model, Stm)
    options = _correction(arguments) or CorrectionOptions()
    every = arguments.cycle_erf_every or PICTURE_EVERY
    total, drawn = sum(len(drawn_frames(plan, every)) for plan in plans), 0
    with sigterm_as_ctrl_c(), Progress(total, "picture", "cycle-ERF") as bar:
        try:
            for plan in plans:
                for _ in write_cycle_erf(model, source, plan, arguments.cycle_erf, form, options=options, every=every):
                    drawn += 1
                    bar.add(1)
        except KeyboardInterrupt as stop:
            stop.add_note(f"{drawn} of {counted(total, 'cycle-ERF picture')} drawn; the same command draws all again")
            raise
    return f"{arguments.cycle_erf}: {counted(total, 'cycle-ERF picture')} of {counted(len(plans), 'video')}"


def _correction(arguments: Namespace) -> CorrectionOptions | None:
    """The correction asked for; UsageError for its details without it."""
    if arguments.correct is None:
        given = [
            name
            for name in ("correction_rate", "clamp", "objects_at_once", "write")
            if getattr(arguments, name) is not None
        ]
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')} is about the gradient correction: add --correct")
        return None
    usual = CorrectionOptions()
    return CorrectionOptions(
        arguments.correct,
        usual.rate if arguments.correction_rate is None else arguments.correction_rate,
        bool(arguments.clamp),
        usual.objects_at_once if arguments.objects_at_once is None else arguments.objects_at_once,
    )


def _box(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) >= 16 for side in sides):
        raise ArgumentTypeError(f"{text!r} is no size like 240x427, in pixels from 16")
    return int(sides[0]), int(sides[1])
