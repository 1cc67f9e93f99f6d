"""The loader hands out every batch once, in order, on any number of ranks, and its threads end with the loop."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.loader import ClipLoader, share_of_batch
from pipelines.order.sampling import MixEntry
from pipelines.recipes import make_recipe
from pipelines.source import ClipSource
from pipelines.types import Batch, ClipPixels, EncodedClip
from shards.errors import DataError
from tests.pipelines.fake_set import FakeSet, FakeVideo

REPOSITORY = Path(__file__).resolve().parents[2]


class RecordingExecutor:
    """Notes which frames came in which order, from which thread; its pixels carry nothing."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.calls: list[tuple[bytes, ...]] = []
        self.threads: set[int] = set()
        self.fail_at = fail_at

    def __call__(self, clips: list[EncodedClip]) -> ClipPixels:
        self.threads.add(threading.get_ident())
        if len(self.calls) == self.fail_at:
            raise DataError("some.tar", expected="a JPEG", found="noise", remedy="run check")
        self.calls.append(tuple(frame.image for clip in clips for frame in clip.frames))
        flat = torch.zeros(len(clips), 1, 1, 1)
        return ClipPixels(flat, flat, flat)

    def close(self) -> None:
        """Nothing to close."""


def assemble_nothing(pixels: ClipPixels, plans, *, step: int) -> tuple[Batch, int]:
    """A batch with plans and no pixels; every odd clip counts as a miss."""
    none = torch.zeros(len(plans))
    return Batch(step, none, none, none, none, none, plans), sum(plan.number % 2 for plan in plans)


@pytest.fixture
def dataset() -> FakeSet:
    return FakeSet([FakeVideo(f"video{row}", num_frames=20) for row in range(7)])


def make_source(dataset: FakeSet, *, steps: int = 12, batch_size: int = 8) -> ClipSource:
    recipe = make_recipe("rde_video", {"size": 32, "num_frames": 3})
    return ClipSource([MixEntry(dataset, "train")], recipe, seed=3, steps=steps, batch_size=batch_size)


def make_loader(dataset: FakeSet, executor: RecordingExecutor | None = None, **options) -> ClipLoader:
    source_options = {name: options.pop(name) for name in ("steps", "batch_size") if name in options}
    source = make_source(dataset, **source_options)
    return ClipLoader(source, executor or RecordingExecutor(), assemble_nothing, **options)


def numbers(batches) -> list[tuple[int, list[int]]]:
    return [(batch.step, [plan.number for plan in batch.plans]) for batch in batches]


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("clip-")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    deadline = time.monotonic() + 20
    while loader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loader_threads() == []


def test_batches_come_in_step_order_with_their_clips(dataset):
    assert numbers(make_loader(dataset, steps=4, batch_size=3)) == [
        (0, [0, 1, 2]), (1, [3, 4, 5]), (2, [6, 7, 8]), (3, [9, 10, 11]),
    ]  # fmt: skip


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_together_get_the_same_global_batch_in_the_same_order(dataset, world_size):
    ranks = [
        list(make_loader(dataset, executor, rank=rank, world_size=world_size))
        for rank, executor in enumerate(RecordingExecutor() for _ in range(world_size))
    ]
    whole = make_source(dataset)
    for step, parts in enumerate(zip(*ranks, strict=True)):
        plans = [plan for part in parts for plan in part.plans]
        assert [plan.number for plan in plans] == list(range(8 * step, 8 * step + 8))
        for plan in plans:
            expected = whole.plan(plan.number)
            assert (plan.frames, plan.object_ids) == (expected.frames, expected.object_ids)
            assert np.array_equal(plan.matrices, expected.matrices)


def test_starting_at_any_step_is_continuing_there(dataset):
    executor = RecordingExecutor()
    whole = numbers(make_loader(dataset, executor))
    for start in (0, 1, 5, 12):
        resumed = RecordingExecutor()
        assert numbers(make_loader(dataset, resumed, start_step=start)) == whole[start:]
        assert resumed.calls == executor.calls[start:]


def test_frames_reach_the_executor_as_planned_from_one_thread(dataset):
    executor = RecordingExecutor()
    batches = list(make_loader(dataset, executor, threads=3, look_ahead=5))
    expected = [tuple(f"fake image {f}".encode() for p in batch.plans for f in p.frames) for batch in batches]
    assert executor.calls == expected
    assert len(executor.threads) == 1
    assert threading.get_ident() not in executor.threads


def test_iterating_again_after_break_goes_on_with_the_next_step(dataset):
    loader = make_loader(dataset)
    for batch in loader:
        if batch.step == 3:
            break
    assert loader_threads() == []
    assert (loader.next_step, len(loader)) == (4, 8)
    assert [step for step, _ in numbers(loader)] == [4, 5, 6, 7, 8, 9, 10, 11]
    assert (len(loader), numbers(loader)) == (0, [])


def test_reading_stays_within_the_look_ahead(dataset):
    iterator = iter(make_loader(dataset, look_ahead=2, batch_size=1, steps=100))
    next(iterator)
    time.sleep(0.3)
    # One handed out, two ready, one waiting for room, and two under way: no more, however long nobody asks.
    assert len(dataset.reads) <= 3 * (1 + 2 + 1 + 2)
    iterator.close()


def test_statistics_add_up_what_was_handed_out(dataset):
    loader = make_loader(dataset, steps=4, batch_size=4)
    batches = list(loader)
    plans = [plan for batch in batches for plan in batch.plans]
    used = sum(len(f"fake image {f}") + len(f"mask {f}") for plan in plans for f in set(plan.frames))
    assert (loader.statistics.bytes_used, loader.statistics.bytes_read) == (used, used)
    assert loader.statistics.requests == sum(len(set(plan.frames)) for plan in plans)
    assert loader.statistics.read_amplification == 1
    assert (loader.statistics.batches, loader.statistics.clips, loader.statistics.misses) == (4, 16, 8)
    assert loader.statistics.trials == sum(plan.trial for batch in batches for plan in batch.plans)
    assert loader.wait_seconds >= 0


def test_a_read_error_surfaces_after_the_batches_before_it_and_names_its_clip(dataset):
    victim = make_source(dataset).plan(26)
    dataset.broken.add(victim.frames[1])
    first_hit = next(n for n in range(96) if victim.frames[1] in make_source(dataset).plan(n).frames)
    seen = []
    with pytest.raises(DataError, match="expected good bytes") as caught:
        seen.extend(batch.step for batch in make_loader(dataset))
    assert seen == list(range(first_hit // 8))
    assert caught.value.__notes__[0].startswith(f"while reading clip {first_hit} (step {first_hit // 8}): fake, video")


def test_an_executor_error_names_the_clips_of_its_batch(dataset):
    seen = []
    with pytest.raises(DataError, match="expected a JPEG") as caught:
        seen.extend(batch.step for batch in make_loader(dataset, RecordingExecutor(fail_at=2), batch_size=2))
    assert seen == [0, 1]
    (note,) = caught.value.__notes__
    assert note.startswith("while making the batch of step 2: clip 4 (step 2): fake, video")
    assert "; clip 5 (step 2): fake" in note


def test_a_planning_error_names_its_clip(dataset, monkeypatch):
    loader = make_loader(dataset)
    monkeypatch.setattr(dataset, "objects", lambda frame: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        next(iter(loader))
    assert caught.value.__notes__ == ["while planning clip 0"]


def test_an_error_in_the_loop_ends_the_threads(dataset):
    with pytest.raises(KeyboardInterrupt), make_loader(dataset) as loader:
        for _ in loader:
            raise KeyboardInterrupt
    assert loader_threads() == []


def test_batches_are_made_on_the_cuda_device_of_the_consumer(dataset, monkeypatch):
    chosen = {}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.setdefault(threading.get_ident(), device))
    executor = RecordingExecutor()
    list(make_loader(dataset, executor, steps=2))
    assert chosen == dict.fromkeys(executor.threads, 3)


def test_an_interrupt_while_waiting_for_a_batch_ends_the_threads(dataset):
    class SlowExecutor(RecordingExecutor):
        def __call__(self, clips):
            time.sleep(0.6)
            return super().__call__(clips)

    def interrupt(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(iter(make_loader(dataset, SlowExecutor())))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert loader_threads() == []


def test_close_ends_the_threads_and_an_iterator_that_is_asked_again_says_so(dataset):
    loader = make_loader(dataset)
    iterator = iter(loader)
    next(iterator)
    loader.close()
    assert loader_threads() == []
    with pytest.raises(RuntimeError, match="was closed"):
        next(iterator)


def test_a_second_iteration_ends_the_first_loudly_and_loses_no_step(dataset):
    loader = make_loader(dataset)
    first = iter(loader)
    next(first)
    assert [step for step, _ in numbers(loader)] == list(range(1, 12))
    with pytest.raises(RuntimeError, match="was closed"):
        next(first)


def test_dropping_the_loader_ends_its_threads(dataset):
    iterator = iter(make_loader(dataset))
    next(iterator)
    assert loader_threads()
    del iterator
    gc.collect()
    assert loader_threads() == []


def test_dropping_a_loader_that_is_part_of_a_cycle_ends_its_threads(dataset):
    loader = make_loader(dataset)
    iterator = iter(loader)
    next(iterator)
    loader.cycle = (loader, iterator)
    del loader, iterator
    gc.collect()
    assert loader_threads() == []


def test_python_ends_though_a_loader_was_never_closed():
    program = """
from tests.pipelines.test_loader import make_loader
from tests.pipelines.fake_set import FakeSet, FakeVideo
loader = make_loader(FakeSet([FakeVideo(num_frames=20)]))
iterator = iter(loader)
print(next(iterator).step)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.parametrize(
    ("batch_size", "world_size", "sizes"), [(10, 4, "use 8 or 12,"), (3, 8, "use 8,"), (9, 2, "use 8 or 10,")]
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_sizes(batch_size, world_size, sizes):
    with pytest.raises(ValueError, match=f"batch_size {batch_size} does not divide by the {world_size} .*{sizes}"):
        share_of_batch(batch_size, 0, world_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank must be 0..1, got 2"),
        ({"start_step": 13}, "has no steps 13 to 12"),
        ({"stop_step": 13}, "has no steps 0 to 13"),
        ({"look_ahead": 0}, "at least 1, got 0 and 4"),
        ({"threads": 0}, "at least 1, got 4 and 0"),
    ],
)
def test_arguments_that_make_no_loader_are_refused(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        make_loader(dataset, **options)
