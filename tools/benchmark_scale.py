"""The protocol `benchmark.py scale`: a cluster on paper, over an index of full size without bytes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from pipelines.benchmarks.scale import Cluster, ScaleResult, simulate
from shards.sets.sparse_set import SparseSet, write_sparse_set

BESIDE = {"youtube-vos": (SparseSet(num_videos=3_464, num_frames=27), 1), "davis": (SparseSet(60, 70), 5)}
"""Sets mixed with the large one where ratios are looked at: the sizes of the published mix, and its repeats."""


def add_scale(parser: ArgumentParser) -> None:
    """Its arguments."""
    usual = Cluster()
    parser.add_argument("--ranks", type=int, default=usual.ranks, help="default: %(default)s")
    parser.add_argument("--ranks-per-node", type=int, default=usual.ranks_per_node, help="default: %(default)s")
    parser.add_argument(
        "--clips", type=int, default=usual.clips_per_rank, help="of each rank and step (default: %(default)s)"
    )
    parser.add_argument("--videos", type=int, default=29_989, help="of the made-up set (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=160, help="of each video (default: %(default)s)")


def measure_scale(options: Namespace, scratch: Path) -> tuple[dict[str, object], str]:
    """Make the sets and go through them."""
    root = write_sparse_set(scratch, SparseSet(num_videos=options.videos, num_frames=options.frames), "bl30k")
    others = [(write_sparse_set(scratch, facts, name), repeat) for name, (facts, repeat) in BESIDE.items()]
    result = simulate(root, others, Cluster(options.ranks, options.ranks_per_node, options.clips))
    return asdict(result), scale_table(result)


def scale_table(result: ScaleResult) -> str:
    """The figures as people read them."""
    parts = (_planning(result), _order(result), _storage(result), _expectations(result))
    return "\n".join(line for part in parts for line in [*part, ""]).rstrip()


def _planning(result: ScaleResult) -> list[str]:
    cluster, start, load = result.cluster, result.start, result.load
    node = cluster.ranks_per_node * start.later_private_mb + start.later_shared_mb
    step_ms = load.plan_ms * cluster.clips_per_rank
    return [
        f"{cluster.ranks} ranks on {cluster.nodes} nodes, {cluster.batch_size} clips a step; {start.frames} frames",
        f"each rank: set opened in {start.open_seconds:.2f} s, first plan after {start.first_plan_seconds:.2f} s,",
        f"then {load.plan_ms:.3f} ms a plan ({load.clips} plans), {step_ms:.2f} ms a step",
        f"memory: {start.later_private_mb:.0f} MB of each rank and {start.later_shared_mb:.0f} MB shared by a node's,"
        f" {node:.0f} MB a node",
    ]


def _order(result: ScaleResult) -> list[str]:
    seen = result.coverage
    uses = f"{seen.least_uses} to {seen.most_uses} uses of each of {seen.videos} videos"
    lines = [f"{seen.passes} pass, {seen.clips} clips by {result.cluster.ranks} ranks: {uses}", ""]
    mixes = {"mixed, one pass": result.portions, "and the last pausing": result.portions_of_change}
    for title, portions in mixes.items():
        lines.append(f"{title:<22}{'weight':>8}{'clips':>8}{'off in the worst window':>26}")
        for name, portion in portions.items():
            lines.append(f"{name:<22}{portion.weight:>8}{portion.clips:>8}{portion.worst_window:>26.2f}")
    return lines


def _storage(result: ScaleResult) -> list[str]:
    load, cluster = result.load, result.cluster
    lines = [
        f"a clip: {load.requests:.2f} requests, {load.megabytes:.2f} MB; busiest node {load.busiest_node:.3f} of the"
        f" mean; a step touches {load.shards_of_step:.0f} of {load.shards} shards, at most {load.hottest_shard} clips"
        " in one",
        "",
        f"{'storage (assumed)':<22}{'order':<8}{'plan':<10}{'MB/clip':>8}{'clips/s a rank':>16}{'of need':>9}",
    ]
    for name, supplies in result.supplies.items():
        for supply in supplies:
            share = min(1.0, supply.clips_per_second / cluster.clips_per_second)
            figures = f"{supply.megabytes:>8.2f}{supply.clips_per_second:>16.1f}{share:>9.0%}"
            lines.append(f"{name:<22}{supply.order:<8}{supply.plan:<10}{figures}")
    return lines


def _expectations(result: ScaleResult) -> list[str]:
    titles = ("GPUs", "nodes", "clips/s", "MB/s", "requests/s", "plan cores", "index MB/node", "min/pass", "h/stage 1")
    lines = ["what a pace of 8 or 50 clips/s a GPU asks for", " ".join(f"{title:>13}" for title in titles)]
    for row in result.expectations:
        values = (
            f"{row.ranks}",
            f"{row.nodes}",
            f"{row.clips_per_second:.0f}",
            f"{row.megabytes_per_second:.0f}",
            f"{row.requests_per_second:.0f}",
            f"{row.planning_cores:.2f}",
            f"{row.index_mb_per_node:.0f}",
            f"{row.pass_minutes:.2f}",
            f"{row.stage_hours:.2f}",
        )
        lines.append(" ".join(f"{value:>13}" for value in values))
    return lines
