"""Examine storage: how fast it answers, how to read from it, and how many clips per second it can feed."""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from textwrap import fill

from pipelines.reading.clip_reader import READ_PLANS
from pipelines.reading.doctor import Diagnosis, Examination, diagnose_folder, diagnose_set, num_cells, verdict
from shards.building.plan import parse_size
from shards.index.copies import copies_folder, index_copies
from shards.manifest import MANIFEST
from shards.reader import ShardSet
from shards.shard_files import open_shard_for_clips
from shards.speed import Measured
from shards.storage.paths import Location, RemotePath, locate, write_bytes
from tools.cli import TEXT_WIDTH, Parser, output_file, run
from tools.progress import Progress
from tools.source_arguments import positive


def main() -> None:
    """Entry of the console script."""
    run(doctor)


def doctor(arguments: list[str]) -> int:
    """Measure, print tables and a verdict, write JSON if asked. Returns the exit status."""
    given = _parse(arguments)
    found = _diagnose(given.path, given)
    print(_reads_table(found))
    print(f"\n{_limits_table(found)}")
    print(f"\n{_recipes_table(found)}\n")
    for sentence in verdict(found) + _index_copies(given.path):
        print(fill(sentence, TEXT_WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    if given.json is not None:
        write_bytes(given.json, (json.dumps(asdict(found) | {"verdict": verdict(found)}, indent=2) + "\n").encode())
        print(f"written: {given.json}")
    return 0


def _parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="doctor.py", description=__doc__)
    parser.add_argument("path", type=locate, help="shard set or folder of large files, or the URL of one")
    parser.add_argument("--split", help="which videos of a set (default: train, or the only one)")
    parser.add_argument("--threads", type=positive, default=16, help="requests at a time (default: %(default)s)")
    parser.add_argument("--memory", default="1GB", help="for resident videos, of each process (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.7, help="at most, for each cell (default: %(default)s)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the numbers there, too")
    given = parser.parse_args(arguments)
    if not given.seconds > 0:
        parser.error("--seconds must be above 0")
    try:
        given.memory = parse_size(given.memory)
    except ValueError as error:
        parser.error(str(error))
    return given


def _diagnose(path: Location, given: Namespace) -> Diagnosis:
    with Progress(num_cells(), "measurement") as bar:
        wanted = Examination(given.split or "train", given.threads, given.seconds, given.memory, lambda: bar.add(1))
        if not (path / MANIFEST).is_file():
            return diagnose_folder(path, wanted)
        with ShardSet.open(path, open_shard_for_clips) as shard_set:
            splits = list(shard_set.manifest.splits)
            split = given.split or ("train" if "train" in splits or not splits else splits[0])
            shard_set.select(split)  # a wrong name is told before anything is measured
            wanted = Examination(split, given.threads, given.seconds, given.memory, lambda: bar.add(1))
            return diagnose_set(shard_set, wanted)


def _reads_table(found: Diagnosis) -> str:
    head = f"{'bytes':>9}{'at a time':>11}{'MB/s':>9}{'reads/s':>10}{'median ms':>11}{'p99 ms':>9}{'cold':>7}"
    rows = [_reads_row(read, f"{read.cold:>6.0%}" if read.cold is not None else "     ?") for read in found.reads]
    return "\n".join([head, *rows, _reads_row(found.again, " again")])


def _reads_row(read: Measured, state: str) -> str:
    rates = f"{read.bandwidth / 1e6:>9.1f}{read.reads_per_second:>10.0f}"
    return f"{read.size:>9}{read.parallel:>11}{rates}{1e3 * read.p50:>11.3f}{1e3 * read.p99:>9.3f} {state}"


def _limits_table(found: Diagnosis) -> str:
    rows = [f"{limit.name:<28}{_megabytes(limit.bytes_per_second):>14}   {limit.note}" for limit in found.limits]
    return "\n".join(["walls", *rows])


def _megabytes(rate: float | None) -> str:
    return "?" if rate is None else f"{rate / 1e6:.0f} MB/s"


def _recipes_table(found: Diagnosis) -> str:
    head = f"{'recipe':<22}{'frames':>7}{'MB':>7}{'frame':>9}{'span':>9}{'resident':>10}{'decoding':>10}  clips/s"
    rows = []
    for one in found.recipes:
        plans = [_rate(one.clips_per_second.get(name)) for name in READ_PLANS]
        decoding = "" if one.decoding is None else f"{one.decoding:.0f}"
        figures = f"{plans[0]:>9}{plans[1]:>9}{plans[2]:>10}{decoding:>10}"
        rows.append(f"{one.recipe:<22}{one.num_frames:>7}{one.megabytes:>7.2f}{figures}  by {one.plan}")
    rows += [f"{name:<22} not for this set: {reason}" for name, reason in found.not_predicted.items()]
    return "\n".join([head, *rows])


def _rate(clips_per_second: float | None) -> str:
    return "" if clips_per_second is None else f"{clips_per_second:.0f}"


def _index_copies(path: Location) -> list[str]:
    """Of remote sets: what their indexes take on this machine's disk."""
    copies = index_copies() if isinstance(path, RemotePath) else []
    if not copies:
        return []
    size = sum(copy.num_bytes for copy in copies) / 1e6
    sets = "1 remote set" if len(copies) == 1 else f"{len(copies)} remote sets"
    return [
        f"Copies of the indexes of {sets} take {size:.0f} MB in {copies_folder()}; they may be removed at any time."
    ]


if __name__ == "__main__":
    main()
