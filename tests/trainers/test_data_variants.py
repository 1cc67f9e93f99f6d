"""A data path with a part taken away does everything else as before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

from pipelines.device_feed import NoFeed
from pipelines.executors.cpu import CpuExecutor
from pipelines.loader import ClipLoader
from pipelines.order.sampling import MixEntry
from pipelines.reading.clip_reader import ClipReader
from pipelines.recipes import make_recipe
from pipelines.source import ClipSource
from pipelines.types import EncodedClip
from shards.reader import ShardSet
from tests.shards.small_tree import build_set, label_maps, write_tree
from trainers.throughput.data_variants import (
    KeptPixels,
    TimedFeed,
    VariedReader,
    VariedSource,
    kept_batch,
    timed_steps,
    without_augmentation,
)
from trainers.throughput.timeline import Timeline

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_FRAMES = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    """Ten steps of two clips of three frames."""
    folder = tmp_path_factory.mktemp("variants")
    videos = {f"video{n}": label_maps(9, (1, 2), seed=n) for n in range(3)}
    build_set(write_tree(folder / "tree", videos), folder)
    recipe = make_recipe("rde_video", {"size": 32, "num_frames": NUM_FRAMES, "max_gap": [[0, 2]]})
    mix = [MixEntry(ShardSet.open(folder / "davis2017"), "train")]
    return ClipSource(mix, recipe, seed=1, steps=10, batch_size=2)


@pytest.fixture
def clips(source: ClipSource) -> list[EncodedClip]:
    return [source.read(source.plan(number)) for number in range(2)]


def test_timed_steps_change_no_pixel_and_count_every_step(clips: list[EncodedClip]) -> None:
    timeline = Timeline()
    timed, plain = CpuExecutor(run=timed_steps(timeline))(clips), CpuExecutor()(clips)
    assert torch.equal(timed.images, plain.images)
    assert torch.equal(timed.labels, plain.labels)
    frames = 2 * NUM_FRAMES
    assert Counter(span.name for span in timeline.spans) == {
        "image decode": frames, "mask decode": frames, "warp": 2 * frames, "colour": frames,
    }  # fmt: skip


@pytest.mark.parametrize("step", ["image decode", "mask decode", "warp", "colour"])
def test_a_step_left_out_is_not_done_and_the_others_are(step: str, clips: list[EncodedClip]) -> None:
    timeline = Timeline()
    pixels = CpuExecutor(run=timed_steps(timeline, without=step))(clips)
    assert {span.name for span in timeline.spans} == {"image decode", "mask decode", "warp", "colour"} - {step}
    assert pixels.images.shape == (2, NUM_FRAMES, 32, 32, 3)
    whole = CpuExecutor()(clips)
    if step in ("image decode", "colour"):
        assert torch.equal(pixels.labels, whole.labels)
    if step == "mask decode":
        assert torch.equal(pixels.images, whole.images)
    assert pixels.labels.any(), "later parts have masks to work on"


def test_without_augmentation_a_clip_shows_its_whole_frames(source: ClipSource) -> None:
    plan = without_augmentation(source, source.plan(3))
    clip = source.read(plan)
    pixels = CpuExecutor()([clip])
    for frame, image in zip(clip.frames, pixels.images[0].numpy(), strict=True):
        picture = simplejpeg.decode_jpeg(frame.image, colorspace="RGB")
        rows = ((np.arange(32) + 0.5) * picture.shape[0] / 32).astype(int)
        columns = ((np.arange(32) + 0.5) * picture.shape[1] / 32).astype(int)
        nearest = picture[rows[:, None], columns].astype(int)
        assert np.abs(nearest - image).mean() < 12
    assert plan.damage_iou is None
    assert plan.frames == source.plan(3).frames


def test_cached_clips_take_turns_and_nothing_is_read(source: ClipSource, clips: list[EncodedClip]) -> None:
    timeline = Timeline()
    varied = VariedSource(source, timeline, cached=clips)
    reader = VariedReader(ClipReader(source), varied, timeline, clips)
    found = [reader.read(varied.plan(number)).clip for number in range(4)]
    assert [clip.frames for clip in found] == [clips[number].frames for number in (0, 1, 0, 1)]
    assert Counter(span.name for span in timeline.spans) == {"plan": 4}


def test_after_the_last_clip_of_the_stage_comes_the_first(source: ClipSource) -> None:
    varied = VariedSource(source, Timeline())
    num_clips = source.steps * source.batch_size
    numbers = [num_clips - 1, num_clips, 3 * num_clips + 1]
    assert [varied.plan(number).number for number in numbers] == [num_clips - 1, 0, 1]
    assert varied.steps > 10**6 * source.steps


def test_the_time_of_copies_is_a_span_of_the_thread_that_loads(source: ClipSource) -> None:
    uploaded = []

    class Feed(NoFeed):
        def upload(self, pixels: Any) -> Any:
            uploaded.append(pixels.images.clone())
            return replace(pixels, images=torch.zeros_like(pixels.images))

    timeline = Timeline()
    feed = TimedFeed(Feed(), timeline)
    with ClipLoader(source, CpuExecutor(), _assemble(source), stop_step=2, device_feed=feed) as loader:
        batches = list(loader)
    assert [(span.name, span.thread) for span in timeline.spans] == 2 * [("copy", "clip-loader")]
    assert all(images.any() for images in uploaded)
    assert all(batch.images.flatten(3).std(dim=3).max() < 1e-6 for batch in batches), "what upload returned is used"


def test_a_loader_with_ready_pixels_and_batch_still_counts_its_steps(
    source: ClipSource, clips: list[EncodedClip]
) -> None:
    timeline = Timeline()
    varied = VariedSource(source, timeline)
    with ClipLoader(source, CpuExecutor(), _assemble(source), stop_step=1) as loader:
        batch = next(iter(loader))
    executor = KeptPixels(CpuExecutor()(clips))
    reader = VariedReader(ClipReader(source), varied, timeline)
    with ClipLoader(varied, executor, kept_batch(batch), start_step=2, stop_step=5, reader=reader) as loader:  # type: ignore[arg-type]
        batches = list(loader)
    assert [each.step for each in batches] == [2, 3, 4]
    assert all(each.images is batch.images for each in batches)
    assert Counter(span.name for span in timeline.spans) == {"plan": 6, "read": 6}


def _assemble(source: ClipSource):
    from pipelines.assembly import make_assembly

    return make_assembly(source.recipe, torch.device("cpu"))
