"""A cluster gone through on one machine: coverage, ratios and reads, beside known answers and brute force."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch

from pipelines.benchmarks.reading import StartCost
from pipelines.benchmarks.scale import STAGE_CLIPS, Cluster, Storage, cover, expect, measure_load, measure_portions
from pipelines.order.curriculum import Table
from pipelines.order.sampling import MixEntry
from pipelines.recipes.rde import RdeBl30k
from pipelines.source import ClipSource
from shards.reader import ShardSet
from shards.sets.sparse_set import SparseSet, write_sparse_set
from tools import benchmark as tool


def _source(folder: Path, videos: dict[str, tuple[int, int]], cluster: Cluster, **facts: int) -> ClipSource:
    """Sets of {name: (videos, repeat)} mixed."""
    entries = []
    for name, (count, repeat) in videos.items():
        made = SparseSet(num_videos=count, num_frames=30, image_bytes=9000, mask_bytes=300, **facts)
        entries.append(MixEntry(ShardSet.open(write_sparse_set(folder, made, name)), "train", repeat))
    return ClipSource(entries, RdeBl30k(), seed=3, steps=500, batch_size=cluster.batch_size)


@pytest.mark.parametrize("ranks", [1, 8, 64])
def test_all_ranks_together_use_every_video_once_a_pass(tmp_path: Path, ranks: int) -> None:
    cluster = Cluster(ranks, clips_per_rank=3)
    source = _source(tmp_path, {"one": (53, 1)}, cluster)  # no multiple of any batch
    seen = cover(source, cluster, passes=2)
    assert (seen.clips, seen.least_uses, seen.most_uses) == (106, 2, 2)


def test_a_video_that_nobody_gets_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(8)
    source = _source(tmp_path, {"one": (20, 1)}, cluster)
    pick = source.mix.pick
    monkeypatch.setattr(source.mix, "pick", lambda key, number: pick(key, number - number % 2))
    seen = cover(source, cluster)
    assert (seen.least_uses, seen.most_uses) == (0, 2)


def test_the_worst_window_is_that_of_all_windows(tmp_path: Path) -> None:
    cluster = Cluster(4, clips_per_rank=2)
    source = _source(tmp_path, {"large": (11, 1), "middle": (6, 1), "small": (2, 3)}, cluster)
    taken = [source.mix.pick(source.key, number).dataset for number in range(23)]
    found = measure_portions(source, cluster)
    for position, (name, weight) in enumerate({"large": 11, "middle": 6, "small": 6}.items()):
        off = [
            abs(taken[first:last].count(position) - (last - first) * weight / 23)
            for first, last in combinations(range(24), 2)
        ]
        assert (found[name].weight, found[name].clips) == (weight, weight)
        assert found[name].worst_window == pytest.approx(max(off))


def test_the_worst_window_is_found_across_a_change_of_weights(tmp_path: Path) -> None:
    cluster = Cluster(4, clips_per_rank=2)
    constant = _source(tmp_path, {"large": (11, 1), "middle": (6, 1), "small": (2, 3)}, cluster)
    large, middle, small = constant.mix.entries
    pausing = replace(small, repeat=Table(((0, 3), (0.5, 0))))
    source = ClipSource([large, middle, pausing], RdeBl30k(), seed=3, steps=4, batch_size=8)
    due = [(11 / 23, 6 / 23, 6 / 23)] * 16 + [(11 / 17, 6 / 17, 0)] * 17
    taken = [source.mix.pick(source.key, number).dataset for number in range(33)]
    found = measure_portions(source, cluster)
    for position, name in enumerate(("large", "middle", "small")):
        off = [
            abs(taken[first:last].count(position) - sum(shares[position] for shares in due[first:last]))
            for first, last in combinations(range(34), 2)
        ]
        assert found[name].clips == taken.count(position)
        assert found[name].worst_window == pytest.approx(max(off))
        assert found[name].worst_window < 2


def test_the_load_is_that_of_the_plans(tmp_path: Path) -> None:
    cluster = Cluster(16, ranks_per_node=4, clips_per_rank=2)
    source = _source(tmp_path, {"one": (40, 1)}, cluster, videos_per_shard=10)
    load = measure_load(source, cluster, 1)
    shard_set = source.mix.entries[0].dataset
    extents = [[shard_set.extent(row) for row in set(source.plan(number).frames)] for number in range(32)]
    used = sum(extent.num_bytes for clip in extents for extent in clip)
    read = load.megabytes * 1e6 * load.clips
    assert load.clips == 32 and load.shards == 4 and load.plan_ms > 0
    assert used <= read <= 1.3 * used  # headers between neighbours are read along
    assert 1 <= load.requests <= max(map(len, extents))
    shards = Counter(clip[0].shard for clip in extents)
    assert (load.hottest_shard, load.shards_of_step) == (max(shards.values()), len(shards))
    alone = Cluster(8, ranks_per_node=8, clips_per_rank=4)
    assert measure_load(source, alone, 2).busiest_node == 1.0


def test_storage_is_shared_by_the_ranks_of_a_node_and_of_all_nodes() -> None:
    storage = Storage(0.001, per_node=8e9, in_all=64e9)
    assert storage.speed_of_rank(Cluster(4)).bandwidth == 2e9
    assert storage.speed_of_rank(Cluster(64)).bandwidth == 1e9
    assert storage.speed_of_rank(Cluster(1024)).bandwidth == 62.5e6


def test_what_to_expect_follows_from_pace_and_load(tmp_path: Path) -> None:
    cluster = Cluster(8, clips_per_rank=1)
    load = measure_load(_source(tmp_path, {"one": (20, 1)}, cluster), cluster, 1)
    start = StartCost(600, 0.1, 0.2, 0.3, 30.0, 100.0, 40.0, 300.0)
    row = expect(64, 50.0, 8, load=load, start=start, videos=32_000)
    assert (row.nodes, row.clips_per_second, row.index_mb_per_node) == (8, 3200, 8 * 40 + 300)
    assert row.megabytes_per_second == pytest.approx(3200 * load.megabytes)
    assert row.pass_minutes == pytest.approx(1 / 6) and row.stage_hours == pytest.approx(STAGE_CLIPS / 3200 / 3600)


def test_ranks_that_leave_a_node_half_full_are_refused() -> None:
    with pytest.raises(ValueError, match="12 ranks do not fill nodes of 8"):
        Cluster(12)


def test_the_tool_prints_every_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, threads = tmp_path / "scale.json", torch.get_num_threads()
    sizes = ["--ranks", "16", "--clips", "1", "--videos", "60", "--frames", "20"]
    try:
        assert tool.benchmark(["scale", *sizes, "--json", str(report), "--scratch", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    printed, result = capsys.readouterr().out, json.loads(report.read_text())["result"]
    assert "16 ranks on 2 nodes, 16 clips a step; 1200 frames" in printed
    assert "1 to 1 uses of each of 60 videos" in printed
    assert {name: found["clips"] for name, found in result["portions"].items()} == {
        "bl30k": 60, "youtube-vos": 3464, "davis": 300,
    }  # fmt: skip
    changed = {name: found["worst_window"] for name, found in result["portions_of_change"].items()}
    assert changed.keys() == {"bl30k", "youtube-vos", "davis"} and max(changed.values()) < 2
    assert result["portions_of_change"]["davis"]["clips"] < 300 < result["portions_of_change"]["youtube-vos"]["clips"]
    plans = {name: [row["plan"] for row in rows] for name, rows in result["supplies"].items()}
    assert plans["NVMe in each node"] == ["frame", "frame"]
    assert plans["one file server"] == ["resident", "resident"]  # so small a set is read once and kept
    assert [row["ranks"] for row in result["expectations"]] == [1, 1, 8, 8, 16, 16, 64, 64]
