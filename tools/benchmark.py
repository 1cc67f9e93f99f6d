"""Measure what clips, scores, builds and training steps cost, each beside its alternative in the same run."""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import json
import logging
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.benchmarks.building import LARGER, BuildMeasure, BuildTiming, derived_hours, time_build
from pipelines.benchmarks.executors import describe_machine
from pipelines.benchmarks.masks import MaskTiming, time_masks
from pipelines.benchmarks.reading import time_reading, time_start
from shards.masks import MASK_CODECS
from shards.sets.sparse_set import SparseSet, write_sparse_set
from shards.sources.moving_shapes import write_moving_shapes
from shards.storage.paths import write_bytes
from tools.benchmark_clips import add_clips, measure_clips
from tools.benchmark_reading import reading_table
from tools.benchmark_scale import add_scale, measure_scale
from tools.benchmark_stm import add_stm_correction, add_stm_step, measure_stm_correction, measure_stm_step
from tools.benchmark_targets import add_targets, measure_targets
from tools.cli import Parser, run
from tools.made_video import FULL_SIZE
from trainers.benchmarks.rde_step import OURS, PUBLISHED, VARIANTS, StepCost, StepSize, time_steps
from trainers.benchmarks.scoring import ScoringTiming, time_scoring
from trainers.records.provenance import read_versions
from trainers.running.distributed import Ranks, choose_device


def main() -> None:
    """Entry of the console script."""
    run(benchmark)


def benchmark(arguments: list[str]) -> int:
    """Measure, print a table, write JSON if asked. Returns the exit status."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.scratch) as folder:
        result, table = BENCHMARKS[options.what](options, Path(folder))
    machine, versions = describe_machine(), read_versions()
    print(f"{machine['processor']}, {machine['cores']} cores; commit {versions['commit'][:12]}")
    print("CPU time but where it says wall, medians\n")
    print(table)
    if options.json is not None:
        report = {"benchmark": options.what, "machine": machine, "versions": versions, "result": result}
        write_bytes(options.json, (json.dumps(report, indent=2) + "\n").encode())
        print(f"\nwritten: {options.json}")
    return 0


def _parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="benchmark.py", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True, metavar="PROTOCOL")
    clips = commands.add_parser("clips", help="clips per second and core of the executors")
    add_clips(clips)
    scoring = commands.add_parser("scoring", help="milliseconds per scored object and frame")
    scoring.add_argument("truth", type=Path, nargs="?", help="shard set or DAVIS folder (default: moving shapes)")
    scoring.add_argument("results", type=Path, nargs="?", help="folder of <video>/<frame>.png")
    shards = commands.add_parser("build", help="building shards from tars like BL30K's, beside tar cf and webdataset")
    _add_build(shards)
    masks = commands.add_parser("masks", help="what label maps cost by codec and level, and reading palette PNGs")
    masks.add_argument("source", type=Path, nargs="?", help="DAVIS folder with palette PNGs (default: moving shapes)")
    masks.add_argument("--maps", type=int, default=120, help="about how many of them (default: %(default)s)")
    reading = commands.add_parser("reading", help="read plans on slowed storage, and the start on a set like BL30K")
    reading.add_argument("--videos", type=int, default=29_989, help="of the made-up set (default: %(default)s)")
    reading.add_argument("--frames", type=int, default=160, help="of each video (default: %(default)s)")
    reading.add_argument("--threads", type=int, default=16, help="requests under way (default: %(default)s)")
    reading.add_argument("--seconds", type=float, default=4.0, help="for each plan (default: %(default)s)")
    scale = commands.add_parser("scale", help="plans, coverage and reads of a thousand ranks on a set like BL30K")
    add_scale(scale)
    steps = commands.add_parser("step", help="RDE's training step beside its published structure")
    steps.add_argument(
        "--width", type=float, default=0.25, help="of the network; 1 is the paper's (default: %(default)s)"
    )
    steps.add_argument("--size", type=int, default=192, help="side of the frames, in pixels (default: %(default)s)")
    steps.add_argument("--clips", type=int, default=2, help="per step (default: %(default)s)")
    steps.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    steps.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=[PUBLISHED, OURS], help="default: the first two"
    )
    targets = commands.add_parser("targets", help="MTMFI's target models beside the published loop")
    add_targets(targets)
    stm_steps = commands.add_parser("stm-step", help="STM-Cycle's training step beside the clip-by-clip loop")
    add_stm_step(stm_steps)
    corrections = commands.add_parser("stm-correction", help="frames a second without and with gradient correction")
    add_stm_correction(corrections)
    for command, rounds in ((clips, 5), (shards, 3), (masks, 5), (steps, 5), (stm_steps, 5)):
        command.add_argument("--rounds", type=int, default=rounds, help="turns that count (default: %(default)s)")
    for command in (clips, scoring, shards, masks, reading, scale, steps, targets, stm_steps, corrections):
        command.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
        command.add_argument("--scratch", type=Path, help="folder for temporary files (default: the system's)")
    options = parser.parse_args(arguments)
    if options.what == "scoring" and (options.truth is None) != (options.results is None):
        parser.error("give both TRUTH and RESULTS or neither")
    numbers = (
        "clips",
        "rounds",
        "videos",
        "frames",
        "processes",
        "maps",
        "ranks",
        "ranks_per_node",
        "batch",
        "threads",
    )
    too_small = [f"--{name.replace('_', '-')}" for name in numbers if vars(options).get(name, 1) < 1]
    if too_small:
        parser.error(f"{' and '.join(too_small)} must be at least 1")
    return options


def _add_build(shards: ArgumentParser) -> None:
    shards.add_argument(
        "source", type=Path, nargs="?", help="DAVIS folder whose frames fill them (default: moving shapes)"
    )
    shards.add_argument("--videos", type=int, default=8, help="videos of the tars (default: %(default)s)")
    shards.add_argument("--frames", type=int, default=40, help="frames of each video (default: %(default)s)")
    shards.add_argument("--processes", type=int, default=2, help="besides one (default: %(default)s)")
    shards.add_argument("--mask-codec", choices=MASK_CODECS, default="lz4", help="default: %(default)s")


def _measure_scoring(options: Namespace, scratch: Path) -> tuple[dict[str, object], str]:
    truth, results = options.truth, options.results
    if truth is None:
        write_moving_shapes(truth := scratch / "davis", FULL_SIZE)
        _write_shifted(truth / "Annotations" / "480p", results := scratch / "results")
    timing = time_scoring(truth, results)
    return asdict(timing), _scoring_table(timing)


def _scoring_table(timing: ScoringTiming) -> str:
    rows = {
        "J and F": timing.cpu_ms_per_object_frame,
        "plain transcription": timing.reference_cpu_ms_per_object_frame,
        "reading both maps alone": timing.decoding_cpu_ms_per_object_frame,
    }
    lines = [f"{timing.object_frames} object-frames, both label maps read\n"]
    lines += [f"{name:<24}{cost:>8.3f} ms per object and frame" for name, cost in rows.items()]
    return "\n".join(lines)


def _write_shifted(masks: Path, results: Path) -> None:
    """Results that miss the truth by three pixels, so that boundaries have to be matched."""
    for path in sorted(masks.glob("*/*.png")):
        target = results / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            moved = Image.fromarray(np.roll(np.asarray(image), 3, axis=1))
            moved.putpalette(image.getpalette() or [])
        moved.save(target)


def _measure_build(options: Namespace, scratch: Path) -> tuple[dict[str, object], str]:
    source = options.source
    if source is None:
        write_moving_shapes(source := scratch / "davis", FULL_SIZE)
    measure = BuildMeasure(
        source, options.videos, options.frames, options.mask_codec, options.rounds, options.processes
    )
    logging.getLogger("shards").setLevel(logging.WARNING)  # not a line for each build
    timing = time_build(measure, scratch / "build")
    hours = {machines: derived_hours(timing, machines, _cores()) for machines in (1, 16)}
    result = asdict(timing) | {"mask_codec": options.mask_codec, "bl30k_hours_by_bytes_and_frames": hours}
    return result, f"{_build_table(timing)}\n\n{_hours_table(hours)}"


def _cores() -> int:
    return int(describe_machine()["cores"])


def _build_table(timing: BuildTiming) -> str:
    size, build_cpu = timing.source_mb, timing.costs["build"].cpu
    videos = f"{timing.num_videos} videos, {timing.num_frames} frames, {size:.1f} MB of JPEGs and palette PNGs in tars"
    lines = [videos, "", f"{'':<16}{'CPU s':>8}{'wall s':>8}{'MB/s/core':>11}{'frames/s/core':>15}{'MB/s':>8}"]
    for name, cost in timing.costs.items():
        rates = f"{size / cost.cpu:>11.1f}{timing.num_frames / cost.cpu:>15.1f}{size / cost.wall:>8.1f}"
        lines.append(f"{name:<16}{cost.cpu:>8.2f}{cost.wall:>8.2f}{rates}")
    lines += ["", f"{'stage alone':<16}{'CPU s':>8}{'ms/frame':>10}{'of build':>10}"]
    rest = build_cpu - sum(timing.stages.values())
    for name, cpu in (timing.stages | {"the rest": rest}).items():
        lines.append(f"{name:<16}{cpu:>8.2f}{1e3 * cpu / timing.num_frames:>10.3f}{cpu / build_cpu:>10.0%}")
    lines.append("")
    for processes, cost in timing.processes.items():
        rates = f"{LARGER * timing.num_frames / cost.wall:.0f} frames/s, {LARGER * size / cost.wall:.0f} MB/s"
        lines.append(f"{LARGER}x input on {processes} processes: {cost.wall:.2f} s wall, {cost.cpu:.2f} s CPU, {rates}")
    peaks = ", ".join(f"{peak:.0f} MB at {times}x input" for times, peak in timing.peak_mb.items())
    return "\n".join([*lines, f"peak memory of one building process: {peaks}"])


def _hours_table(hours: dict[int, tuple[float, float]]) -> str:
    """What follows for 700 GB; not measured."""
    return "\n".join(
        f"BL30K, derived: {by_bytes:.1f} h by its bytes, {by_frames:.1f} h by its frames on {machines} such machines"
        for machines, (by_bytes, by_frames) in hours.items()
    )


def _measure_masks(options: Namespace, scratch: Path) -> tuple[dict[str, object], str]:
    source = options.source
    if source is None:
        write_moving_shapes(source := scratch / "davis", FULL_SIZE)
    timing = time_masks(source, options.maps, options.rounds)
    return asdict(timing), _masks_table(timing)


def _masks_table(timing: MaskTiming) -> str:
    title = f"{timing.num_maps} label maps, which came as palette PNGs of {timing.source_bytes:.0f} bytes"
    lines = [title, "", f"{'stored as':<16}{'bytes':>8}{'encode ms':>11}{'decode ms':>11}"]
    for name, cost in timing.codecs.items():
        lines.append(f"{name:<16}{cost.bytes:>8.0f}{cost.encode_ms:>11.3f}{cost.decode_ms:>11.3f}")
    lines += ["", f"{'palette PNG read by':<24}{'ms':>8}"]
    return "\n".join([*lines, *(f"{name:<24}{cost:>8.3f}" for name, cost in timing.png_readers.items())])


def _measure_reading(options: Namespace, scratch: Path) -> tuple[dict[str, object], str]:
    root = write_sparse_set(scratch, SparseSet(num_videos=options.videos, num_frames=options.frames))
    start = time_start(root)
    cases = time_reading(root, threads=options.threads, seconds=options.seconds)
    result: dict[str, object] = {"start": asdict(start), "cases": [asdict(case) for case in cases]}
    return result, reading_table(start, cases)


def _measure_step(options: Namespace, _scratch: Path) -> tuple[dict[str, object], str]:
    device = str(choose_device(options.device, Ranks()))
    size = StepSize(options.width, options.size, options.clips, device)
    costs = time_steps(size, tuple(options.variants), rounds=options.rounds)
    result: dict[str, object] = {"size": asdict(size), "variants": {name: asdict(cost) for name, cost in costs.items()}}
    return result, _step_table(size, costs)


def _step_table(size: StepSize, costs: dict[str, StepCost]) -> str:
    clock = "CPU time, one thread" if size.device == "cpu" else f"wall time on {size.device}"
    memory = "growth of the resident set" if size.device == "cpu" else "peak of the allocator"
    title = f"RDE stages 1 to 3, width {size.width}, {size.batch_size} clips of 5 frames {size.size}x{size.size}, fp32"
    lines = [f"{title}; {clock}; memory: {memory}\n", f"{'':<22}{'ms per step':>14}{'MB':>10}{'ratio':>8}{'loss':>12}"]
    first = next(iter(costs.values()))
    lines += [
        f"{name:<22}{cost.step_ms:>14.1f}{cost.memory_mb:>10.0f}{first.step_ms / cost.step_ms:>8.2f}{cost.loss:>12.6f}"
        for name, cost in costs.items()
    ]
    return "\n".join(lines)


BENCHMARKS: dict[str, Callable[[Namespace, Path], tuple[dict[str, object], str]]] = {
    "clips": measure_clips,
    "scoring": _measure_scoring,
    "build": _measure_build,
    "masks": _measure_masks,
    "reading": _measure_reading,
    "scale": measure_scale,
    "step": _measure_step,
    "targets": measure_targets,
    "stm-step": measure_stm_step,
    "stm-correction": measure_stm_correction,
}


if __name__ == "__main__":
    main()
