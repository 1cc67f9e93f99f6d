"""The benchmark of target models times two versions that do the same."""

from __future__ import annotations

from trainers.benchmarks.targets import TargetSize, time_targets


def test_both_versions_score_alike_and_ours_remembers_in_fewer_bytes(one_thread: None) -> None:
    size = TargetSize(trunk="resnet18", height=64, width=96, objects=2, remembered=2)
    costs = time_targets(size, rounds=1)
    assert [timing.name for timing in costs.timings] == ["fit in a first frame", "refit", "refine a frame"]
    assert all(timing.ours > 0 and timing.plain > 0 for timing in costs.timings)
    assert costs.largest_difference < 0.1  # single precision through 45 steps of conjugate gradient
    # The plain version allots 80 slots with two full-size maps each for every object and level.
    features = (64 * (8 * 12 + 4 * 6)) * 80 * 2 * 4
    maps = 2 * 64 * 96 * 80 * 2 * 2 * 4
    assert costs.bytes_plain == features + maps
    assert costs.bytes_ours < costs.bytes_plain / 4
