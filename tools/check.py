"""Prove shard sets: tools/check.py DATASET..."""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import os
from argparse import Namespace

from shards.check import CheckedSet, check_set, rebuild_index
from shards.errors import DataError
from shards.manifest import ShardFacts, read_manifest
from shards.storage.paths import Location, locate
from shards.wording import counted
from tools.cli import BAD_DATA, Parser, run
from tools.progress import Progress
from tools.source_arguments import positive


def main() -> None:
    """Entry of the console script."""
    run(check)


def check(arguments: list[str]) -> int:
    """Check every set given and print what is wrong. Returns the exit status."""
    parser = Parser(prog="check.py", description="Read every byte of shard sets and say what is wrong and where.")
    parser.add_argument("dataset", nargs="+", type=locate, help="folder with a manifest.json, or its URL")
    parser.add_argument("--jobs", type=positive, default=len(os.sched_getaffinity(0)), help="cores (default: all)")
    parser.add_argument("--rebuild-index", action="store_true", help="make the index again from the tars, then check")
    given = parser.parse_args(arguments)
    outcomes = [(root, _outcome(root, given)) for root in given.dataset]
    _print_table(outcomes)
    lines = [line for _, outcome in outcomes for line in _problems(outcome)]
    for line in lines:
        print(line)
    return BAD_DATA if lines else 0


def _outcome(root: Location, given: Namespace) -> CheckedSet | DataError:
    """What is wrong with a set, or why it cannot even be looked at; the other sets are checked all the same."""
    try:
        if given.rebuild_index:
            print(f"{root}: index made again for {counted(rebuild_index(root).num_frames, 'frame')}")
        return _check(root, given.jobs)
    except DataError as error:
        return error


def _problems(outcome: CheckedSet | DataError) -> list[str]:
    if isinstance(outcome, DataError):
        return [str(outcome)]
    return [f"{problem.place}: {problem.found}; {problem.remedy}" for problem in outcome.problems]


def _check(root: Location, jobs: int) -> CheckedSet:
    num_bytes = sum(facts.bytes for facts in read_manifest(root).shards)
    with Progress(num_bytes, "B", root.name, scaled=True) as bar:

        def show(facts: ShardFacts) -> None:
            bar.add(facts.bytes)

        return check_set(root, jobs, show)


def _print_table(outcomes: list[tuple[Location, CheckedSet | DataError]]) -> None:
    print(f"{'set':32} {'shards':>7} {'videos':>7} {'frames':>8} {'MB':>10} {'refused':>8} {'problems':>9}")
    for root, outcome in outcomes:
        if isinstance(outcome, DataError):
            print(f"{root.name:32} {'not a finished set':>47} {1:>9}")
            continue
        manifest = outcome.manifest
        megabytes = sum(facts.bytes for facts in manifest.shards) / 1e6
        problems = len(outcome.problems) or "none"
        counts = f"{len(manifest.shards):7} {manifest.num_videos:7} {manifest.num_frames:8} {megabytes:10.1f}"
        print(f"{root.name:32} {counts} {manifest.refused:8} {problems:>9}")


if __name__ == "__main__":
    main()
