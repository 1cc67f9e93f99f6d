"""Training samples of FRTM and MTMFI: which frames an object may be the reference in, and squashed pixels."""

from __future__ import annotations

import math
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.assembly import make_assembly
from pipelines.executors import make_executor
from pipelines.executors.encoded import decode_jpeg
from pipelines.order.sampling import MixEntry
from pipelines.order.turns import Phase
from pipelines.recipes import ClipRequest, Mtmfi, make_recipe
from pipelines.recipes.visibility import davis_visibility
from pipelines.source import ClipSource
from pipelines.types import ClipPixels, EncodedClip
from tests.pipelines.clips import blobs, frame, noise_labels, picture
from tests.pipelines.fake_set import FakeSet, FakeVideo


def request(shard_set: FakeSet, number: int = 0) -> ClipRequest:
    return ClipRequest((5, 6), number, 0, shard_set, 0, 1, 0, 100)


def box(area: int) -> tuple[int, int, int, int]:
    return 0, 0, 10, area // 10


def test_the_reference_is_uniform_over_frames_that_show_the_object_and_targets_over_all_others() -> None:
    boxes = [{1: box(90 if position < 6 else 100)} for position in range(10)]
    plans = [Mtmfi().plan(request(FakeSet([FakeVideo(num_frames=10, boxes=boxes)]), n)) for n in range(2000)]
    references = Counter(plan.frames[0] for plan in plans)
    assert sorted(references) == [6, 7, 8, 9]
    assert max(abs(count - 500) for count in references.values()) < 4 * math.sqrt(500)
    pairs = Counter(plan.frames[1:] for plan in plans if plan.frames[0] == 6)
    assert all(first != second and 6 not in (first, second) for first, second in pairs)
    targets = Counter(target for plan in plans if plan.frames[0] == 6 for target in plan.frames[1:])
    assert len(targets) == 9
    assert max(abs(count - 1000 / 9) for count in targets.values()) < 4.5 * math.sqrt(1000 / 9)


def test_only_the_chosen_object_is_a_slot_and_it_is_chosen_uniformly() -> None:
    shard_set = FakeSet([FakeVideo(boxes={1: box(500), 4: box(700), 9: box(50)})])
    chosen = Counter(Mtmfi().plan(request(shard_set, n)).object_ids for n in range(600))
    assert set(chosen) == {(1,), (4,)}  # 9 is too small in every frame
    assert abs(chosen[(1,)] - 300) < 4 * math.sqrt(150)


def test_a_video_without_a_large_enough_object_gives_a_sample_without_one() -> None:
    plan = Mtmfi().plan(request(FakeSet([FakeVideo(boxes={1: box(90)})])))
    assert plan.object_ids == ()
    assert len(set(plan.frames)) == 3


def test_shorter_clips_keep_their_reference_and_the_name_of_its_target_model() -> None:
    recipe, shard_set = Mtmfi(clip_length=[[0, 2], [0.5, 3]]), FakeSet([FakeVideo()])  # type: ignore[arg-type]
    for number in range(20):
        short, whole = recipe.plan(request(shard_set, number)), Mtmfi().plan(request(shard_set, number))
        assert (short.frames, short.object_ids) == (whole.frames[:2], whole.object_ids)
        assert short.matrices.shape == short.label_matrices.shape == (2, 2, 3)  # type: ignore[union-attr]
    assert repr(recipe) == repr(Mtmfi())


def test_clips_go_round_objects_in_the_published_proportion() -> None:
    davis = FakeSet([FakeVideo("a", boxes={1: box(500), 2: box(700)}), FakeVideo("b", boxes={1: box(90)})],
                    kind="davis2017")  # fmt: skip
    youtube = FakeSet([FakeVideo(str(n), boxes=dict.fromkeys(range(1, 2 + n % 3), box(500))) for n in range(9)],
                      fingerprint="e" * 64)  # fmt: skip
    entries = [MixEntry(davis, "train", repeat=8), MixEntry(youtube, "train", clips_per_pass=12)]
    source = ClipSource(entries, Mtmfi(), seed=1, steps=10, batch_size=28)
    assert source.mix.phases == (Phase(0, (16, 12)),)
    lines = source.mix.report()
    assert lines[0] == (
        "fake train: 2 objects x 8 = 16 of 28 clips; left out 1 with no object that is large enough (first: b)"
    )
    assert lines[1] == "fake train: 18 objects in 12 clips = 12 of 28 clips; none left out"
    plans = [source.plan(number) for number in range(84)]
    of_davis = Counter((plan.video, plan.object_ids) for plan in plans if plan.dataset == 0)
    assert of_davis == {(0, (1,)): 24, (0, (2,)): 24}
    of_youtube = Counter((plan.video, plan.object_ids) for plan in plans if plan.dataset == 1)
    assert set(of_youtube.values()) == {2}  # 36 clips are two passes over 18 objects
    assert len(of_youtube) == 18


def test_davis_asks_for_a_share_of_the_largest_area_too() -> None:
    boxes = [{1: box(1000 if position < 5 else 200)} for position in range(10)]
    video = FakeVideo(num_frames=10, boxes=boxes)
    by_kind = {
        kind: {Mtmfi().plan(request(FakeSet([video], kind=kind), n)).frames[0] for n in range(100)}
        for kind in ("davis2017", "youtube_vos")
    }
    assert by_kind == {"davis2017": set(range(5)), "youtube_vos": set(range(10))}
    forced = Mtmfi(visibility="area")
    assert len({forced.plan(request(FakeSet([video], kind="davis2017"), n)).frames[0] for n in range(100)}) == 10


def test_shares_of_single_videos_and_frames_decided_by_hand() -> None:
    areas = np.array([1000, 600, 400, 240, 150, 90])
    assert davis_visibility("bear", 1, areas).tolist() == [True, True, True, False, False, False]
    assert davis_visibility("bmx-bumps", 1, areas).tolist() == [True, True, False, False, False, False]
    assert davis_visibility("disc-jockey", 1, areas).tolist() == [True, True, True, False, False, False]
    assert davis_visibility("cat-girl", 2, areas).tolist() == [True, True, True, True, False, False]
    assert davis_visibility("tractor-sand", 1, areas).tolist() == [True] * 5 + [False]
    assert davis_visibility("bus", 1, areas).all()
    long = np.r_[1000, np.zeros(90, int)]
    assert np.flatnonzero(davis_visibility("classic-car", 2, long)).tolist() == list(range(56))
    assert np.flatnonzero(davis_visibility("drone", 1, long)).tolist() == [*range(17), *range(24, 60)]
    assert np.flatnonzero(davis_visibility("drone", 2, long)).tolist() == [0]
    assert davis_visibility("night-race", 2, long).all()
    assert np.flatnonzero(davis_visibility("night-race", 1, long)).tolist() == list(range(29))


def sample(recipe: Mtmfi, source: tuple[int, int], *, noisy: bool = True) -> EncodedClip:
    boxes = dict.fromkeys((1, 2, 3), (0, 0, *source))
    plan = recipe.plan(request(FakeSet([FakeVideo(size=source, boxes=boxes)]), 1))
    draw = noise_labels if noisy else blobs
    return EncodedClip(plan, tuple(frame(picture(t, *source), draw(t, *source)) for t in range(3)), "lz4")


def render(name: str, clip: EncodedClip) -> ClipPixels:
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="no DALI in this environment")
    executor = make_executor(name)
    try:
        return executor([clip])
    finally:
        executor.close()


@pytest.mark.parametrize("legacy", [True, False])
def test_labels_are_taken_as_torch_takes_them(legacy: bool) -> None:
    clip = sample(Mtmfi(size=(64, 80), legacy_nearest=legacy), (96, 160))
    labels = torch.from_numpy(noise_labels(0, 96, 160))[None, None].float()
    labels[labels == 255] = 0
    expected = F.interpolate(labels, (64, 80), mode="nearest" if legacy else "nearest-exact")[0, 0]
    ours, theirs = render("cpu", clip), render("dali", clip)
    assert torch.equal(ours.labels[0, 0].float(), expected)
    assert torch.equal(theirs.labels, ours.labels)


def test_images_are_squashed_linearly_without_antialiasing() -> None:
    clip = sample(Mtmfi(size=(64, 80)), (96, 160))
    expected = cv2.resize(decode_jpeg(clip, 0), (80, 64), interpolation=cv2.INTER_LINEAR)
    difference = np.abs(render("cpu", clip).images[0, 0].numpy().astype(int) - expected)
    assert difference.max() <= 1


def test_masks_are_binary() -> None:
    recipe = Mtmfi(size=(64, 80))
    clip = sample(recipe, (96, 160), noisy=False)
    pixels = render("cpu", clip)
    batch, misses = make_assembly(recipe, torch.device("cpu"))(pixels, [clip.plan], step=0)
    assert torch.equal(batch.masks, (pixels.labels == clip.plan.object_ids[0]).to(torch.uint8))
    assert batch.first_masks.shape == (1, 1, 64, 80)
    assert (batch.num_objects.tolist(), int(misses)) == ([1], 0)


def test_frtm_has_the_same_samples() -> None:
    assert make_recipe("frtm", {}) == make_recipe("mtmfi", {}) == Mtmfi()
    with pytest.raises(ValueError, match="min_frames must be at least num_frames, got 2 < 3"):
        Mtmfi(min_frames=2)
    with pytest.raises(ValueError, match="visibility must be one of by_data_set, area, davis"):
        Mtmfi(visibility="youtube")
