"""Command line of what can be asked of a source; which kind knows which option is the source's business."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

from shards.errors import DataError
from shards.scaling import Rounding, Scaling
from shards.sources.options import ANNOTATIONS, CHECKSUMS, DUPLICATES, MASK_READINGS, SourceOptions
from shards.storage.paths import locate


def add_source_arguments(parser: ArgumentParser) -> None:
    """Add the options of single kinds and of scaling."""
    group = parser.add_argument_group("options of single kinds")
    group.add_argument(
        "--annotations",
        choices=ANNOTATIONS,
        default="semi-supervised",
        help="davis2017: which folder of masks (default: %(default)s)",
    )
    group.add_argument(
        "--masks",
        choices=MASK_READINGS,
        default="ids",
        help="folder: what the values of masks mean (default: %(default)s)",
    )
    group.add_argument(
        "--list",
        action="append",
        default=[],
        metavar="FILE",
        help="text file of video names: a split of its name; the other videos are left out (repeatable)",
    )
    group.add_argument(
        "--duplicates",
        choices=DUPLICATES,
        default="keep",
        help="static: images with the same bytes, which are always listed (default: %(default)s)",
    )
    group.add_argument(
        "--md5", choices=CHECKSUMS, default="check", help="bl30k: sums of the published tars (default: %(default)s)"
    )
    scaling = parser.add_argument_group("scaling")
    scaling.add_argument(
        "--shorter-side",
        type=int,
        metavar="PIXELS",
        help="shrink to this shorter side: images bicubic, masks nearest, soft ones bilinear (default: as they are)",
    )
    scaling.add_argument("--enlarge", action="store_true", help="bring smaller ones up to it as well")
    scaling.add_argument(
        "--rounding",
        choices=get_args(Rounding),
        default="truncate",
        help="of the longer side: truncate gives 853x480 for 1280x720 (default: %(default)s)",
    )
    scaling.add_argument(
        "--jpeg-quality", type=int, default=75, metavar="Q", help="of scaled images (default: %(default)s)"
    )


def split_names(text: str) -> list[str]:
    """Splits of `train` or `train,val`, for an option that can be given several times (`action="extend"`)."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ArgumentTypeError(f"{text!r} names no split; write train, or train,val")
    return names


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.strip().isascii() or not text.strip().isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


@contextmanager
def arguments_of(parser: ArgumentParser) -> Iterator[None]:
    """Arguments that cannot be, as only the source or the plan can tell, are bad usage like any other."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        parser.error(str(error))


def source_options(given: Namespace) -> SourceOptions:
    """Options out of the parsed command line. Raises ValueError for values out of range."""
    scaling = None
    if given.shorter_side is not None:
        scaling = Scaling(given.shorter_side, given.enlarge, given.rounding, given.jpeg_quality)
    return SourceOptions(
        annotations=given.annotations,
        masks=given.masks,
        lists=tuple(locate(path) for path in given.list),
        duplicates=given.duplicates,
        md5=given.md5,
        scaling=scaling,
    )
