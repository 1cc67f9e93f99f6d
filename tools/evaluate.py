"""Score predicted label maps against the truth: J, F and J&F with recall and decay. Always computed anew."""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import logging
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pipelines.pictures import save_png
from shards.wording import counted
from tools.argument_types import UsageError
from tools.cli import Parser, run, sigterm_as_ctrl_c
from tools.progress import Progress
from trainers.prediction.videos import VideoSource, choose_split, choose_videos, open_videos
from trainers.scoring.pictures import worst_frames, worst_sheet, write_plots
from trainers.scoring.protocols import PROTOCOLS, Protocol, evaluate, usual_protocol
from trainers.scoring.reports import Report, format_report, write_curves, write_report
from trainers.scoring.types import ObjectScores, ResultFolder, find_results
from trainers.scoring.youtube import Categories, read_categories


def main() -> None:
    """Entry of the console script."""
    run(evaluate_results)


def evaluate_results(arguments: list[str]) -> int:
    """The tool; returns its exit status."""
    options = _parse(arguments)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its font cache
    source, protocol = _open(options)
    split = choose_split(source, options.split, protocol.splits)
    if options.categories is not None and protocol.name != "youtube_vos":
        raise UsageError(f"--categories goes with --protocol youtube_vos; these are scored by {protocol.name}")
    videos = choose_videos(source, split, options.videos, within_split=options.split is not None)
    results = find_results(options.results, videos)
    categories = Categories() if options.categories is None else read_categories(options.categories)
    with sigterm_as_ctrl_c():
        scores = _score(source, results, protocol, videos, jobs=options.jobs)
    figures = protocol.figures(source, scores, categories)
    label = f"{split}-selected" if options.videos else split  # the files of a whole split are not those of a part
    report = Report(protocol, label, source.identity, str(options.results), scores, figures)
    folder = options.out or options.results
    written = [
        *write_report(folder, report),
        *_write_extras(options, folder, label, scores, source=source, results=results),
    ]
    counts = f"{counted(len(videos), 'video')}, {counted(len(scores), 'object')}"
    print(f"{protocol.name} {split}: {counts}\nrules: {protocol.rules}")
    if protocol.name == "youtube_vos" and options.categories is None:
        print("all objects count as seen: G is the mean of their J and F (--categories FILE tells which are unseen)")
    print(f"\n{format_report(report)}\n\nwritten: " + ", ".join(map(str, written)))
    return 0


def _open(options: Namespace) -> tuple[VideoSource, Protocol]:
    """The truth, and the protocol asked for or the usual one for its kind."""
    splits = PROTOCOLS["youtube_vos"].splits if options.split is None else (options.split,)
    if options.protocol is None:
        source = open_videos(options.dataset, splits=splits)
        return source, PROTOCOLS[usual_protocol(source.kind)]
    protocol = PROTOCOLS[options.protocol]
    source = open_videos(
        options.dataset, list_folders=protocol.list_folders, splits=splits, annotations=protocol.annotations
    )
    return source, protocol


def _score(
    source: VideoSource, results: ResultFolder, protocol: Protocol, videos: Sequence[str], *, jobs: int
) -> list[ObjectScores]:
    """Score behind a bar. Nothing is written on the way, and whoever stops it is told so."""
    done = 0

    def count(_video: str) -> None:
        nonlocal done
        done += 1
        bar.add(1)

    with Progress(len(videos), "video", "scored") as bar:
        try:
            return evaluate(source, results, protocol, videos, jobs=jobs, on_video=count)
        except KeyboardInterrupt as error:
            error.add_note(f"{done} of {counted(len(videos), 'video')} were scored; nothing is written before all are")
            raise


def _write_extras(
    options: Namespace,
    folder: Path,
    label: str,
    scores: Sequence[ObjectScores],
    *,
    source: VideoSource,
    results: ResultFolder,
) -> list[Path]:
    """Curves, plots and worst frames, as far as they are wanted."""
    written = [write_curves(folder, label, scores)] if options.curves else []
    if options.plots:
        written.append(write_plots(folder / f"plots-{label}", scores)[0].parent)
    if options.worst:
        written.append(folder / f"worst-{label}.png")
        save_png(worst_sheet(source, results, worst_frames(scores, options.worst)), written[-1])
    return written


def _parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="evaluate.py", description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of <video>/<frame>.png")
    parser.add_argument(
        "dataset",
        type=Path,
        metavar="DATASET_OR_FOLDER",
        help="the truth: a shard set, or a folder in the layout of DAVIS or YouTube-VOS",
    )
    parser.add_argument(
        "--protocol", choices=sorted(PROTOCOLS), help="default: by the kind of the data set, else davis2017"
    )
    parser.add_argument("--split", help="which videos (default: val; of YouTube-VOS valid_gt, valid; or the only one)")
    parser.add_argument(
        "--videos",
        nargs="+",
        metavar="NAME",
        help="these videos instead of all of the split; files get the suffix -selected",
    )
    parser.add_argument(
        "--categories",
        type=Path,
        metavar="FILE",
        help='youtube_vos: JSON {"unseen": [...], "seen": [...], "videos": {video: {id: category}}}',
    )
    parser.add_argument("--curves", action="store_true", help="write J and F of every object and frame as CSV")
    parser.add_argument("--plots", action="store_true", help="draw J over time, a PNG per video")
    parser.add_argument("--worst", type=int, metavar="N", help="draw the N worst frames, truth beside result")
    parser.add_argument("--out", "--output", type=Path, metavar="FOLDER", help="of all files (default: RESULTS)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    options = parser.parse_args(arguments)
    for name in ("jobs", "worst"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}, expected at least 1")
    if options.split is not None and Path(options.split).name != options.split:
        parser.error(f"--split is {options.split!r}, expected the name of a list, without a path")
    if options.categories is not None and options.protocol not in (None, "youtube_vos"):
        parser.error("--categories goes with --protocol youtube_vos")
    return options


if __name__ == "__main__":
    main()
