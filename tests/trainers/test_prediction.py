from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.masks import aggregate, aggregate_probabilities
from models.memory import BANK_MODES, BankMode, MemoryBank
from models.rde import Rde
from tests.trainers.small_videos import HEIGHT, WIDTH, label_map
from trainers.label_files import LabelMap
from trainers.prediction.following import ModelClock, object_ids, segment_video, whole_script
from trainers.segmenters.rde import RdeOptions, RdeSegmenter

CPU = torch.device("cpu")
Frame = NDArray[np.uint8]
pytestmark = pytest.mark.usefixtures("one_thread")


def frames_of(number: int, seed: int = 0) -> list[Frame]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(number)]


class Copycat:
    """Predicts the first masks for ever, and records what it was given."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.skipped: list[int] = []
        self.masks = torch.empty(0)
        self.given_again = torch.empty(0)

    def start(self, image: Tensor, masks: Tensor) -> None:
        self.images, self.masks = [image], masks

    def step(self, image: Tensor, *, skipped: int = 0) -> Tensor:
        self.images.append(image)
        self.skipped.append(skipped)
        return self.probabilities()

    def add(self, masks: Tensor, *, given_again: Tensor) -> Tensor:
        self.given_again = given_again
        self.masks = torch.cat([self.masks * (1 - masks.amax(1, keepdim=True)), masks], 1)
        return self.probabilities()

    def probabilities(self) -> Tensor:
        return torch.cat([1 - self.masks.sum(1, keepdim=True), self.masks], 1)


def predict(segmenter: Copycat | RdeSegmenter, frames: list[Frame], first: LabelMap) -> list[LabelMap]:
    script = whole_script(first, len(frames))
    predicted = segment_video(segmenter, script, frames, lambda _: first, device=CPU, clock=ModelClock())
    return [labels for _, labels in predicted]


def test_labels_come_back_with_the_ids_of_the_first_frame_at_its_size() -> None:
    first = label_map((9, 4), 0)
    first[39, 49] = 255
    predicted = predict(Copycat(), frames_of(3), first)
    expected = label_map((9, 4), 0)
    assert len(predicted) == 3
    for labels in predicted:
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)


def test_the_model_sees_normalised_frames_padded_evenly_with_the_mean_colour() -> None:
    segmenter = Copycat()
    frames = frames_of(2)
    predict(segmenter, frames, label_map((1, 2), 0))
    image = segmenter.images[1]
    assert image.shape == (1, 3, 48, 64)
    inside = image[0, :, 4:44, 7:57]
    expected = (frames[1] / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(inside.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert image.abs().sum().item() == pytest.approx(inside.abs().sum().item(), rel=1e-6)
    assert segmenter.masks.shape == (1, 2, 48, 64)
    np.testing.assert_array_equal(segmenter.masks[0, 0, 4:44, 7:57].numpy(), label_map((1, 2), 0) == 1)


def literal_rde(model: Rde, images: list[Tensor], masks: Tensor, options: RdeOptions) -> list[Tensor]:
    """The published loop written out: all frames at hand, memory updated right after a frame, never after the last."""
    bank = MemoryBank(model, options.mode, options.top_k, first_frame_once=options.first_frame_once)
    probabilities = [aggregate_probabilities(masks).softmax(1)]
    key = model.encode_key(images[0][:, None])
    bank.update(key.key, model.encode_value(images[0], key.f16[:, 0], probabilities[0][:, 1:]))
    for index in range(1, len(images)):
        key = model.encode_key(images[index][:, None])
        logits = model.decode(bank.read(key.key[:, :, 0], key.thin[:, 0]), key.f8[:, 0], key.f4[:, 0])
        probabilities.append(aggregate(logits).logits.softmax(1))
        if options.include_last or (index != len(images) - 1 and index % options.mem_every == 0):
            bank.update(key.key, model.encode_value(images[index], key.f16[:, 0], probabilities[index][:, 1:]))
    return probabilities


@pytest.mark.parametrize("mode", BANK_MODES)
def test_streaming_equals_the_published_loop_in_every_bank_mode(model: Rde, mode: BankMode) -> None:
    check_against_literal(model, RdeOptions(mode=mode, mem_every=2, top_k=5))


@pytest.mark.parametrize(
    "options",
    [
        RdeOptions(mem_every=1, top_k=7),
        RdeOptions(mem_every=3, top_k=None),
        RdeOptions(mem_every=3, top_k=5, include_last=True),
        RdeOptions(mem_every=2, top_k=5, first_frame_once=True),
    ],
    ids=str,
)
def test_streaming_equals_the_published_loop_for_every_option(model: Rde, options: RdeOptions) -> None:
    check_against_literal(model, options)


def check_against_literal(model: Rde, options: RdeOptions) -> None:
    generator = torch.Generator().manual_seed(2)
    images = [torch.randn(1, 3, 48, 64, generator=generator) for _ in range(6)]
    masks = torch.zeros(1, 2, 48, 64)
    masks[0, 0, 5:20, 10:30], masks[0, 1, 22:40, 10:50] = 1, 1
    segmenter = RdeSegmenter(model, options)
    segmenter.start(images[0], masks)
    with torch.inference_mode():
        expected = literal_rde(model, images, masks, options)
    for image, probabilities in zip(images[1:], expected[1:], strict=True):
        found = segmenter.step(image)
        torch.testing.assert_close(found, probabilities, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))


def test_memorising_more_often_changes_what_is_predicted(model: Rde) -> None:
    generator = torch.Generator().manual_seed(2)
    images = [torch.randn(1, 3, 48, 64, generator=generator) for _ in range(4)]
    last = []
    for mem_every in (1, 50):
        segmenter = RdeSegmenter(model, RdeOptions(mem_every=mem_every))
        segmenter.start(images[0], torch.ones(1, 1, 48, 64))
        last.append([segmenter.step(image) for image in images[1:]][-1])
    assert (last[0] - last[1]).abs().max() > 1e-4


def test_a_video_forgets_the_one_before(model: Rde) -> None:
    segmenter = RdeSegmenter(model, RdeOptions(mem_every=1))
    first = label_map((1, 2), 0)
    fresh = predict(RdeSegmenter(model, RdeOptions(mem_every=1)), frames_of(4, seed=1), first)
    predict(segmenter, frames_of(4, seed=9), label_map((3,), 1))
    for ours, expected in zip(predict(segmenter, frames_of(4, seed=1), first), fresh, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_top_k_above_the_positions_of_a_small_image_reads_all_and_says_so(
    model: Rde, caplog: pytest.LogCaptureFixture
) -> None:
    # Two copies of 12 positions at first, four frames of 12 from the second memorised frame on: 48 are all then.
    probabilities = []
    for top_k in (48, None):
        generator = torch.Generator().manual_seed(2)
        segmenter = RdeSegmenter(model, RdeOptions(mem_every=1, top_k=top_k))
        images = [torch.randn(1, 3, 48, 64, generator=generator) for _ in range(4)]
        segmenter.start(images[0], torch.ones(1, 1, 48, 64))
        probabilities.append(torch.stack([segmenter.step(image) for image in images[1:]]))
    torch.testing.assert_close(probabilities[0], probabilities[1], rtol=0, atol=1e-6)
    assert "top_k 48 exceeds the 24 positions in memory: all are read" in caplog.text


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 16), (10, 200)])
def test_videos_below_the_network_smallest_size_are_segmented_too(model: Rde, height: int, width: int) -> None:
    first = np.ones((height, width), np.uint8)
    frames = [np.full((height, width, 3), 40 * number, np.uint8) for number in range(5)]
    predicted = predict(RdeSegmenter(model, RdeOptions(mem_every=1)), frames, first)
    assert [labels.shape for labels in predicted] == [(height, width)] * 5
    assert set(np.unique(predicted)) <= {0, 1}


def test_frames_are_taken_one_at_a_time_and_not_kept(model: Rde) -> None:
    alive: list[weakref.ref[Frame]] = []

    def source() -> Iterator[Frame]:
        for number in itertools.count():
            frame = frames_of(1, seed=number)[0]
            alive.append(weakref.ref(frame))
            yield frame
            del frame

    segmenter = RdeSegmenter(model, RdeOptions(mem_every=2))
    first = label_map((1, 2), 0)
    script = whole_script(first, 10)
    predicted = segment_video(segmenter, script, source(), lambda _: first, device=CPU, clock=ModelClock())
    for number, _ in enumerate(itertools.islice(predicted, 8)):
        gc.collect()
        assert len(alive) == number + 1
        assert sum(reference() is not None for reference in alive) <= 2


def test_amp_predicts_nearly_the_same(model: Rde) -> None:
    first = label_map((1, 2), 0)
    plain, mixed = (predict(RdeSegmenter(model, RdeOptions(amp=amp)), frames_of(3), first) for amp in (False, True))
    agreement = np.mean(np.stack(plain) == np.stack(mixed))
    assert agreement > 0.9


def test_the_clock_counts_every_frame_the_given_one_too() -> None:
    clock = ModelClock()
    first = label_map((1,), 0)
    list(segment_video(Copycat(), whole_script(first, 5), frames_of(5), lambda _: first, device=CPU, clock=clock))
    assert clock.num_frames == 5
    assert clock.frames_per_second == 5 / clock.seconds


def test_a_frame_of_another_size_is_refused() -> None:
    frames = [*frames_of(1), np.zeros((10, 10, 3), np.uint8)]
    with pytest.raises(ValueError, match=r"frame 1 is \(10, 10, 3\), expected \(40, 50, 3\)"):
        predict(Copycat(), frames, label_map((1,), 0))


def test_a_first_frame_without_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="no object to follow"):
        predict(Copycat(), frames_of(2), np.full((HEIGHT, WIDTH), 255, np.uint8))


def test_object_ids_leave_out_background_and_void() -> None:
    assert object_ids(np.array([[0, 7, 255], [3, 7, 0]], np.uint8)).tolist() == [3, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "all"}, "unknown bank mode 'all'; choose one of two-frames-compress"),
        ({"mem_every": 0}, "at least 1"),
        ({"top_k": 0}, "at least 1"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RdeOptions(**options)
