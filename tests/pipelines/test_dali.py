"""The DALI executor as a machine: batches that change, errors, threads. Its pixels are compared in test_parity.py."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from pipelines.executors import make_executor
from pipelines.types import EncodedClip, Executor
from shards.errors import DataError
from shards.reader import EncodedFrame
from tests.pipelines.clips import clip, frame, picture, plan

dali = pytest.importorskip("nvidia.dali", reason="no DALI in this environment")


def run(executor: Executor, *clips: EncodedClip) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = executor(list(clips))
    return pixels.images, pixels.labels


def same(first: tuple[torch.Tensor, ...], second: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_clip_does_not_depend_on_what_ran_before_or_beside_it() -> None:
    clips = [clip(seed) for seed in range(4)]
    executor = make_executor("dali")
    alone = [run(executor, encoded) for encoded in clips]
    together = run(executor, *clips)  # a larger batch: the pipeline is built again
    fewer = run(executor, *clips[1:3])  # a smaller one: it is not
    again = run(executor, clips[0])
    executor.close()
    assert same(together, tuple(torch.cat(parts) for parts in zip(*alone, strict=True)))
    assert same(fewer, tuple(torch.cat(parts) for parts in zip(*alone[1:3], strict=True)))
    assert same(again, alone[0])


def test_results_stay_when_the_next_batch_runs() -> None:
    executor = make_executor("dali")
    images, _ = run(executor, clip(0))
    before = images.clone()
    run(executor, clip(1))
    assert torch.equal(images, before)
    executor.close()


def test_threads_change_nothing() -> None:
    clips = [clip(seed) for seed in range(3)]
    one, three = make_executor("dali", threads=1), make_executor("dali", threads=3)
    assert same(run(one, *clips), run(three, *clips))
    one.close()
    three.close()


def test_output_size_and_clip_length_may_change_between_calls() -> None:
    executor = make_executor("dali")
    first = run(executor, clip(0))
    images, labels = run(executor, clip(0, num_frames=2, size=(64, 80)))
    assert images.shape == (1, 2, 64, 80, 3)
    assert labels.shape == (1, 2, 64, 80)
    assert same(run(executor, clip(0)), first)
    executor.close()


def test_frames_without_annotation_are_marked_and_zero() -> None:
    encoded = clip(5)
    frames = (encoded.frames[0], EncodedFrame(encoded.frames[1].image, None), encoded.frames[2])
    executor = make_executor("dali")
    pixels = executor([dataclasses.replace(encoded, frames=frames)])
    executor.close()
    assert pixels.annotated.tolist() == [[True, False, True]]
    assert pixels.labels[0, 1].max() == 0
    assert pixels.labels[0, 0].max() > 0


def test_a_bad_image_is_named_and_the_executor_works_on() -> None:
    good = clip(1, num_frames=2)
    # The marker after the start of image is none that a JPEG can have, which no version of DALI decodes.
    bad = EncodedFrame(b"\xff\xd8 no image behind these two bytes \xff\xd9", None)
    broken = EncodedClip(plan(9, num_frames=2, size=(96, 96)), (frame(picture(0, 60, 80), None), bad), "lz4")
    executor = make_executor("dali")
    before = run(executor, good)
    with pytest.raises(DataError, match=r"clip 9, data set 0, video row 3, frame row 8: expected a JPEG"):
        executor([good, broken])
    assert same(run(executor, good), before)
    executor.close()


def test_bytes_that_are_no_jpeg_never_reach_dali() -> None:
    broken = EncodedClip(plan(4), (EncodedFrame(b"GIF89a", None),), "lz4")
    with pytest.raises(DataError, match="found 6 bytes that begin with 47494638"):
        make_executor("dali")([broken])


def test_a_truncated_image_is_named_though_dali_would_fill_it_up() -> None:
    image = frame(picture(0, 60, 80), None).image
    cut = EncodedClip(plan(4), (EncodedFrame(image[: len(image) // 2], None),), "lz4")
    with pytest.raises(DataError, match=r"clip 4, data set 0, video row 3, frame row 7: expected a JPEG"):
        make_executor("dali")([cut])


def test_missing_dali_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pipelines.executors.dali", raising=False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delattr(sys.modules["nvidia"], "dali", raising=False)
    with pytest.raises(ModuleNotFoundError, match="install one of the extras cuda110, cuda120, cuda130"):
        make_executor("dali")
