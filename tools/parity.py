"""Say how far the executors are apart: per operation, per recipe, and in what they make of objects."""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import json
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from pipelines.benchmarks.executors import describe_machine
from pipelines.executors import EXECUTORS
from pipelines.parity.clips import PARITY_RECIPES, draw_clips
from pipelines.parity.comparison import Comparison, Distribution, ParityReport, compare_executors
from shards.reader import ShardSet
from shards.storage.paths import write_bytes
from tools.cli import Parser, run
from tools.made_video import made_shards
from trainers.records.provenance import read_versions
from trainers.running.distributed import Ranks, choose_device


def main() -> None:
    """Entry of the console script."""
    run(parity)


def parity(arguments: list[str]) -> int:
    """Compare, print tables, write JSON if asked. Returns the exit status."""
    options = _parse(arguments)
    device = choose_device(options.device, Ranks())  # before minutes of work
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="parity-", dir=options.scratch) as folder:
        path = options.dataset or made_shards(Path(folder))
        with ShardSet.open(path) as shard_set:
            clips = draw_clips(shard_set, options.split, options.recipes, options.clips)
            operation_clips = draw_clips(shard_set, options.split, ["rde_video"], options.clips)["rde_video"]
            name = shard_set.name
    report = compare_executors(clips, operation_clips, options.executors, device=device)
    versions = read_versions()
    print(f"{options.clips} clips of each recipe, videos of {name}; commit {versions['commit'][:12]}\n")
    print(_tables(report))
    if options.json is not None:
        found = {"dataset": name, "machine": describe_machine(), "versions": versions, "result": asdict(report)}
        write_bytes(options.json, (json.dumps(found, indent=2) + "\n").encode())
        print(f"\nwritten: {options.json}")
    return 0


def _parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="parity.py", description=__doc__)
    parser.add_argument("dataset", nargs="?", help="shard set of video (default: moving shapes, made on the spot)")
    parser.add_argument("--split", default="train", help="which videos (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=8, help="of each recipe (default: %(default)s)")
    parser.add_argument(
        "--executors", nargs="+", choices=list(EXECUTORS), default=list(EXECUTORS), help="default: all of them"
    )
    parser.add_argument(
        "--recipes", nargs="+", choices=list(PARITY_RECIPES), default=list(PARITY_RECIPES), help="default: all of them"
    )
    parser.add_argument("--device", default="cpu", help="where dali and the batched steps work (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files (default: the system's)")
    options = parser.parse_args(arguments)
    if options.clips < 1:
        parser.error("--clips must be at least 1")
    if "cpu" not in options.executors or len(options.executors) < 2:
        parser.error("--executors needs cpu, which the others are compared with, and at least one other")
    return options


def _tables(report: ParityReport) -> str:
    return "\n\n".join(
        [
            "Beside cpu; levels of 255 that values of images are apart, and what labels agree on\n\n"
            + _comparison_table("operation", report.operations),
            _comparison_table("recipe", report.recipes),
            _distribution_table(report.distributions),
        ]
    )


def _comparison_table(title: str, rows: Sequence[Comparison]) -> str:
    lines = [f"{title:<18}{'executor':<10}{'mean':>8}{'p99':>6}{'max':>6}{'equal labels':>15}{'object IoU':>12}"]
    for row in rows:
        pixels = f"{'-':>8}{'-':>6}{'-':>6}"
        if row.mean is not None:
            pixels = f"{row.mean:>8.3f}{row.p99:>6}{row.largest:>6}"
        lines.append(
            f"{row.what:<18}{row.executor:<10}{pixels}{_share(row.equal_labels):>15}{_share(row.object_overlap):>12}"
        )
    return "\n".join(lines)


def _distribution_table(rows: Sequence[Distribution]) -> str:
    lines = [f"{'distribution':<32}{'source':<16}{'count':>6}{'mean':>9}{'5 %':>9}{'50 %':>9}{'95 %':>9}"]
    lines += [
        f"{row.what:<32}{row.source:<16}{row.count:>6}{row.mean:>9.4f}{row.p5:>9.4f}{row.p50:>9.4f}{row.p95:>9.4f}"
        for row in rows
    ]
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"


if __name__ == "__main__":
    main()
