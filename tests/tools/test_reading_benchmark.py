"""The benchmark of reading holds the cost model beside what happened; its sets are true sets of zeros."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.benchmarks import reading as reading_benchmark
from pipelines.benchmarks.reading import start
from shards.reader import ShardSet
from shards.sets.sparse_set import SparseSet, write_sparse_set
from tools import benchmark as tool


@pytest.fixture(autouse=True)
def _threads_as_before() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_plan_of_both_storages_and_orders_has_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_benchmark, "CASES", ((0.001, 2e9), (0.003, 1e9)))  # as fast as tests have to be
    report = tmp_path / "reading.json"
    words = [
        "reading",
        "--videos",
        "12",
        "--frames",
        "30",
        "--seconds",
        "0.05",
        "--json",
        str(report),
        "--scratch",
        str(tmp_path),
    ]
    assert tool.benchmark(words) == 0
    printed, result = capsys.readouterr().out, json.loads(report.read_text())["result"]
    assert result["start"]["frames"] == 12 * 30
    cases = result["cases"]
    assert [(case["latency"], case["order"]) for case in cases] == [
        (0.001, "full"), (0.001, "pooled"), (0.003, "full"), (0.003, "pooled"),
    ]  # fmt: skip
    for case in cases:
        assert case["probed"][0] >= case["latency"] and case["probed"][1] <= 1.1 * case["bandwidth"]
        assert set(case["plans"]) == {"frame", "span", "resident"}
        frame = case["plans"]["frame"]
        assert 1.0 <= frame["amplification"] <= 1.05  # what design 10 asks for
        assert 3 <= frame["requests"] <= 5 and 0.4 < frame["megabytes"] < 1.1
    assert printed.count("<- picked") == 4 and "360 frames: opened in" in printed


def test_a_set_of_zeros_is_a_sound_set(tmp_path: Path) -> None:
    facts = SparseSet(num_videos=7, num_frames=5, image_bytes=3000, mask_bytes=100, num_objects=3, videos_per_shard=3)
    root = write_sparse_set(tmp_path, facts)
    with ShardSet.open(root) as shard_set:
        assert (shard_set.num_videos, shard_set.num_frames, len(shard_set.manifest.shards)) == (7, 35, 3)
        assert len(shard_set.select("train")) == 7 and shard_set.videos.object_ids(6) == (1, 2, 3)
        lengths = set()
        for frame in range(35):
            read = shard_set.read(frame)
            assert not any(read.image) and read.mask == bytes(100)
            lengths.add(len(read.image))
            objects = shard_set.objects(frame)
            y0, x0, y1, x1 = objects.boxes.T
            assert np.array_equal(objects.areas, (y1 - y0).astype(int) * (x1 - x0))
        assert len(lengths) > 10 and 1500 <= min(lengths) <= max(lengths) <= 4500
    assert sum(path.stat().st_blocks * 512 for path in root.glob("*.tar")) < 100_000


def test_a_start_is_counted(tmp_path: Path) -> None:
    cost = start(write_sparse_set(tmp_path, SparseSet(num_videos=5, num_frames=20)), 10)
    assert cost.frames == 100 and 0 < cost.open_seconds <= cost.first_plan_seconds
    assert cost.later_shared_mb >= cost.shared_mb - 0.1
