"""The benchmark measures what it says; no test here looks at how fast anything is."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipelines.benchmarks.build_work import make_bl30k, plain_webdataset
from pipelines.benchmarks.building import BuildMeasure, BuildTiming, Cost, derived_hours, time_build
from pipelines.benchmarks.executors import describe_machine, take_turns, time_clips
from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.masks import MaskCodec, decode_label_map
from shards.reader import ShardSet
from shards.sources.moving_shapes import MovingShapes, write_moving_shapes
from tests.pipelines.clips import clip

SMALL = MovingShapes(num_train=2, num_val=1, num_frames=3, height=48, width=64)


def test_work_takes_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    seconds = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert set(seconds) == {"a", "b"}
    assert all(value >= 0 for value in seconds.values())


def test_clip_timing_names_what_was_timed() -> None:
    timing = time_clips([clip(seed, num_frames=2) for seed in range(5)], rounds=1)
    assert (timing.num_clips, timing.num_frames, timing.rounds) == (5, 2, 1)
    assert list(timing.executors) == ["cpu", "paper"]
    assert list(timing.stages) == ["decode", "warp", "colour", "masks", "assembly"]
    assert all(value > 0 for value in timing.executors.values())


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one clip and one round, got 0 clips and 5 rounds"):
        time_clips([])
    with pytest.raises(ValueError, match="unknown executor 'fast'"):
        time_clips([clip(0)], ["fast"])


def test_build_timing_measures_the_made_source_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_moving_shapes(tmp_path / "davis", SMALL)
    timing = time_build(BuildMeasure(tmp_path / "davis", 3, 4, rounds=1), tmp_path / "scratch")
    assert (timing.num_videos, timing.num_frames, timing.rounds) == (3, 12, 1)
    assert list(timing.costs) == ["build", "tar cf", "webdataset"]
    assert list(timing.stages) == ["read", "image check", "mask decode", "objects", "mask encode", "hash", "write"]
    assert min(cost.wall for cost in timing.costs.values()) > 0
    assert list(timing.processes) == [1, 2] and list(timing.peak_mb) == [1, 4]
    assert min(timing.peak_mb.values()) > 10 and max(timing.peak_mb.values()) < 200, "something large is imported"
    assert [path.name for path in tmp_path.iterdir()] == ["davis"]


def test_the_made_tars_hold_the_made_files_and_fill_up_from_the_frames_there_are(tmp_path: Path) -> None:
    write_moving_shapes(tmp_path / "davis", SMALL)
    source = make_bl30k(tmp_path / "davis", tmp_path / "made", num_videos=3, frames_per_video=5)
    found: dict[str, bytes] = {}
    for tar in source.tars:
        with tarfile.open(tar) as archive:
            members = [member for member in archive if member.isfile()]
            found |= {member.name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    files = {path.relative_to(source.folder.parent).as_posix(): path for path in source.folder.rglob("*.*")}
    assert found == {name: path.read_bytes() for name, path in files.items()}
    assert len(found) == 2 * 15 and source.num_bytes == sum(len(data) for data in found.values())
    # Nine frames there are: the tenth is the first again.
    assert found["BL30K/JPEGImages/kea00001/00004.jpg"] == found["BL30K/JPEGImages/kea00000/00000.jpg"]


@pytest.mark.parametrize("codec", ["lz4", "png"])
def test_the_plain_script_makes_the_members_of_the_build(tmp_path: Path, codec: MaskCodec) -> None:
    """Else the two would not be comparable."""
    write_moving_shapes(tmp_path / "davis", SMALL)
    source = make_bl30k(tmp_path / "davis", tmp_path / "made", num_videos=2, frames_per_video=3)
    plain_webdataset(source, tmp_path / "plain.tar", codec)
    request = BuildRequest("bl30k", source.tars, tmp_path, mask_codec=codec)
    root = build(request, make_plan(request), silent).root
    with tarfile.open(tmp_path / "plain.tar") as plain, ShardSet.open(root) as shard_set:
        for frame in range(shard_set.num_frames):
            video = shard_set.videos.names[shard_set.videos.row_of_frame(frame)]
            key, encoded = f"{video}/{shard_set.frame_name(frame)}", shard_set.read(frame)
            image, mask = (plain.extractfile(f"{key}.{ending}").read() for ending in ("jpg", codec))  # type: ignore[union-attr]
            assert encoded.mask is not None and image == encoded.image
            np.testing.assert_array_equal(decode_label_map(mask, codec), decode_label_map(encoded.mask, codec))


def test_hours_for_bl30k_follow_from_the_cpu_time() -> None:
    costs = {"build": Cost(cpu=20.0, wall=99.0)}
    timing = BuildTiming(1, 1000, 100.0, 1, costs, {}, {}, {})
    # 20 s of CPU for 100 MB and 1000 frames, so 10 s on 2 cores. 700 GB are 7000 times as much, and the 4,798,240
    # frames 4798.24 times.
    assert derived_hours(timing, machines=1, cores=2) == pytest.approx((70_000 / 3600, 47_982.4 / 3600))
    assert derived_hours(timing, machines=16, cores=4) == pytest.approx((70_000 / 32 / 3600, 47_982.4 / 32 / 3600))


def test_a_source_without_frames_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no JPEGImages/480p/<video>/<frame>\.jpg with a mask"):
        time_build(BuildMeasure(tmp_path / "missing"), tmp_path / "scratch")
    assert list(tmp_path.iterdir()) == []


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["processor"]
    assert int(machine["cores"]) >= 1
