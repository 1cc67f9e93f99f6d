"""Statistics and timelines of a set whose every mask is known."""

from __future__ import annotations

import numpy as np
import pytest

from shards.masks import decode_label_map
from shards.reader import ShardSet
from tests.trainers.small_runs import build_shards
from trainers.looking.dataset_pages import dataset_page, plot_statistics, plot_timeline, read_statistics, read_timeline


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory):
    with ShardSet.open(build_shards(tmp_path_factory.mktemp("pages"), num_frames=7)) as opened:
        yield opened


def label_maps(shard_set: ShardSet, video: int) -> np.ndarray:
    frames = [shard_set.read(row) for row in shard_set.frame_rows(video)]
    return np.stack([decode_label_map(frame.mask or b"", shard_set.mask_codec) for frame in frames])


def test_statistics_are_those_of_the_masks(shard_set: ShardSet) -> None:
    found = read_statistics(shard_set)
    maps = [labels for video in range(2) for labels in label_maps(shard_set, video)]
    ids = [np.setdiff1d(np.unique(labels), [0, 255]) for labels in maps]
    assert found.objects_per_frame.tolist() == [len(each) for each in ids]
    areas = [(labels == number).mean() for labels, each in zip(maps, ids, strict=True) for number in each]
    assert found.areas == pytest.approx(areas)
    assert found.lengths.tolist() == [7, 7]
    assert (found.num_frames_seen, found.num_frames) == (14, 14)
    assert found.sizes == [maps[0].shape[::-1]] * 2
    assert len(read_statistics(shard_set, most_frames=5).objects_per_frame) == 5


def test_a_timeline_is_that_of_the_masks(shard_set: ShardSet) -> None:
    row = shard_set.video_row("one")
    timeline, maps = read_timeline(shard_set, row), label_maps(shard_set, row)
    assert (timeline.name, timeline.num_frames, timeline.places.tolist()) == ("one", 7, list(range(7)))
    assert [item.object_id for item in timeline.objects] == [1, 2]
    for item in timeline.objects:
        assert item.areas == pytest.approx((maps == item.object_id).mean(axis=(1, 2)))
        assert item.starts == int(np.argmax(item.areas > 0))
    seen, covered = plot_timeline(timeline).axes
    assert [label.get_text() for label in seen.get_yticklabels()] == ["object 1", "object 2"]
    assert covered.lines[0].get_ydata() == pytest.approx(100 * timeline.objects[0].areas)
    assert all(tick == round(tick) for tick in covered.get_xticks()), "there is no frame 2.5"


def test_plots_count_frames_and_videos(shard_set: ShardSet) -> None:
    per_frame, _, lengths, sizes = plot_statistics(read_statistics(shard_set)).axes
    assert sum(bar.get_height() for bar in per_frame.patches) == 14
    assert [bar.get_height() for bar in lengths.patches] == [2]
    assert [bar.get_width() for bar in sizes.patches] == [2]
    assert all(tick == round(tick) for axes in (per_frame, lengths, sizes) for tick in axes.get_xticks())


def test_a_page_shows_the_videos_asked_for(shard_set: ShardSet) -> None:
    page = dataset_page(shard_set, [shard_set.video_row("two")])
    assert "two: 7 frames, 1 object<" in page
    assert "one: 7 frames" not in page
    assert page.count('<img alt="frame ') == 6
    assert page.count('class="plot"') == 2
