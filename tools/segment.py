"""Follow the objects of the first frame through each video and write palette PNGs, <OUT>/<video>/<frame>.png."""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import dataclasses
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from models import MODELS
from models.memory import BANK_MODES
from models.released import load
from tools.cli import Parser, run
from trainers.distributed import Ranks, choose_device
from trainers.prediction import RdeOptions, RdeSegmenter
from trainers.prediction_files import (
    VideoTiming,
    claim_folder,
    file_digest,
    is_finished,
    require_first_masks,
    segment_to_folder,
)
from trainers.videos import VideoSource, open_videos


def main() -> None:
    """Entry of the console script."""
    run(segment)


def segment(arguments: list[str]) -> int:
    """The tool; returns its exit status."""
    options = _parse(arguments)
    device = choose_device(options.device, Ranks())
    source = open_videos(options.dataset)
    videos = tuple(dict.fromkeys(options.videos)) if options.videos else source.select(options.split)
    require_first_masks(source, videos)
    rde = _rde_options(options)
    segmenter = RdeSegmenter(load(options.model, options.weights).to(device), rde)
    settings = {"model": options.model, "weights": file_digest(options.weights), "dataset": source.identity}
    claim_folder(options.out, settings | dataclasses.asdict(rde))
    finished = [] if options.overwrite else [video for video in videos if is_finished(options.out, source, video)]
    if finished:
        print(f"skipped, finished before: {' '.join(finished)} (--overwrite segments them again)")
    timings = _segment_all(segmenter, source, [video for video in videos if video not in finished], options.out, device)
    if timings:
        print(_table(timings))
    print(f"{len(timings)} videos segmented into {options.out}, {len(finished)} were there")
    return 0


def _segment_all(
    segmenter: RdeSegmenter, source: VideoSource, videos: Sequence[str], out: Path, device: torch.device
) -> list[VideoTiming]:
    num_frames = sum(len(source.frame_names(video)) for video in videos)
    with tqdm(total=num_frames, unit="frame", desc="segmented", disable=None) as bar:
        return [
            segment_to_folder(segmenter, source, video, out, device=device, on_frame=bar.update) for video in videos
        ]


def _table(timings: Sequence[VideoTiming]) -> str:
    """A row per video and their sum. model fps: as papers count it; wall fps: with decoding and PNG writing."""
    total = VideoTiming(
        "all",
        sum(timing.num_frames for timing in timings),
        sum(timing.num_objects for timing in timings),
        sum(timing.model_seconds for timing in timings),
        sum(timing.wall_seconds for timing in timings),
    )
    width = max(len(timing.video) for timing in (*timings, total))
    lines = [f"{'video':{width}}  frames  objects  model fps  wall fps"]
    for timing in (*timings, total):
        model, wall = timing.num_frames / timing.model_seconds, timing.num_frames / timing.wall_seconds
        lines.append(
            f"{timing.video:{width}}  {timing.num_frames:6}  {timing.num_objects:7}  {model:9.2f}  {wall:8.2f}"
        )
    return "\n".join(lines)


def _rde_options(options: Namespace) -> RdeOptions:
    top_k = None if options.top_k == "all" else options.top_k
    return RdeOptions(options.mode, options.mem_every, top_k, options.include_last, options.amp)


def _positions(text: str) -> int | str:
    if text != "all" and not (text.isdecimal() and int(text) > 0):
        raise ArgumentTypeError(f"{text!r} is neither a positive number nor all")
    return text if text == "all" else int(text)


def _parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="segment.py", description=__doc__)
    parser.add_argument("--model", required=True, choices=sorted(MODELS))
    parser.add_argument(
        "--weights", required=True, type=Path, metavar="FILE", help="our checkpoint, or the authors' file"
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="a shard set, or a folder in the DAVIS layout")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder for <video>/<frame>.png; continued if begun before"
    )
    parser.add_argument("--split", default="val", help="which videos, by the data set's lists (default: %(default)s)")
    parser.add_argument("--videos", nargs="+", metavar="NAME", help="these videos instead of all of the split")
    defaults = RdeOptions()
    parser.add_argument("--mode", choices=BANK_MODES, default=defaults.mode, help="memory bank (default: %(default)s)")
    parser.add_argument(
        "--mem-every",
        type=int,
        default=defaults.mem_every,
        metavar="N",
        help="memorise every Nth frame (default: %(default)s)",
    )
    parser.add_argument(
        "--top-k",
        type=_positions,
        default=defaults.top_k,
        metavar="K",
        help="memory positions read per query position, or all (default: %(default)s)",
    )
    parser.add_argument("--include-last", action="store_true", help="memorise every frame")
    parser.add_argument("--amp", action="store_true", help="autocast: float16 on a GPU, bfloat16 on a CPU")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="segment finished videos again")
    options = parser.parse_args(arguments)
    if options.mem_every < 1:
        parser.error(f"--mem-every is {options.mem_every}, expected at least 1")
    return options


if __name__ == "__main__":
    main()
