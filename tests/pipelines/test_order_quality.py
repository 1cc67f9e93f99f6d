"""Orders whose quality can be worked out by hand, and a real order beside a uniform one."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.order.pooled import Pooled
from pipelines.order.sampling import MixEntry
from pipelines.order_quality import describe_order, drawn_videos, first_videos, shuffled
from pipelines.recipes import make_recipe
from pipelines.source import ClipSource
from tests.pipelines.fake_set import FakeSet, FakeVideo


def test_a_sorted_order_is_as_bad_as_it_looks() -> None:
    quality = describe_order([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], batch_size=4, lags=(1, 11))
    assert quality.distinct_per_batch == 1
    assert quality.repeat_distance == (1, 1, 1)
    assert (quality.num_clips, quality.num_videos) == (12, 3)
    assert quality.autocorrelation == {1: pytest.approx(np.corrcoef(range(11), range(11))[0, 1], abs=0.2)}


def test_a_round_of_all_videos_has_full_batches_and_even_distances() -> None:
    quality = describe_order(list(range(6)) * 4, batch_size=3)
    assert quality.distinct_per_batch == 3
    assert quality.repeat_distance == (6, 6, 6)


def test_numbers_are_those_of_a_slow_count() -> None:
    order = np.random.default_rng(1).integers(0, 9, 200)
    quality = describe_order(order, batch_size=8, lags=(1, 5))
    batches = [set(order[first : first + 8].tolist()) for first in range(0, 200, 8)]
    assert quality.distinct_per_batch == pytest.approx(np.mean([len(batch) for batch in batches]))
    distances = []
    for place, video in enumerate(order):
        later = [other for other in range(place + 1, 200) if order[other] == video]
        distances += [later[0] - place] if later else []
    assert quality.repeat_distance == pytest.approx((min(distances), *np.quantile(distances, (0.05, 0.5))))
    for lag in (1, 5):
        assert quality.autocorrelation[lag] == pytest.approx(np.corrcoef(order[:-lag], order[lag:])[0, 1])


def test_videos_that_never_come_again_have_no_distance_and_one_video_no_correlation() -> None:
    assert describe_order(range(8), batch_size=4).repeat_distance is None
    assert set(describe_order([3] * 8, batch_size=4).autocorrelation.values()) == {0.0}


def test_the_reference_holds_the_same_clips_in_another_order_every_time_the_same() -> None:
    order = np.arange(50)
    reference = shuffled(order)
    assert sorted(reference.tolist()) == order.tolist()
    assert reference.tolist() != order.tolist()
    assert reference.tolist() == shuffled(order).tolist()


def test_the_order_of_a_source_is_what_its_plans_show_and_no_worse_than_uniform() -> None:
    sets = [FakeSet([FakeVideo(num_frames=9) for _ in range(count)]) for count in (12, 30)]
    recipe = make_recipe("rde_video", {"size": 32})
    mix = [MixEntry(sets[0], "train", 5), MixEntry(sets[1], "train")]
    source = ClipSource(mix, recipe, seed=3, steps=100, batch_size=4)
    order = drawn_videos(source, 40, 360)
    for place in (0, 1, 7, 359):
        plan = source.plan(40 + place)
        assert order[place] == (0, 12)[plan.dataset] + plan.video
    ours, uniform = (describe_order(videos, 4, starts=first_videos(source)) for videos in (order, shuffled(order)))
    assert ours.distinct_per_batch > uniform.distinct_per_batch - 0.1
    assert max(map(abs, ours.autocorrelation.values())) < 0.2


@pytest.mark.parametrize("pooled", [None, Pooled(videos=8, uses=5, streams=2)], ids=["full", "pooled"])
def test_the_quality_of_a_mix_in_either_order_is_that_of_a_slow_count(pooled: Pooled | None) -> None:
    sets = [FakeSet([FakeVideo(num_frames=9) for _ in range(count)]) for count in (12, 30)]
    mix = [MixEntry(sets[0], "train", 2), MixEntry(sets[1], "train")]
    source = ClipSource(mix, make_recipe("rde_video", {"size": 32}), seed=5, steps=70, batch_size=6, pooled=pooled)
    quality = describe_order(drawn_videos(source, 0, 420), 6, starts=first_videos(source), lags=(1, 2, 7))
    plans = [source.plan(number) for number in range(420)]
    batches = [{(plan.dataset, plan.video) for plan in plans[first : first + 6]} for first in range(0, 420, 6)]
    assert quality.distinct_per_batch == pytest.approx(sum(map(len, batches)) / 70)
    last: dict[tuple[int, int], int] = {}
    distances = []
    for place, plan in enumerate(plans):
        if (plan.dataset, plan.video) in last:
            distances.append(place - last[plan.dataset, plan.video])
        last[plan.dataset, plan.video] = place
    assert quality.repeat_distance == pytest.approx((min(distances), *np.quantile(distances, (0.05, 0.5))))
    means = [np.mean([plan.video for plan in plans if plan.dataset == number]) for number in range(2)]
    places = [plan.video - means[plan.dataset] for plan in plans]
    for lag in (1, 2, 7):
        assert quality.autocorrelation[lag] == pytest.approx(np.corrcoef(places[:-lag], places[lag:])[0, 1])
    assert quality.num_videos == 42


def test_a_pooled_order_repeats_sooner_than_a_uniform_one_and_is_no_sorted_one() -> None:
    fakes = FakeSet([FakeVideo(num_frames=9) for _ in range(60)])
    recipe = make_recipe("rde_video", {"size": 32})
    options = {"seed": 5, "steps": 300, "batch_size": 8}
    source = ClipSource([MixEntry(fakes, "train")], recipe, pooled=Pooled(videos=12, uses=8, streams=4), **options)
    order = drawn_videos(source, 0, 2400)
    ours, uniform = describe_order(order, 8), describe_order(shuffled(order), 8)
    assert ours.num_videos == 60 and ours.repeat_distance[2] < 0.7 * uniform.repeat_distance[2]
    assert max(map(abs, ours.autocorrelation.values())) < 0.3


def test_a_fixed_pattern_of_data_sets_is_no_correlation_of_their_clips() -> None:
    rng = np.random.default_rng(2)
    order = np.stack([rng.integers(0, 40, 300), rng.integers(1000, 1040, 300)], axis=1).ravel()  # strictly in turn
    blind, knowing = (describe_order(order, 4, starts=starts, lags=(1, 2)) for starts in ((0,), (0, 1000)))
    assert blind.autocorrelation[1] < -0.99
    assert abs(knowing.autocorrelation[1]) < 0.15


def test_less_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one batch of 4"):
        describe_order([1, 2, 3], batch_size=4)
