"""The whole way from a shard set to batches: equal pixels on any number of ranks and after any restart."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from pipelines.assembly import assemble
from pipelines.executors import make_executor
from pipelines.loader import ClipLoader
from pipelines.order.sampling import MixEntry
from pipelines.recipes import make_recipe
from pipelines.source import ClipSource
from pipelines.types import Batch
from shards.errors import DataError
from shards.reader import ShardSet
from tests.shards.small_tree import build_set, label_maps, write_tree


@pytest.fixture
def shard_set(tmp_path: Path):
    videos = {f"video{n}": label_maps(9, (1, 2, 200 + n), seed=n) for n in range(4)}
    videos["short"] = label_maps(2, (1,), seed=9)
    build_set(write_tree(tmp_path / "tree", videos), tmp_path)
    with ShardSet.open(tmp_path / "davis2017") as opened:
        yield opened


def load(shard_set: ShardSet, *, threads: int = 2, **options) -> list[Batch]:
    recipe = make_recipe("rde_video", {"size": 32, "num_frames": 3, "max_gap": [[0, 2]]})
    source = ClipSource([MixEntry(shard_set, "train")], recipe, seed=1, steps=3, batch_size=4)
    executor = make_executor("cpu", threads=threads, device=torch.device("cpu"))
    finish = partial(assemble, num_slots=2, device="cpu")
    try:
        with ClipLoader(source, executor, finish, threads=threads, **options) as loader:
            return list(loader)
    finally:
        executor.close()


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.images, batch.masks, batch.num_objects, batch.first_masks, batch.annotated]


@pytest.mark.parametrize("world_size", [2, 4])
def test_pixels_of_all_ranks_together_are_those_of_one(shard_set: ShardSet, world_size: int):
    whole = load(shard_set)
    ranks = [load(shard_set, rank=rank, world_size=world_size) for rank in range(world_size)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        for expected, *found in zip(tensors(batch), *map(tensors, parts), strict=True):
            assert torch.equal(torch.cat(found), expected)


def test_pixels_after_a_restart_are_those_of_the_whole_run(shard_set: ShardSet):
    whole, resumed = load(shard_set), load(shard_set, start_step=1, threads=1, look_ahead=1)
    assert [batch.step for batch in resumed] == [1, 2]
    for expected, found in zip(whole[1:], resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(expected), tensors(found), strict=True))


def test_clips_show_the_objects_their_plans_list(shard_set: ShardSet):
    for batch in load(shard_set):
        assert batch.images.shape == (4, 3, 3, 32, 32)
        for plan, count in zip(batch.plans, batch.num_objects.tolist(), strict=True):
            assert count <= min(2, len(plan.object_ids))
            assert set(plan.object_ids) <= set(shard_set.videos.object_ids(plan.video))
        assert (batch.num_objects > 0).any()


def test_a_video_too_short_for_the_recipe_is_left_out_by_name(shard_set: ShardSet):
    source = ClipSource([MixEntry(shard_set, "train")], make_recipe("rde_video", {}), seed=1, steps=1, batch_size=1)
    assert source.mix.report() == (
        "davis2017 train: 4 videos x 1 = 4 of 4 clips; left out 1 with fewer than 3 annotated frames (first: short)",
    )


def test_a_flipped_byte_stops_the_loop_and_names_clip_video_and_remedy(shard_set: ShardSet):
    (tar,) = shard_set.path.glob("*.tar")
    data = bytearray(tar.read_bytes())
    for start in range(0, len(data) - 100):
        if data[start : start + 2] == b"\xff\xd8":  # start of a JPEG
            data[start + 90] ^= 1
    tar.write_bytes(data)
    with pytest.raises(
        DataError, match=r"davis2017-000000.tar, video video\d, frame 0000.*run tools/check.py"
    ) as caught:
        load(shard_set)
    assert caught.value.__notes__[0].startswith("while reading clip 0 (step 0): davis2017, video video")
