"""`benchmark.py clips`: what clips cost on one core, each way beside its alternatives and the JPEG floor."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

import torch

from pipelines.benchmarks.clips import (
    FINISHED,
    LOADER,
    NAIVE,
    STILL_CPU,
    STILL_PAPER,
    Costs,
    time_assembly,
    time_still_ways,
    time_video_ways,
)
from pipelines.benchmarks.executors import ClipTiming, time_clips
from pipelines.executors import EXECUTORS
from pipelines.parity.clips import draw_clips
from shards.reader import ShardSet
from tools.made_video import made_shards
from trainers.running.distributed import Ranks, choose_device


def add_clips(clips: ArgumentParser) -> None:
    """The arguments of `benchmark.py clips`."""
    clips.add_argument("dataset", nargs="?", help="shard set of video (default: moving shapes, made on the spot)")
    clips.add_argument("--split", default="train", help="which videos (default: %(default)s)")
    clips.add_argument("--clips", type=int, default=16, help="clips per round (default: %(default)s)")
    clips.add_argument(
        "--executors", nargs="+", choices=list(EXECUTORS), default=["cpu", "paper"], help="default: cpu paper"
    )
    clips.add_argument("--device", help="measure instead what dali delivers there, by each way of decoding JPEGs")
    clips.add_argument("--batch", type=int, default=8, help="clips at a time with --device (default: %(default)s)")
    clips.add_argument("--threads", type=int, default=1, help="of dali with --device (default: %(default)s)")


def measure_clips(options: Namespace, scratch: Path) -> tuple[dict[str, object], str]:
    """Time them all. Returns the numbers and a table for people."""
    if options.device is not None:
        return _measure_device(options, scratch)
    with ShardSet.open(options.dataset or made_shards(scratch)) as shard_set:
        drawn = draw_clips(shard_set, options.split, ["rde_video", "rde_static"], options.clips)
        codec, name = shard_set.mask_codec, shard_set.name
    video, stills = drawn["rde_video"], drawn["rde_static"]
    timing = time_clips(video, ["cpu"], rounds=options.rounds)
    ways = time_video_ways(video, options.executors, rounds=options.rounds)
    still_ways = time_still_ways(stills, rounds=options.rounds)
    assembly = time_assembly(video, rounds=options.rounds)
    title = f"{timing.num_clips} clips of {timing.num_frames} frames of {name}, {codec} masks, RDE's recipe, one thread"
    tables = [title, _costs_table(ways), _ratios(ways), _stage_table(timing, assembly)]
    tables += [f"stage 0: {still_ways.num_frames} frames of one still", _costs_table(still_ways), _ratios(still_ways)]
    executors = {executor: ways.ways[executor] for executor in options.executors}
    result = asdict(timing) | {"dataset": name, "mask_codec": codec, "executors": executors, "ways": asdict(ways)}
    result |= {"still_ways": asdict(still_ways), "assembly": assembly}
    return result, "\n\n".join(tables)


def _measure_device(options: Namespace, scratch: Path) -> tuple[dict[str, object], str]:
    from pipelines.benchmarks.device import time_on_device  # noqa: PLC0415 - DALI is needed here only

    device = choose_device(options.device, Ranks())
    with ShardSet.open(options.dataset or made_shards(scratch)) as shard_set:
        clips = draw_clips(shard_set, options.split, ["rde_video"], max(options.clips, options.batch))["rde_video"]
        codec, name = shard_set.mask_codec, shard_set.name
    costs = time_on_device(clips, device, batch=options.batch, threads=options.threads, rounds=options.rounds)
    num_frames = len(clips[0].frames)
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    made = f"batches of {options.batch} clips of {num_frames} frames of {name}, {codec} masks, RDE's recipe"
    lines = [
        f"dali on {what}: {made}, wall",
        f"\n{'JPEG decoding':<16}{'result':<10}{'frames/s':>10}{'clips/s':>10}{'CPU cores':>11}{'memory':>12}",
    ]
    for cost in costs:
        memory = "-" if cost.memory_mib is None else f"{cost.memory_mib:.0f} MiB"
        rates = f"{cost.frames_per_second:>10.0f}{cost.frames_per_second / num_frames:>10.1f}"
        lines.append(
            f"{cost.jpeg:<16}{'batches' if cost.assembled else 'pixels':<10}{rates}{cost.cores:>11.2f}{memory:>12}"
        )
    result: dict[str, object] = {"dataset": name, "mask_codec": codec, "device": what, "batch": options.batch}
    return result | {"threads": options.threads, "ways": [asdict(cost) for cost in costs]}, "\n".join(lines)


def _costs_table(costs: Costs) -> str:
    lines = [f"{'':<36}{'ms per clip':>12}{'clips/s':>10}{'ms per frame':>14}{'x floor':>10}"]
    for name, cost in (costs.ways | {"JPEG decoding alone": costs.floor}).items():
        per_frame = cost / costs.num_frames
        lines.append(f"{name:<36}{cost:>12.2f}{1e3 / cost:>10.1f}{per_frame:>14.3f}{cost / costs.floor:>10.2f}")
    return "\n".join(lines)


RATIOS = (("paper", "cpu"), (LOADER, FINISHED), (NAIVE, "dali"), (STILL_PAPER, STILL_CPU))


def _ratios(costs: Costs) -> str:
    return "\n".join(
        f"{slow} / {fast}: {costs.ways[slow] / costs.ways[fast]:.2f}"
        for slow, fast in RATIOS
        if {slow, fast} <= set(costs.ways)
    )


def _stage_table(timing: ClipTiming, assembly: dict[str, float]) -> str:
    cpu = timing.executors.get("cpu", float("nan"))
    lines = [f"{'where the cpu executor spends it':<36}{'ms per clip':>12}{'share':>10}"]
    stages = {name: cost for name, cost in timing.stages.items() if name != "assembly"}
    for name, cost in (stages | {"the rest": cpu - sum(stages.values())}).items():
        lines.append(f"{name:<36}{cost:>12.2f}{cost / cpu:>10.0%}")
    lines.append(f"\n{'assembly, after any executor':<36}{'ms per clip':>12}{'share':>10}")
    whole = assembly["all"]
    parts = {name: cost for name, cost in assembly.items() if name != "all"}
    for name, cost in (parts | {"the rest": whole - sum(parts.values()), "all": whole}).items():
        lines.append(f"{name:<36}{cost:>12.2f}{cost / whole:>10.0%}")
    return "\n".join(lines)
