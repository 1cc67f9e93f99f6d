"""Prove shard sets: tools/check.py DATASET..."""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import os

from tqdm import tqdm

from shards.check import CheckedSet, check_set, rebuild_index
from shards.manifest import ShardFacts, read_manifest
from shards.storage import Location, locate
from tools.cli import BAD_DATA, Parser, run


def main() -> None:
    """Entry of the console script."""
    run(check)


def check(arguments: list[str]) -> int:
    """Check every set given and print what is wrong. Returns the exit status."""
    parser = Parser(prog="check.py", description="Read every byte of shard sets and say what is wrong and where.")
    parser.add_argument("dataset", nargs="+", type=locate, help="folder with a manifest.json, or its URL")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="cores (default: all)")
    parser.add_argument("--rebuild-index", action="store_true", help="make the index again from the tars, then check")
    given = parser.parse_args(arguments)
    if given.jobs < 1:
        parser.error(f"argument --jobs: {given.jobs} is below 1")
    if given.rebuild_index:
        for root in given.dataset:
            print(f"{root}: index made again for {rebuild_index(root).num_frames} frames")
    outcomes = [(root, _check(root, given.jobs)) for root in given.dataset]
    _print_table(outcomes)
    for _, outcome in outcomes:
        for problem in outcome.problems:
            print(f"{problem.place}: {problem.found}; {problem.remedy}")
    return BAD_DATA if any(outcome.problems for _, outcome in outcomes) else 0


def _check(root: Location, jobs: int) -> CheckedSet:
    num_bytes = sum(facts.bytes for facts in read_manifest(root).shards)
    with tqdm(total=num_bytes, unit="B", unit_scale=True, desc=root.name) as bar:

        def show(facts: ShardFacts) -> None:
            bar.update(facts.bytes)

        return check_set(root, jobs, show)


def _print_table(outcomes: list[tuple[Location, CheckedSet]]) -> None:
    print(f"{'set':32} {'shards':>7} {'videos':>7} {'frames':>8} {'MB':>10} {'refused':>8} {'problems':>9}")
    for root, outcome in outcomes:
        manifest = outcome.manifest
        megabytes = sum(facts.bytes for facts in manifest.shards) / 1e6
        problems = len(outcome.problems) or "none"
        counts = f"{len(manifest.shards):7} {manifest.num_videos:7} {manifest.num_frames:8} {megabytes:10.1f}"
        print(f"{root.name:32} {counts} {manifest.refused:8} {problems:>9}")


if __name__ == "__main__":
    main()
