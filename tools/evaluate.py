"""Score predicted label maps against the truth: J, F and J&F with recall and decay. Always computed anew."""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import os
from argparse import Namespace
from pathlib import Path

from tqdm import tqdm

from tools.cli import Parser, run
from trainers.benchmarks import PROTOCOLS, evaluate, find_results
from trainers.score_reports import Report, format_report, write_report
from trainers.videos import open_videos


def main() -> None:
    """Entry of the console script."""
    run(evaluate_results)


def evaluate_results(arguments: list[str]) -> int:
    """The tool; returns its exit status."""
    options = _parse(arguments)
    protocol = PROTOCOLS[options.protocol]
    source = open_videos(options.dataset, list_folders=protocol.list_folders)
    videos = tuple(dict.fromkeys(options.videos)) if options.videos else source.select(options.split)
    results = find_results(options.results, videos)
    with tqdm(total=len(videos), unit="video", desc="scored", disable=None) as bar:
        scores = evaluate(source, results, protocol, videos, jobs=options.jobs, on_video=lambda video: bar.update())
    report = Report(protocol.name, options.split, source.identity, str(options.results), scores)
    written = write_report(options.output or options.results, report)
    print(f"{protocol.name} {options.split}: {len(videos)} videos, {len(scores)} objects\n")
    print(format_report(report))
    print("\nwritten: " + ", ".join(map(str, written)))
    return 0


def _parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="evaluate.py", description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of <video>/<frame>.png")
    parser.add_argument(
        "dataset",
        type=Path,
        metavar="DATASET_OR_FOLDER",
        help="the truth: a shard set, or a folder in the DAVIS layout",
    )
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), default="davis2017", help="default: %(default)s")
    parser.add_argument("--split", default="val", help="which videos, by the data set's lists (default: %(default)s)")
    parser.add_argument("--videos", nargs="+", metavar="NAME", help="these videos instead of all of the split")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the CSV and JSON files go (default: RESULTS)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}, expected at least 1")
    return options


if __name__ == "__main__":
    main()
