"""Convert a data set into shards: tools/shard.py KIND SOURCE... OUT."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import logging
import os
import time
from argparse import ArgumentTypeError, Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from shards.building.build import (
    BuildResult,
    Engine,
    Part,
    build,
    build_part,
    finish_build,
    is_unfinished,
    read_listing,
)
from shards.building.cluster import run_on_dask
from shards.building.jobs import Progress as Work
from shards.building.plan import BuildRequest, Plan, make_plan, parse_size
from shards.building.probe import estimate_build
from shards.building.work import run_jobs
from shards.findings import REJECTED, read_findings
from shards.manifest import MANIFEST
from shards.masks import MASK_CODECS
from shards.reader import ShardSet
from shards.sources import SOURCES
from shards.storage.paths import locate
from shards.wording import counted
from tools.cli import Parser, is_store_error, run
from tools.progress import Progress
from tools.source_arguments import add_source_arguments, arguments_of, positive, source_options, split_names

RESUME = "run the same command again to go on from the finished shards"


def main() -> None:
    """Entry of the console script."""
    run(shard)


def shard(arguments: list[str]) -> int:
    """Plan, build, summarise. Returns the exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.scheduler and given.engine != "dask":
        parser.error("argument --scheduler: needs --engine dask")
    with TemporaryDirectory(prefix="vosforge-") as scratch:
        with arguments_of(parser):
            request, plan = _plan(given, Path(scratch))
        return _run(given, request, plan)


def _plan(given: Namespace, scratch: Path) -> tuple[BuildRequest, Plan]:
    request = _request(given)
    # A dry run, and looking whether a finished set is up to date, must leave nothing with the set.
    idle = given.dry_run or (request.root / MANIFEST).is_file()
    # Parts and the finish use the listing of the first of them: folders of millions of files are walked once.
    listing = read_listing(request) if given.part or given.finish else None
    return request, make_plan(request, listing, scratch if idle else None)


def _run(given: Namespace, request: BuildRequest, plan: Plan) -> int:
    _print_plan(request, plan)
    if given.dry_run:
        _print_estimate(request, plan)
        return 0
    started = time.monotonic()
    if given.part:
        _build_part(request, plan, given)
        return 0
    result = finish_build(request, plan) if given.finish else _build(request, plan, given)
    if result.already_there:
        print(f"{result.root} is complete already: nothing to do")
        return 0
    _print_summary(result, time.monotonic() - started, built=not given.finish)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="shard.py", description="Convert a data set into WebDataset tars with an index.")
    parser.add_argument("kind", choices=sorted(SOURCES), help="layout of the source")
    parser.add_argument(
        "source", nargs="+", help="folder of the data set, or its URL (s3://...); for bl30k also the published tars"
    )
    parser.add_argument("out", help="folder that gets a folder with the shards, or its URL")
    parser.add_argument(
        "--split",
        type=split_names,
        action="extend",
        metavar="S",
        help="split to convert, or several: --split train,val or repeated (default: every list with videos)",
    )
    parser.add_argument("--name", help="name of the set and its folder (default: the kind)")
    parser.add_argument("--resolution", default="480p", help="folder below JPEGImages (default: %(default)s)")
    parser.add_argument("--jobs", type=positive, default=len(os.sched_getaffinity(0)), help="cores (default: all)")
    parser.add_argument(
        "--shard-size", type=_size, default="1GB", help="about how large a tar gets (default: %(default)s)"
    )
    parser.add_argument(
        "--mask-codec",
        choices=MASK_CODECS,
        default="lz4",
        help="lz4: fast; png: for other readers (default: %(default)s)",
    )
    parser.add_argument(
        "--on-bad",
        choices=("stop", "skip"),
        default="stop",
        help="at refused input: end the build, or leave out its video (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print plan and estimate, write nothing")
    share = parser.add_mutually_exclusive_group()
    share.add_argument("--part", type=_part, metavar="I/N", help="make this share of the shards only, 1/N to N/N")
    share.add_argument("--finish", action="store_true", help="make a set of the shards that all parts have made")
    parser.add_argument(
        "--engine", choices=("local", "dask"), default="local", help="what runs the jobs (default: %(default)s)"
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of Dask (default: a cluster on this machine)")
    add_source_arguments(parser)
    return parser


def _request(given: Namespace) -> BuildRequest:
    return BuildRequest(
        kind=given.kind,
        sources=tuple(locate(source) for source in given.source),
        out=locate(given.out),
        name=given.name,
        splits=None if given.split is None else tuple(given.split),
        resolution=given.resolution,
        mask_codec=given.mask_codec,
        shard_size=given.shard_size,
        on_bad=given.on_bad,
        jobs=given.jobs,
        options=source_options(given),
    )


def _part(text: str) -> Part:
    try:
        number, _, count = text.partition("/")
        return Part(int(number), int(count))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no part; write 3/16 for the third of sixteen") from None


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _print_plan(request: BuildRequest, plan: Plan) -> None:
    frames = sum(size.num_frames for size in plan.sizes.values())
    num_bytes = sum(size.num_bytes for size in plan.sizes.values())
    source = f"{counted(len(plan.sizes), 'video')}, {counted(frames, 'frame')}, {num_bytes / 1e6:.1f} MB"
    print(f"{source} -> {counted(len(plan.shards), 'shard')} in {request.root}")
    splits = Counter(split for size in plan.sizes.values() for split in size.splits)
    print("splits: " + ", ".join(f"{split} {count}" for split, count in sorted(splits.items())))


def _print_estimate(request: BuildRequest, plan: Plan) -> None:
    estimate = estimate_build(request, plan)
    if estimate is None:
        print("no estimate: none of the frames tried was usable")
        return
    hours, minutes = divmod(round(estimate.seconds / 60), 60)
    duration = f"{hours} h {minutes} min" if estimate.seconds >= 600 else f"{estimate.seconds:.0f} s"
    size = f"about {estimate.bytes / 1e6:.0f} MB in {counted(len(plan.shards), 'shard')}"
    tried = f"from {counted(estimate.num_frames, 'frame')}, one after the other"
    print(f"{size}, {duration} on {counted(request.jobs, 'core')} ({tried})")


class _Bar:
    """Progress of a build: frames, MB/s, time left, refusals. Appears with the first report."""

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._shown: Progress | None = None
        self._started = time.monotonic()
        self._bytes = 0
        self._refused = 0

    def show(self, work: Work) -> None:
        """Add what was done; the first report tells what an earlier run had done."""
        if self._shown is None:
            self._shown = Progress(self._num_frames, "frame", initial=work.frames)
            return
        self._bytes += work.bytes
        self._refused += work.refused
        speed = self._bytes / 1e6 / max(1e-9, time.monotonic() - self._started)
        self._shown.add(work.frames, f"{speed:.0f} MB/s, {self._refused} refused")

    def close(self) -> None:
        """Leave the terminal to whatever comes next."""
        if self._shown is not None:
            self._shown.close()


def _build(request: BuildRequest, plan: Plan, given: Namespace) -> BuildResult:
    bar = _Bar(sum(size.num_frames for size in plan.sizes.values()))
    with _resumable(request, bar):
        return build(request, plan, bar.show, _engine(given))


def _build_part(request: BuildRequest, plan: Plan, given: Namespace) -> None:
    part: Part = given.part
    mine = plan.shards[part.number - 1 :: part.count]
    bar = _Bar(sum(plan.sizes[name].num_frames for names in mine for name in names))
    with _resumable(request, bar):
        build_part(request, plan, bar.show, part, _engine(given))
    made = counted(len(mine), "shard")
    print(f"part {part.number} of {part.count} is done: {made}; --finish after the last part makes the set")


def _engine(given: Namespace) -> Engine:
    if given.engine == "local":
        return run_jobs

    import distributed  # noqa: PLC0415  an extra; its import sets the level of its messages, so ours comes after it

    logging.getLogger(distributed.__name__).setLevel(logging.WARNING)

    def announce(address: str) -> None:
        print(f"Dask dashboard: {address}")

    return partial(run_on_dask, scheduler=given.scheduler, announce=announce)


@contextmanager
def _resumable(request: BuildRequest, bar: _Bar) -> Iterator[None]:
    """Say with whatever ends a build that has begun that the same command goes on with it."""
    try:
        yield
    except BaseException as error:
        going_on_helps = isinstance(error, KeyboardInterrupt | OSError) or is_store_error(error)
        if going_on_helps and is_unfinished(request):
            error.add_note(RESUME)
        raise
    finally:
        bar.close()


def _print_summary(result: BuildResult, seconds: float, *, built: bool) -> None:
    manifest = result.manifest
    num_bytes = sum(facts.bytes for facts in manifest.shards)
    with ShardSet.open(result.root) as shard_set:
        objects = sum(len(shard_set.videos.object_ids(video)) for video in range(shard_set.num_videos))
        annotated = sum(int(shard_set.annotated(video).sum()) for video in range(shard_set.num_videos))
    shards = f"{counted(len(manifest.shards), 'shard')}, {num_bytes / 1e6:.1f} MB"
    print(f"{result.root}: {shards}, fingerprint {manifest.fingerprint[:16]}")
    contents = f"{counted(manifest.num_videos, 'video')}, {counted(manifest.num_frames, 'frame')}"
    share = f"{annotated / manifest.num_frames:.1%} of the frames annotated"
    print(f"{contents}, {counted(objects, 'object')}, {share}")
    if built:
        print(f"{seconds:.1f} s, {manifest.num_frames / seconds:.0f} frames/s, {num_bytes / 1e6 / seconds:.0f} MB/s")
    findings = read_findings(result.root)
    dropped = {finding.video for finding in findings if finding.severity == "refused"}
    if dropped:
        print(f"{counted(len(dropped), 'video')} left out because of refused input")
    reasons = Counter((finding.severity, finding.reason, finding.what_was_done) for finding in findings)
    for (severity, reason, done), count in sorted(reasons.items()):
        print(f"{severity:9} {count:6} x {reason}: {done}")
    if reasons:
        print(f"each of these is a line of {result.root / REJECTED}")


if __name__ == "__main__":
    main()
