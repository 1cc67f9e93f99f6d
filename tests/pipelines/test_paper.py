"""The published steps, one by one against their definitions, and beside the composed plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipelines.executors import make_executor
from pipelines.types import ClipPixels, ClipPlan, EncodedClip
from shards.errors import DataError
from shards.masks import encode_label_map
from shards.reader import EncodedFrame
from tests.pipelines.clips import blobs, clip, frame, noise_labels, picture, plain_plan, plan

SIZE = (40, 56)
LUMA = np.array([0.299, 0.587, 0.114])


def run(encoded: EncodedClip, name: str = "paper") -> ClipPixels:
    executor = make_executor(name)
    try:
        return executor([encoded])
    finally:
        executor.close()


def still(labels: np.ndarray | None = None, **steps: object) -> EncodedClip:
    """One frame of SIZE shown as it is, but for the given steps."""
    drawn = plain_plan(SIZE)
    changed = dataclasses.replace(drawn, steps=dataclasses.replace(drawn.steps, **steps))
    return EncodedClip(changed, (frame(picture(1, *SIZE), labels),), "lz4")


def decoded(encoded: EncodedClip) -> np.ndarray:
    return simplejpeg.decode_jpeg(encoded.frames[0].image)


def image_of(encoded: EncodedClip) -> np.ndarray:
    return run(encoded).images[0, 0].numpy()


def test_no_steps_show_the_decoded_frame() -> None:
    labels = noise_labels(1, *SIZE)
    pixels = run(still(labels))
    assert np.array_equal(pixels.images[0, 0].numpy(), decoded(still()))
    assert np.array_equal(pixels.labels[0, 0].numpy(), labels)


def test_flip_mirrors_before_the_crop_is_cut() -> None:
    labels = noise_labels(1, *SIZE)
    flipped = still(labels, flip=True, crop=(0, 0, 40, 28))
    twice_as_wide = labels[:, ::-1][:, :28].repeat(2, axis=1)
    assert np.array_equal(run(flipped).labels[0, 0].numpy(), twice_as_wide)
    whole = image_of(still(flip=True))
    assert np.array_equal(whole, decoded(still())[:, ::-1])


def test_brightness_scales_and_truncates() -> None:
    changed = image_of(still(clip_colours=(("brightness", 1.3),)))
    assert np.array_equal(changed, np.minimum(np.floor(decoded(still()) * np.float32(1.3)), 255))


def test_contrast_blends_with_the_mean_grey_of_the_picture() -> None:
    source = decoded(still())
    mean = int(np.asarray(Image.fromarray(source).convert("L")).mean() + 0.5)
    changed = image_of(still(frame_colours=((("contrast", 0.5),),)))
    assert np.abs(changed - (mean + 0.5 * (source.astype(float) - mean))).max() <= 1


def test_saturation_and_greyscale_blend_with_luma() -> None:
    source = decoded(still())
    luma = (source @ LUMA)[..., None]
    changed = image_of(still(clip_colours=(("saturation", 0.4),)))
    assert np.abs(changed - (luma + 0.4 * (source - luma))).max() <= 1.5
    grey = image_of(still(grayscale=True))
    assert np.abs(grey - luma).max() <= 1
    assert (grey == grey[..., :1]).all()


def test_colour_steps_run_in_their_order() -> None:
    bright, pale = ("brightness", 1.9), ("contrast", 0.5)
    one, other = (image_of(still(clip_colours=order)).astype(int) for order in ((bright, pale), (pale, bright)))
    source = decoded(still()).astype(float)
    clipped = source.max(axis=-1) > 140
    assert clipped.any()
    assert (one - other)[clipped].mean() < -10  # brightening first loses what exceeds white


def test_the_affine_samples_the_resized_canvas_and_fills_outside() -> None:
    labels = noise_labels(3, *SIZE)
    down_right = np.array([[[1, 0, -5], [0, 1, -3]]], np.float64)
    pixels = run(still(labels, affines=down_right))
    assert np.array_equal(pixels.labels[0, 0, 3:, 5:].numpy(), labels[:-3, :-5])
    assert pixels.labels[0, 0, :3].max() == 0
    assert pixels.images[0, 0, :3].reshape(-1, 3).unique(dim=0).tolist() == [[124, 116, 104]]
    assert np.abs(pixels.images[0, 0, 3:, 5:].numpy() - decoded(still())[:-3, :-5].astype(int)).max() <= 1


def test_published_and_composed_pixels_show_the_same_picture() -> None:
    ious, differences = [], []
    for seed in range(6):
        drawn = plan(seed, source=(240, 427), size=(192, 192))
        encoded = EncodedClip(drawn, (frame(picture(seed, 240, 427), blobs(seed, 240, 427, ids=(1,))),), "lz4")
        paper, composed = run(encoded), run(encoded, "cpu")
        both = (paper.labels > 0) & (composed.labels > 0)
        ious.append(float(both.sum() / ((paper.labels > 0) | (composed.labels > 0)).sum()))
        # Inside the object both surely show the source, not the fill of one of two canvases.
        differences.append(float((composed.images.float() - paper.images.float())[both].mean()))
    assert min(ious) > 0.9
    # Pillow truncates in its affine and in each of six enhancements: about half a level each, always darker.
    assert 2 < np.mean(differences) < 6


def test_frames_without_annotation_are_marked_and_zero() -> None:
    encoded = clip(5, num_frames=1)
    pixels = run(dataclasses.replace(encoded, frames=(EncodedFrame(encoded.frames[0].image, None),)))
    assert pixels.annotated.tolist() == [[False]]
    assert pixels.labels.max() == 0


def test_plans_without_published_steps_are_refused() -> None:
    bare: ClipPlan = dataclasses.replace(plan(3), steps=None)
    with pytest.raises(ValueError, match="clip 3: its recipe has no published steps"):
        run(EncodedClip(bare, (frame(picture(0, 60, 80), None),), "lz4"))


def test_a_truncated_image_is_named() -> None:
    image = frame(picture(0, 60, 80), None).image
    with pytest.raises(DataError, match="clip 3, data set 0, video row 3, frame row 7: expected a JPEG"):
        run(EncodedClip(plan(3), (EncodedFrame(image[: len(image) // 2], None),), "lz4"))


def test_real_video_looks_the_same_published_and_composed(shared_data: Path) -> None:
    root = shared_data / "davis_train"
    images = sorted((root / "JPEGImages" / "480p" / "bear").iterdir())[:2]
    masks = [np.asarray(Image.open(root / "Annotations" / "480p" / "bear" / f"{path.stem}.png")) for path in images]
    frames = tuple(
        EncodedFrame(path.read_bytes(), encode_label_map(mask, "lz4")) for path, mask in zip(images, masks, strict=True)
    )
    encoded = EncodedClip(plan(1, num_frames=2, source=(480, 854), size=(384, 384)), frames, "lz4")
    paper, composed = run(encoded), run(encoded, "cpu")
    both, either = paper.labels * composed.labels > 0, paper.labels + composed.labels > 0
    assert both.sum() / either.sum() > 0.97
    difference = (composed.images.float() - paper.images.float())[both]
    assert 2 < difference.mean() < 6
    assert difference.abs().mean() < 8
