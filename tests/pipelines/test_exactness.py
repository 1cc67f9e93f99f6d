"""Properties: whatever the number of ranks, the look-ahead, the threads and the read plan, the clips are the same."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.loader import ClipLoader
from pipelines.order.pooled import Pooled
from pipelines.order.sampling import MixEntry
from pipelines.reading.clip_reader import READ_PLANS, ReadPlan
from pipelines.recipes import make_recipe
from pipelines.source import ClipSource
from pipelines.types import Batch, ClipPixels, ClipPlan, EncodedClip
from tests.pipelines.fake_set import FakeSet, FakeVideo

Clip = tuple[object, ...]


class Bytes:
    """An executor whose pixels are the bytes of its clips."""

    def __call__(self, clips: list[EncodedClip]) -> ClipPixels:
        self.clips = clips
        none = torch.zeros(len(clips), 0)
        return ClipPixels(none, none, none)

    def close(self) -> None:
        """Nothing to close."""


def batches_of(source: ClipSource, **options: object) -> list[list[Clip]]:
    """For each batch, all of each clip that anything later depends on, as values to compare."""
    executor, made = Bytes(), []

    def assemble(_pixels: ClipPixels, plans: tuple[ClipPlan, ...], *, step: int) -> tuple[Batch, int]:
        made.append([_values(clip) for clip in executor.clips])
        none = torch.zeros(0)
        return Batch(step, none, none, none, none, none, plans), 0

    with ClipLoader(source, executor, assemble, **options) as loader:
        steps = [batch.step for batch in loader]
    assert steps == list(range(steps[0], steps[0] + len(steps))) if steps else True
    return made


def _values(clip: EncodedClip) -> Clip:
    plan = clip.plan
    arrays = (plan.matrices.tobytes(), plan.colours.tobytes())
    return plan.number, plan.dataset, plan.video, plan.frames, plan.object_ids, *arrays, plan.damage_key, clip.frames


@st.composite
def sources(draw: st.DrawFn) -> ClipSource:
    """A mix of one to three sets with repeats, a curriculum of gaps, some batch size, either order."""
    entries = []
    for number in range(draw(st.integers(1, 3), label="sets")):
        videos = draw(st.lists(st.integers(6, 24), min_size=4, max_size=9), label="lengths of videos")
        annotated = draw(st.sampled_from([1, 2]), label="annotated every")
        fakes = [FakeVideo(f"v{n}", num_frames=length, annotated_every=annotated) for n, length in enumerate(videos)]
        fake = FakeSet(fakes, name=f"set{number}", fingerprint=str(number) * 64)
        entries.append(MixEntry(fake, "train", draw(st.integers(1, 5), label="repeat"), annotated))
    rows = [[0, draw(st.integers(1, 5))], *draw(st.sampled_from([[], [[0.5, 3]], [[0.25, 9], [0.75, 1]]]))]
    recipe = make_recipe("rde_video", {"size": 32, "num_frames": 3, "max_gap": rows})
    pooled = draw(st.sampled_from([None, Pooled(3, 2, 1), Pooled(4, 3, 2)]), label="order")
    batch_size = 2 * draw(st.integers(1, 8), label="half a batch")
    seed, steps = draw(st.integers(0, 2**63), label="seed"), draw(st.integers(1, 5), label="steps")
    return ClipSource(entries, recipe, seed=seed, steps=steps, batch_size=batch_size, pooled=pooled)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_ranks_together_have_the_global_batch_and_a_resumed_run_goes_on(data):
    source = data.draw(sources())
    whole = batches_of(source)
    sizes = [size for size in range(1, 17) if source.batch_size % size == 0]
    world_size = data.draw(st.sampled_from(sizes), label="world size")
    start = data.draw(st.integers(0, source.steps), label="first step")
    ranks = [batches_of(source, rank=r, world_size=world_size, start_step=start) for r in range(world_size)]
    together = [[clip for part in parts for clip in part] for parts in zip(*ranks, strict=True)]
    assert together == whole[start:]
    numbers = [clip[0] for batch in whole for clip in batch]
    assert numbers == list(range(source.steps * source.batch_size))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_look_ahead_threads_and_read_plan_change_nothing(data):
    source = data.draw(sources())
    reading = ReadPlan(
        data.draw(st.sampled_from(READ_PLANS), label="plan"),
        data.draw(st.sampled_from([0, 1 << 16, 1 << 18, 1 << 40]), label="gap"),
        data.draw(st.sampled_from([0, 1 << 19, 1 << 21, 1 << 30]), label="memory"),
    )
    look_ahead, threads = (
        data.draw(st.integers(1, 7), label="look-ahead"),
        data.draw(st.integers(1, 9), label="threads"),
    )
    assert batches_of(source, reading=reading, look_ahead=look_ahead, threads=threads) == batches_of(
        source, look_ahead=1, threads=1
    )


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_curriculum_gives_each_clip_the_value_of_its_own_step_and_nothing_else(data):
    source = data.draw(sources())
    for number in data.draw(st.lists(st.integers(0, source.steps * source.batch_size - 1), max_size=10)):
        gap = source.recipe.max_gap.at(number // source.batch_size, source.steps)
        constant = copy(source)
        constant.recipe = replace(source.recipe, max_gap=[[0, gap]])
        assert _plan_values(source.plan(number)) == _plan_values(constant.plan(number))


def _plan_values(plan: ClipPlan) -> Clip:
    return plan.video, plan.frames, plan.object_ids, plan.matrices.tobytes(), plan.trial
