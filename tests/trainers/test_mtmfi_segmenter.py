"""MTMFI follows objects: how they are merged, when they are remembered, when late ones begin."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor

from models.target_models import TargetModels
from tests.trainers.small_mtmfi import moving_square, small_network
from trainers.segmenters.mtmfi import Merged, MtmfiOptions, MtmfiSegmenter, merge

OPTIONS = MtmfiOptions(num_channels=4, num_samples=3, hole="smooth", fast=True, refit_every=2, capacity=6)


def two_squares(time: int) -> tuple[Tensor, Tensor]:
    """A frame (1, 3, 48, 64) with one moving square, and masks (1, 2, 48, 64) of it and of a corner."""
    image, mask = moving_square(time)
    corner = torch.zeros_like(mask)
    corner[34:, :20] = 1
    return image[None], torch.stack([mask, corner])[None]


def odds_softmax(probabilities: Tensor) -> Tensor:
    """The published merging of one pixel (O,), spelled out."""
    clamped = [min(max(value, 1e-7), 1 - 1e-7) for value in probabilities.tolist()]
    rows = [min(1 - value for value in clamped), *clamped]
    return torch.tensor([value / (1 - value) for value in rows]).softmax(0)


@pytest.mark.parametrize("merging", ["published", "once", "raw"])
def test_merging_is_what_the_rules_say_pixel_by_pixel(merging: str) -> None:
    separate = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(1))
    merged: Merged = merge(separate, merging)
    for row in range(4):
        for column in range(5):
            pixel = separate[:, row, column]
            shares = odds_softmax(pixel)
            winner = max(range(4), key=shares.tolist().__getitem__)
            kept = torch.tensor([share if row == winner else 0.0 for row, share in enumerate(shares.tolist())])[1:]
            torch.testing.assert_close(merged.memorised[:, row, column], kept)
            raw = torch.cat([(1 - pixel).min()[None], pixel])
            shown = {"published": odds_softmax(kept), "once": shares, "raw": raw}[merging]
            torch.testing.assert_close(merged.shown[0, :, row, column], shown)


@pytest.mark.parametrize(("pixel", "learnt"), [((1.0, 1.0), (0.5, 0.0)), ((0.5, 0.2), (0.0, 0.0))])
def test_of_equal_shares_the_first_row_wins_alone(pixel: tuple[float, ...], learnt: tuple[float, ...]) -> None:
    memorised = merge(torch.tensor(pixel)[:, None, None], "published").memorised
    assert memorised.flatten().tolist() == pytest.approx(learnt, abs=1e-6)


def test_one_object_is_shown_where_its_share_is_above_one_half() -> None:
    separate = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(2))
    merged = merge(separate, "published")
    assert torch.equal(merged.shown[0].argmax(0) == 1, merged.memorised[0] > 0.5)


def test_soft_merging_remembers_everything_and_sums_to_one() -> None:
    merged = merge(torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(3)), "soft")
    torch.testing.assert_close(merged.shown.sum(1), torch.ones(1, 6, 6))
    assert torch.equal(merged.shown[0, 1:], merged.memorised)


@pytest.mark.parametrize("variant", ["bise", "initial", "frtm"])
def test_every_variant_follows_two_objects(variant: str) -> None:
    segmenter = MtmfiSegmenter(small_network(variant), OPTIONS)
    image, masks = two_squares(0)
    segmenter.start(image, masks)
    for time in range(1, 4):
        probabilities = segmenter.step(two_squares(time)[0])
        assert probabilities.shape == (1, 3, 48, 64)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 48, 64))


def test_the_same_video_gives_the_same_result_after_another_one() -> None:
    segmenter = MtmfiSegmenter(small_network(), OPTIONS)
    image, masks = two_squares(0)
    results = []
    for _ in range(2):
        segmenter.start(image, masks)
        results.append(segmenter.step(two_squares(1)[0]))
    assert torch.equal(results[0], results[1])


def test_objects_in_parts_through_the_refiner_are_the_same_as_together() -> None:
    results = []
    for at_once in (1, 8):
        segmenter = MtmfiSegmenter(small_network(), dataclasses.replace(OPTIONS, objects_at_once=at_once))
        segmenter.start(*two_squares(0))
        results.append(segmenter.step(two_squares(1)[0]))
    torch.testing.assert_close(results[0], results[1])


def test_a_late_object_takes_its_pixels_and_learns_nothing_from_its_own_first_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    updates: list[tuple[int, Tensor]] = []
    monkeypatch.setattr(TargetModels, "update", lambda self, masks: updates.append((self.num_objects, masks)))
    segmenter = MtmfiSegmenter(small_network(), OPTIONS)
    image, masks = two_squares(0)
    segmenter.start(image, masks[:, :1])
    segmenter.step(two_squares(1)[0])
    segmenter.step(two_squares(2)[0])
    late = two_squares(2)[1][:, 1:]
    shown = segmenter.add(late, given_again=late)  # ignored, as published
    assert shown.shape == (1, 3, 48, 64)
    assert (shown[0].argmax(0)[late[0, 0] > 0] == 2).all()
    segmenter.step(two_squares(3)[0])
    assert [count for count, _ in updates] == [1, 1]  # of frames 1 and 2: the late object had no part in either
    assert not updates[1][1][0][late[0, 0] > 0].any()  # what the older one lost it does not learn as its own
    segmenter.step(two_squares(4)[0])
    assert [count for count, _ in updates] == [1, 1, 1, 1]


def test_objects_cannot_begin_before_there_is_a_frame() -> None:
    with pytest.raises(ValueError, match="call start"):
        MtmfiSegmenter(small_network(), OPTIONS).add(torch.ones(1, 1, 48, 64), given_again=torch.zeros(1, 1, 48, 64))


def test_every_frame_from_the_first_object_on_is_shown() -> None:
    assert OPTIONS.memorised(6, [2, 4]) == {2, 3, 4, 5}


def test_frtms_weights_bring_frtms_settings() -> None:
    usual = MtmfiOptions()
    assert (usual.targets("frtm").num_channels, usual.targets("frtm").growth) == (96, "frtm")
    assert (usual.targets("bise").num_channels, usual.targets("bise").growth) == (64, "mtmfi")
    assert MtmfiOptions(fast=True).targets("bise").update_iterations == (5,)


def test_settings_are_the_same_after_a_way_through_json() -> None:
    settings = dataclasses.asdict(MtmfiOptions())
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize("wrong", [{"merging": "twice"}, {"objects_at_once": 0}, {"num_samples": 0}, {"capacity": 0}])
def test_options_that_fit_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be at least 1|expected at least 1|unknown merging"):
        MtmfiOptions(**wrong)  # type: ignore[arg-type]
