"""Follow given objects through each video and write a PNG per frame, by the rules of a benchmark."""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import dataclasses
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import torch

from models.released import load
from shards.wording import counted
from tools.argument_types import UsageError, number_or
from tools.cli import Parser, output_file, run, sigterm_as_ctrl_c
from tools.progress import Progress
from tools.segment_methods import METHOD_ARGUMENTS, refuse_foreign
from tools.segment_stm import draw_cycle_erf
from trainers.methods import METHODS
from trainers.prediction.files import (
    OutputForm,
    VideoTiming,
    claim_folder,
    file_digest,
    is_finished,
    segment_all,
)
from trainers.prediction.plan import (
    SEGMENTATION_PROTOCOLS,
    PngForm,
    SegmentationProtocol,
    VideoPlan,
    plan_video,
    usual_protocol,
)
from trainers.prediction.submission import write_submission
from trainers.prediction.videos import VideoSource, choose_split, choose_videos, open_videos
from trainers.running.distributed import Ranks, choose_device
from trainers.segmenters import Segmenter

SHOWN_NAMES = 5
FPS_NOTE = """\
model fps: as the papers count, frames the model saw, given ones too, by the time from "frame on the device" to "label
  map on the device" (memory, network, resizing, argmax); without decoding, copying to the device and PNG files
wall fps: with all of that; of several videos in flight the times overlap"""


def main() -> None:
    """Entry of the console script."""
    run(segment)


def segment(arguments: list[str]) -> int:
    """The tool; returns its exit status."""
    options = _parse(arguments)
    device = choose_device(options.device, Ranks())
    source, protocol = _open(options)
    split = choose_split(source, options.split, protocol.splits)
    videos = choose_videos(source, split, options.videos, within_split=options.split is not None)
    way = METHOD_ARGUMENTS[options.model].options(options, protocol)
    form = _output_form(options, protocol, device)
    plans = [plan_video(source, video, protocol, way.memorised, all_frames=options.all_frames) for video in videos]
    model = load(options.model, options.weights, trunk_weights=options.trunk_weights).to(device)
    claim_folder(options.out, _settings(options, source, protocol, form) | dataclasses.asdict(way))
    folder = options.out / protocol.folder
    finished = [] if options.overwrite else [plan.video for plan in plans if is_finished(folder, plan)]
    if finished:
        print(f"skipped, finished before: {_some(finished)} (--overwrite segments them again)")
    todo = [plan for plan in plans if plan.video not in finished]
    _share_cores(options)
    with sigterm_as_ctrl_c(), _resumable(folder, plans, overwrite=options.overwrite):
        timings = _segment(
            lambda: METHODS[options.model].segmenter(model, way),
            source,
            todo,
            folder=folder,
            form=form,
            in_flight=options.videos_in_flight,
        )
    if timings:
        print(_table(timings))
    of_split = "" if options.videos else f" {split}"
    done = f"{protocol.name}{of_split}: {counted(len(timings), 'video')} segmented into {folder}"
    print(f"{done}, {len(finished)} finished before" if finished else done)
    if options.cycle_erf is not None:
        print(draw_cycle_erf(options, model, source, plans, form))
    if options.zip is not None:
        print(_pack(options, plans, protocol))
    return 0


def _segment(
    new_segmenter: Callable[[], Segmenter],
    source: VideoSource,
    todo: Sequence[VideoPlan],
    *,
    folder: Path,
    form: OutputForm,
    in_flight: int,
) -> list[VideoTiming]:
    """Segment these videos and show how far that is."""
    with Progress(sum(len(plan.script.written) for plan in todo), "frame", "segmented") as bar:
        return segment_all(new_segmenter, source, todo, folder, form, in_flight=in_flight, on_frame=lambda: bar.add(1))


@contextmanager
def _resumable(folder: Path, plans: Sequence[VideoPlan], *, overwrite: bool) -> Iterator[None]:
    """Say with whatever ends the run from outside how far it is, and that the same command goes on."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        done = sum(is_finished(folder, plan) for plan in plans)
        whole = f"{done} of {counted(len(plans), 'video')} are whole in {folder}"
        if overwrite:
            error.add_note(f"{whole}, from before --overwrite or anew; the same command begins again with the first")
        else:
            error.add_note(f"{whole}; the same command goes on with the others")
        raise


def _pack(options: Namespace, plans: Sequence[VideoPlan], protocol: SegmentationProtocol) -> str:
    """Write the archive asked for; what to say about it."""
    num_files = write_submission(options.zip, options.out / protocol.folder, plans, protocol.folder)
    use = "of the videos named, not of a whole split" if options.videos else "to submit"
    return f"{options.zip}: {counted(num_files, 'label map')} of {counted(len(plans), 'video')}, {use}"


def _some(names: Sequence[str]) -> str:
    return (
        " ".join(names)
        if len(names) <= SHOWN_NAMES
        else f"{' '.join(names[:SHOWN_NAMES])} and {len(names) - SHOWN_NAMES} more"
    )


def _share_cores(options: Namespace) -> None:
    """Threads of a video's tensor operations; torch's own choice for one video at a time."""
    if options.threads or options.videos_in_flight > 1:
        torch.set_num_threads(options.threads or max(1, (os.cpu_count() or 1) // options.videos_in_flight))


def _open(options: Namespace) -> tuple[VideoSource, SegmentationProtocol]:
    """The data set, and the protocol asked for or the usual one for its kind."""
    splits = SEGMENTATION_PROTOCOLS["youtube_vos"].splits if options.split is None else (options.split,)
    lists = None if options.protocol is None else SEGMENTATION_PROTOCOLS[options.protocol].list_folders
    source = open_videos(options.dataset, splits=splits, list_folders=lists)
    return source, SEGMENTATION_PROTOCOLS[options.protocol or usual_protocol(source.kind)]


def _output_form(options: Namespace, protocol: SegmentationProtocol, device: torch.device) -> OutputForm:
    sight = METHOD_ARGUMENTS[options.model].sight(options, protocol)
    if options.all_frames and not protocol.late_objects:
        raise UsageError(f"{protocol.name} writes every frame anyway: leave --all-frames out")
    png = options.png or protocol.png
    if png == "grey" and not protocol.merge_objects:
        raise UsageError(f"--png grey holds one object; {protocol.name} has several: use --protocol davis2016")
    if options.cycle_erf is not None:
        _require_picture_folder(options.cycle_erf, options.out / protocol.folder)
    return OutputForm(device, sight, png)


def _require_picture_folder(pictures: Path, label_maps: Path) -> None:
    """UsageError, before long work, for a folder of pictures that cannot be one."""
    if pictures.resolve() == label_maps.resolve():
        raise UsageError(f"--cycle-erf {pictures} would write pictures over the label maps: name another folder")
    if pictures.exists() and not pictures.is_dir():
        raise UsageError(f"--cycle-erf {pictures} is a file, expected a folder for pictures: name another")


def _settings(
    options: Namespace, source: VideoSource, protocol: SegmentationProtocol, form: OutputForm
) -> dict[str, object]:
    """What predictions depend on beside the bank's options."""
    return {
        "model": options.model,
        "weights": file_digest(options.weights),
        **({} if options.trunk_weights is None else {"trunk_weights": file_digest(options.trunk_weights)}),
        "dataset": source.identity,
        "protocol": protocol.name,
        # What a method remembers may depend on which frames it is shown.
        **({"all_frames": True} if options.all_frames else {}),
        **form.sight.settings(),
        "png": form.png,
    }


def _table(timings: Sequence[VideoTiming]) -> str:
    """A row per video and their sum."""
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
        # A video whose wanted frames all lie before its first mask needs no model.
        model = timing.num_frames / timing.model_seconds if timing.model_seconds else 0.0
        wall = timing.num_frames / timing.wall_seconds
        lines.append(
            f"{timing.video:{width}}  {timing.num_frames:6}  {timing.num_objects:7}  {model:9.2f}  {wall:8.2f}"
        )
    return "\n".join([*lines, FPS_NOTE])


def _parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="segment.py", description=__doc__)
    parser.add_argument("--model", required=True, choices=sorted(METHODS))
    parser.add_argument(
        "--weights", required=True, type=Path, metavar="FILE", help="our checkpoint, or the authors' file"
    )
    parser.add_argument(
        "dataset", type=Path, metavar="DATASET", help="a shard set, or a folder in the layout of DAVIS or YouTube-VOS"
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder for <video>/<frame>.png; continued if begun before"
    )
    _add_protocol_arguments(parser)
    for group in METHOD_ARGUMENTS.values():
        group.add(parser)
    _add_run_arguments(parser)
    options = parser.parse_args(arguments)
    refuse_foreign(parser, options)
    for name in ("mem_every", "videos_in_flight", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}, expected at least 1")
    if options.png == "grey" and options.protocol not in (None, "davis2016"):
        parser.error("--png grey holds one object: it goes with --protocol davis2016")
    return options


def _add_protocol_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--protocol",
        choices=sorted(SEGMENTATION_PROTOCOLS),
        help="default: by the kind of the data set, else davis2017",
    )
    parser.add_argument(
        "--split", help="which videos (default: val; of YouTube-VOS valid_all_frames, valid; or the only one)"
    )
    parser.add_argument("--videos", nargs="+", metavar="NAME", help="these videos instead of all of the split")
    parser.add_argument(
        "--all-frames", action="store_true", help="write every frame, not only those a YouTube-VOS set lists"
    )
    parser.add_argument(
        "--shorter-side",
        type=number_or("native"),
        metavar="PX",
        help="resize frames for the model, or native (default: 480 for youtube_vos, else native); "
        "label maps have the original size",
    )
    parser.add_argument(
        "--png", choices=get_args(PngForm), help="ids with a palette, or 0/255 in grey (default: grey for davis2016)"
    )
    parser.add_argument(
        "--zip", type=output_file, metavar="FILE", help="write the archive for the benchmark's server too"
    )


def _add_run_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--mem-every", type=int, metavar="N", help="memorise every Nth frame (default: stm 5; rde 3, for youtube_vos 4)"
    )
    parser.add_argument("--amp", action="store_true", help="autocast: float16 on a GPU, bfloat16 on a CPU")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    parser.add_argument(
        "--videos-in-flight", type=int, default=1, metavar="N", help="videos in work at a time (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads per video (default: cores / videos)")
    parser.add_argument("--overwrite", action="store_true", help="segment finished videos again")


if __name__ == "__main__":
    main()
