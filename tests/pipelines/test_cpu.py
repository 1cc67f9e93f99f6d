"""The executor that defines correctness, against slow oracles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import simplejpeg
import torch

from pipelines.executors import EXECUTORS, make_executor
from pipelines.executors.cpu import CpuExecutor
from pipelines.executors.geometry import snap
from pipelines.types import ClipPixels, ClipPlan, EncodedClip
from shards.errors import DataError
from shards.masks import decode_label_map, encode_label_map
from shards.reader import EncodedFrame
from tests.pipelines.clips import blobs, clip, frame, jpeg, noise_labels, picture, plain_plan, plan


def run(*clips: EncodedClip, threads: int = 1) -> ClipPixels:
    executor = CpuExecutor(threads=threads)
    try:
        return executor(list(clips))
    finally:
        executor.close()


def source_coordinates(matrix: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Continuous source x and y of every output pixel's centre, (H, W) each."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return tuple(row[0] * x + row[1] * y + row[2] for row in matrix.astype(np.float64))


def nearest(labels: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    x, y = (np.floor(c).astype(int) for c in source_coordinates(matrix, size))
    inside = (x >= 0) & (x < labels.shape[1]) & (y >= 0) & (y < labels.shape[0])
    return np.where(inside, labels[y.clip(0, labels.shape[0] - 1), x.clip(0, labels.shape[1] - 1)], 0)


def linear(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: np.ndarray) -> np.ndarray:
    """Float64 bilinear interpolation of the image in an endless plane of fill."""
    x, y = (c - 0.5 for c in source_coordinates(matrix, size))
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    padded = np.full((image.shape[0] + 2, image.shape[1] + 2, 3), fill, np.float64)
    padded[1:-1, 1:-1] = image

    def at(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return padded[(rows + 1).clip(0, len(padded) - 1), (columns + 1).clip(0, padded.shape[1] - 1)]

    right, low = (x - left)[..., None], (y - top)[..., None]
    above = at(top, left) * (1 - right) + at(top, left + 1) * right
    below = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return above * (1 - low) + below * low


def with_plan(encoded: EncodedClip, **changes: object) -> EncodedClip:
    return dataclasses.replace(encoded, plan=dataclasses.replace(encoded.plan, **changes))


def one_frame(shape: tuple[int, int], labels: np.ndarray | None, encoded_plan: ClipPlan) -> EncodedClip:
    return EncodedClip(encoded_plan, (frame(picture(0, *shape), labels),), "lz4")


def test_every_label_is_the_one_under_the_sampling_point() -> None:
    for seed in range(12):
        encoded = clip(seed, num_frames=5, source=(240, 427), size=(192, 192))
        labels = run(encoded).labels[0].numpy()
        matrices = snap(encoded.plan.matrices, (192, 192)).matrices
        for t, stored in enumerate(encoded.frames):
            expected = nearest(decode_label_map(stored.mask, "lz4"), matrices[t], (192, 192))
            assert np.array_equal(labels[t], expected)


def test_sampling_points_on_pixel_borders_belong_to_the_pixel_that_begins_there() -> None:
    half = np.array([[[0.5, 0, 0.25], [0, 0.5, 0.75]]], np.float32)  # every second point lies on a border
    labels = noise_labels(1, 40, 40)
    encoded = one_frame((40, 40), labels, dataclasses.replace(plain_plan((64, 64)), matrices=half))
    assert np.array_equal(run(encoded).labels[0, 0].numpy(), nearest(labels, half[0], (64, 64)))


def test_images_are_rounded_linear_interpolation_in_a_plane_of_fill() -> None:
    for seed in range(6):
        encoded = with_plan(clip(seed), colours=plain_plan((1, 1), num_frames=3).colours)
        images = run(encoded).images[0].numpy()
        matrices = snap(encoded.plan.matrices, (96, 96)).matrices
        for t, stored in enumerate(encoded.frames):
            source = simplejpeg.decode_jpeg(stored.image)
            expected = linear(source, matrices[t], (96, 96), np.array(encoded.plan.fill))
            assert np.abs(images[t] - expected).max() <= 0.5001


def test_colour_matrices_apply_to_rounded_pixels_and_clip() -> None:
    encoded = clip(3)
    plain = run(with_plan(encoded, colours=plain_plan((1, 1), num_frames=3).colours)).images[0].numpy()
    strong = np.array([[1.5, 0.2, -0.1, 30], [0, 0.8, 0.1, -40], [0.3, 0.3, 0.3, 0]], np.float32)
    coloured = run(with_plan(encoded, colours=np.tile(strong, (3, 1, 1)))).images[0].numpy()
    expected = np.clip(plain @ strong[:, :3].T.astype(np.float64) + strong[:, 3], 0, 255)
    assert np.abs(coloured - expected).max() <= 1
    assert (expected == 255).any()
    assert (expected == 0).any()


def test_an_identity_plan_shows_the_decoded_frame() -> None:
    labels = noise_labels(4, 50, 70)
    encoded = one_frame((50, 70), labels, plain_plan((50, 70)))
    pixels = run(encoded)
    assert np.array_equal(pixels.images[0, 0].numpy(), simplejpeg.decode_jpeg(encoded.frames[0].image))
    assert np.array_equal(pixels.labels[0, 0].numpy(), labels)


def test_outside_the_source_lie_fill_through_the_colour_matrix_and_label_zero() -> None:
    away = np.array([[[1, 0, 1000], [0, 1, 0]]], np.float32)
    shifted = dataclasses.replace(plain_plan((20, 20)), matrices=away, fill=(10.0, 20.4, 250.0))
    colours = np.array([[[1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 50]]], np.float32)
    pixels = run(one_frame((30, 30), np.full((30, 30), 9, np.uint8), dataclasses.replace(shifted, colours=colours)))
    assert pixels.images.view(-1, 3).unique(dim=0).tolist() == [[15, 20, 255]]
    assert pixels.labels.max() == 0


def test_frames_without_annotation_are_marked_and_zero() -> None:
    encoded = clip(5)
    frames = (encoded.frames[0], EncodedFrame(encoded.frames[1].image, None), encoded.frames[2])
    pixels = run(dataclasses.replace(encoded, frames=frames))
    assert pixels.annotated.tolist() == [[True, False, True]]
    assert pixels.labels[0, 1].max() == 0
    assert pixels.labels[0, 0].max() > 0


def test_a_clip_does_not_depend_on_the_batch_around_it_or_on_threads() -> None:
    clips = [clip(seed) for seed in range(4)]
    together = run(*clips, threads=3)
    for index, encoded in enumerate(clips):
        alone = run(encoded)
        assert torch.equal(together.images[index], alone.images[0])
        assert torch.equal(together.labels[index], alone.labels[0])


def test_sources_of_different_sizes_share_a_batch() -> None:
    small, large = clip(1, source=(60, 90)), clip(1, source=(200, 300))
    pixels = run(large, small, large)
    assert torch.equal(pixels.images[1], run(small).images[0])
    assert torch.equal(pixels.images[2], run(large).images[0])


def test_opencv_keeps_its_own_number_of_threads() -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        run(clip(0))
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_a_jpeg_without_its_end_marker_is_read_when_all_pixels_are_there() -> None:
    encoded = clip(6, num_frames=1)
    stripped = EncodedFrame(encoded.frames[0].image.removesuffix(b"\xff\xd9"), encoded.frames[0].mask)
    assert torch.equal(run(dataclasses.replace(encoded, frames=(stripped,))).images, run(encoded).images)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_an_image_that_does_not_decode_names_clip_and_frame(damage: str) -> None:
    image = jpeg(picture(0, 60, 80))
    bad = {"truncated": image[: len(image) // 2], "text": b"no image at all", "empty": b""}[damage]
    encoded = EncodedClip(plan(8, num_frames=2), (frame(picture(0, 60, 80), None), EncodedFrame(bad, None)), "lz4")
    with pytest.raises(DataError, match=r"clip 8, data set 0, video row 3, frame row 8: expected a JPEG"):
        run(encoded)


def test_label_maps_that_do_not_fit_are_refused() -> None:
    image = jpeg(picture(0, 60, 80))
    wrong_size = EncodedFrame(image, encode_label_map(blobs(0, 60, 79), "lz4"))
    with pytest.raises(DataError, match=r"expected a label map of \(60, 80\), found one of \(60, 79\)"):
        run(EncodedClip(plan(0), (wrong_size,), "lz4"))
    with pytest.raises(DataError, match="expected a label map in codec png"):
        run(EncodedClip(plan(0), (EncodedFrame(image, b"junk"),), "png"))


def test_png_and_lz4_label_maps_give_the_same_labels() -> None:
    labels = noise_labels(2, 60, 80)
    packed, portable = (EncodedClip(plan(2), (frame(picture(2, 60, 80), labels, codec=c),), c) for c in ("lz4", "png"))
    assert torch.equal(run(packed).labels, run(portable).labels)


def test_clips_of_different_shape_cannot_share_a_batch() -> None:
    with pytest.raises(ValueError, match="must agree in"):
        run(clip(0), clip(1, size=(64, 96)))
    with pytest.raises(ValueError, match="no clips"):
        run()


def test_unknown_executors_and_impossible_threads_are_named() -> None:
    with pytest.raises(ValueError, match="unknown executor 'gpu'; there are: cpu, dali, paper"):
        make_executor("gpu")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        make_executor("cpu", threads=0)
    assert list(EXECUTORS) == ["cpu", "dali", "paper"]
    assert isinstance(make_executor("cpu", threads=2, device="cpu"), CpuExecutor)


def test_a_frame_shown_again_is_decoded_once_and_another_one_anew() -> None:
    decoded = []

    def run(step: str, work: Callable[..., object], *arguments: object) -> object:
        decoded.append(step == "image decode")
        return work(*arguments)

    first, second = clip(1, num_frames=2), clip(2, num_frames=2)
    still = dataclasses.replace(first, frames=(first.frames[0],) * 2)
    executor = CpuExecutor(run=run)
    pixels = executor([still, second])
    assert sum(decoded) == 3
    for index, encoded in enumerate((still, second)):
        assert torch.equal(CpuExecutor()([encoded]).images[0], pixels.images[index])
    # A frame that does not decode leaves nothing behind that could be shown in its place.
    torn = dataclasses.replace(second.frames[0], image=second.frames[0].image[:500] + b"\xff\xd9")
    broken = dataclasses.replace(second, frames=(torn, torn))
    for _ in range(2):
        with pytest.raises(DataError, match="expected a JPEG that decodes completely"):
            executor([broken])
