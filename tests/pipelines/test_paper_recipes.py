"""The published steps of STM-Cycle, stage 0 and FRTM: against the libraries they were written for, and composed."""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.assembly import assemble
from pipelines.executors import make_executor, paper_still, paper_stm_cycle
from pipelines.executors.pillow_steps import shift_hue
from pipelines.order.streams import Stream, StreamName
from pipelines.recipes import ClipRequest, Mtmfi, RdeStatic, StmCycle, StmCycleDali, StmCyclePaper
from pipelines.recipes.rde_static import OBJECT_ID
from pipelines.spline import bend, draw_points
from pipelines.types import ClipPixels, Content, EncodedClip, StmCycleSteps
from shards.masks import encode_soft_mask
from shards.reader import EncodedFrame
from tests.pipelines.clips import blobs, frame, jpeg, noise_labels, picture, plain_plan
from tests.pipelines.fake_set import FakeSet, FakeVideo

SOURCE = (120, 228)


def render(name: str, clips: list[EncodedClip]) -> ClipPixels:
    executor = make_executor(name)
    try:
        return executor(clips)
    finally:
        executor.close()


def clip_of(recipe: StmCycle | Mtmfi | RdeStatic, number: int, *, source: tuple[int, int] = SOURCE) -> EncodedClip:
    boxes = dict.fromkeys((1, 2, 3), (0, 0, *source))
    shard_set = FakeSet([FakeVideo(size=source, boxes=boxes)])
    plan = recipe.plan(ClipRequest((5, 6), number, 0, shard_set, 0, 1, 0, 100))
    if not recipe.soft_masks:
        return EncodedClip(plan, tuple(frame(picture(t, *source), blobs(t, *source)) for t in range(3)), "lz4")
    levels = blobs(number, *source, ids=(OBJECT_ID,)) * np.uint8(255)
    still = EncodedFrame(jpeg(picture(number, *source)), encode_soft_mask(levels, "soft.lz4"))
    return EncodedClip(plan, (still,) * 3, "soft.lz4")


def overlap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Share of the pixels with an object in either that have the same label in both."""
    either = ((ours > 0) & (ours < 255)) | ((theirs > 0) & (theirs < 255))
    return float(((ours == theirs) & either).sum() / either.sum())


# STM-Cycle


@pytest.mark.parametrize(("kind", "least"), [(StmCyclePaper, 0.93), (StmCycleDali, 0.93)])
def test_both_backends_show_what_the_composed_plan_shows(kind: type[StmCycle], least: float) -> None:
    overlaps, differences = [], []
    for number in range(4):
        clip = clip_of(kind(size=(120, 228), eroded_masks=False), number)
        ours, theirs = render("cpu", [clip]), render("paper", [clip])
        overlaps.append(overlap(ours.labels, theirs.labels))
        both = (ours.labels > 0) & (theirs.labels > 0)
        differences.append(float((ours.images.float() - theirs.images.float())[both].abs().mean()))
    assert min(overlaps) > least
    assert max(differences) < 8
    assert np.mean(differences) < 6


def test_imgaug_turns_by_the_matrix_of_the_plan() -> None:
    clip = clip_of(StmCyclePaper(size=SOURCE, cut=0, eroded_masks=False, flip=0, shear=30, rotation=40), 1)
    ours, theirs = render("cpu", [clip]), render("paper", [clip])
    # Coordinates in OpenCV are rounded to 1/32 px: edges move by less than a pixel, never whole shapes.
    assert overlap(ours.labels, theirs.labels) > 0.985


def test_eroded_masks_leave_the_same_pixels_without_a_label() -> None:
    voids = []
    for number in range(3):
        clip = clip_of(StmCyclePaper(size=(60, 114)), number)
        ours, theirs = (render(name, [clip]).labels == 255 for name in ("cpu", "paper"))
        voids.append((float(ours.float().mean()), float(theirs.float().mean())))
    mean = np.mean(voids, axis=0)
    assert mean[1] > 0.02
    assert mean[0] == pytest.approx(mean[1], rel=0.25)


def test_the_steps_of_the_dali_backend_are_those_of_dalis_operators() -> None:
    dali = pytest.importorskip("nvidia.dali", reason="no DALI in this environment")
    steps = StmCycleSteps("dali", False, (0.03, -0.02), (0, 0, 0, 0), 1.0, 0.0, (7.5,), 1.0, 0.0, True)
    labels = noise_labels(3, *SOURCE)
    content = Content(0, 0, 60, 114)
    pipeline = dali.Pipeline(1, 1, None, exec_async=False, exec_pipelined=False, prefetch_queue_depth=1)
    with pipeline:
        pixels = dali.fn.external_source(name="labels", batch=True, dtype=dali.types.UINT8, ndim=3, layout="HWC")
        nearest = {"interp_type": dali.types.INTERP_NN}
        matrix = np.linalg.inv([[1, 0.03, 0], [-0.02, 1, 0], [0, 0, 1]])[:2].astype(np.float32)
        pixels = dali.fn.warp_affine(pixels, matrix=matrix.ravel().tolist(), fill_value=0, **nearest)
        # DALI turns against the clock for a positive angle.
        pixels = dali.fn.rotate(pixels, angle=-7.5, keep_size=True, fill_value=0, **nearest)
        pixels = dali.fn.flip(dali.fn.resize(pixels, size=(60, 114), mode="not_larger", **nearest), horizontal=1)
        pipeline.set_outputs(pixels)
    pipeline.build()
    pipeline.feed_input("labels", [labels[..., None]])
    theirs = np.array(pipeline.run()[0].as_array())[0, ..., 0]
    ours = paper_stm_cycle._dali(labels, steps, 0, content)
    assert (ours != theirs).mean() < 0.02  # matrices are snapped, and noise shows the last bit


def test_numpys_removed_table_is_there_for_imgaug_only() -> None:
    assert not hasattr(np, "sctypes")
    from pipelines.executors import paper_imgaug

    assert not hasattr(np, "sctypes")
    removed = paper_imgaug.REMOVED
    with paper_imgaug.numpy_sctypes():
        assert np.float32 in getattr(np, removed)["float"]
        assert np.uint8 in getattr(np, removed)["uint"]
    assert not hasattr(np, "sctypes")


def test_corrected_clips_have_no_published_steps() -> None:
    with pytest.raises(ValueError, match="clip 0: its recipe has no published steps; use the cpu or dali executor"):
        render("paper", [clip_of(StmCycle(size=(60, 114)), 0)])


# Stage 0


def test_stills_show_what_the_composed_plan_shows_and_are_bent_once() -> None:
    recipe = RdeStatic(size=96, spline=1.0)
    overlaps = []
    for number in range(4):
        clip = clip_of(recipe, number)
        batches = [
            assemble(render(name, [clip]), [clip.plan], num_slots=1, step=0, device="cpu")[0]
            for name in ("cpu", "paper")
        ]
        # What the published canvases lost is black or background there.
        overlaps.append(overlap(batches[0].masks, batches[1].masks))
    assert np.mean(overlaps) > 0.93
    assert render("paper", [clip_of(recipe, 0)]).bent
    assert not render("cpu", [clip_of(recipe, 0)]).bent


def test_without_random_steps_a_still_is_resized_and_cut() -> None:
    recipe = RdeStatic(size=60, clip_scale=(1, 1), flip=0, clip_jitter=(0, 0, 0), hue=0, grayscale=0, rotation=0,
                       frame_scale=(1, 1), shear=0, frame_jitter=(0, 0, 0), spline=0)  # fmt: skip
    clip = clip_of(recipe, 2)
    pixels = render("paper", [clip])
    source = Image.fromarray(np.asarray(paper_still.open_image(clip, 0)))
    resized = np.asarray(source.resize((114, 60), Image.Resampling.BICUBIC))
    top, left = clip.plan.steps.corners[0]
    shown = pixels.images[0, 0].numpy().astype(int)
    # torchvision's hue goes through 8 bit HSV even for no shift.
    assert np.abs(shown - resized[top : top + 60, left : left + 60]).mean() < 3


def test_the_spline_pixel_by_pixel_is_the_batched_one() -> None:
    points = draw_points(Stream((1, 2), StreamName.SPLINE, 0), 12, 96, 0.02)
    image, labels = picture(1, 96, 96), blobs(1, 96, 96)
    bent, bent_labels = paper_still.bend(image, labels, points)
    plan = dataclasses.replace(plain_plan((96, 96)), splines=(points,))
    pixels = ClipPixels(
        torch.from_numpy(image)[None, None], torch.from_numpy(labels)[None, None], torch.ones(1, 1, dtype=torch.bool)
    )
    ours = bend(pixels, [plan])
    assert (ours.labels[0, 0].numpy() != bent_labels).mean() < 0.005  # positions are rounded to 1/32 px there
    assert np.abs(ours.images[0, 0].numpy().astype(int) - bent).mean() < 0.5


def test_hues_turn_in_hsv() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (1, 500, 3)).astype(np.uint8)
    turned = np.asarray(shift_hue(Image.fromarray(colours), 0.2))
    expected = []
    for rgb in colours[0] / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        expected.append(colorsys.hsv_to_rgb((hue + 0.2) % 1, saturation, value))
    assert np.abs(turned[0] - 255 * np.array(expected)).mean() < 2.5
    back = np.asarray(shift_hue(Image.fromarray(colours), -0.2))
    assert np.abs(back.astype(int) - turned).mean() > 20


# FRTM


def test_squashed_frames_agree_with_the_fast_path() -> None:
    for legacy in (True, False):
        clip = clip_of(Mtmfi(size=(80, 114), legacy_nearest=legacy), 0)
        ours, theirs = render("cpu", [clip]), render("paper", [clip])
        assert torch.equal(ours.labels, theirs.labels)
        assert (ours.images.int() - theirs.images.int()).abs().max() <= 1
