"""Properties of every recipe on every executor, down to the last bit of a batch.

Whatever the number of ranks, the step a run goes on from, look-ahead, threads and read plan, the batches are those of
one process that reads clip after clip from the start, with mixes and curricula that change on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.assembly import make_assembly
from pipelines.executors import make_executor
from pipelines.loader import ClipLoader
from pipelines.order.curriculum import Table
from pipelines.order.pooled import Pooled
from pipelines.order.sampling import MixEntry
from pipelines.reading.clip_reader import READ_PLANS, ReadPlan
from pipelines.recipes import make_recipe
from pipelines.source import ClipSource
from pipelines.types import Batch, Executor
from shards.reader import ShardSet
from tests.shards.small_tree import build_kind, build_set, indexed_png, jpeg, label_maps, write_tree

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, dict[str, Any]] = {
    "rde_video": {"size": 32},
    "rde_bl30k": {"size": 32, "area_rule": [60, 12, 90]},
    "rde_static": {"size": 24},
    "stm_cycle": {"size": [30, 50]},
    "stm_cycle_paper": {"size": [30, 50]},
    "stm_cycle_dali": {"size": [30, 50]},
    "mtmfi": {"size": [24, 40]},
}
PAIRS = [
    (name, executor)
    for name in OPTIONS
    for executor in ("cpu", "paper", "dali")
    if (name, executor) != ("stm_cycle", "paper")
]
"""stm_cycle alone was never published, and has no steps that `paper` could take."""
CHANGES: dict[str, list[list[list[float]] | None]] = {
    "max_gap": [None, [[0, 3], [0.5, 1]], [[0, 1], [0.25, 4], [0.6, 2]]],
    "smallest_crop": [None, [[0, 0.9], [0.3, 0.4]]],
    "clip_length": [None, [[0, 4], [0.4, 3]], [[0, 3], [0.25, 4], [0.7, 3]]],
}
WEIGHTS = [1, 3, [[0, 2], [0.3, 1]], [[0, 0], [0.5, 3]], [[0, 1], [0.3, 0], [0.7, 2]]]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ShardSet]]:
    """Video, some of it upright, with void and seven objects; video annotated every other frame; stills."""
    folder = tmp_path_factory.mktemp("sets")
    dense = {f"video{n}": label_maps(7 + n, (1, 2, 3 + n), seed=n) for n in range(3)}
    dense["void"] = label_maps(8, (2, 1, 255), seed=7)
    dense["crowd"] = label_maps(6, range(1, 8), seed=8)
    upright = [labels.T.copy() for labels in label_maps(7, (1, 4), seed=9)]
    tree = write_tree(folder / "dense_tree", dense | {"upright": upright})
    for frame in range(len(upright)):
        (tree / f"JPEGImages/480p/upright/{frame:05d}.jpg").write_bytes(jpeg(frame, 56, 40))
    build_set(tree, folder, name="dense")
    sparse = {
        f"sparse{n}": [_every_other(*pair) for pair in enumerate(label_maps(14, (1, 2), seed=n))] for n in range(4)
    }
    build_set(write_tree(folder / "sparse_tree", sparse), folder, name="sparse")
    stills = folder / "stills_tree" / "DUTS-TE"
    stills.mkdir(parents=True)
    for number in range(6):
        height, width = (40, 56) if number % 2 else (48, 32)
        (stills / f"still{number}.jpg").write_bytes(jpeg(number, height, width))
        labels = np.zeros((height, width), np.uint8)
        labels[8 + number : 30, 5:20] = 255
        (stills / f"still{number}.png").write_bytes(indexed_png(labels, bytes(v for n in range(256) for v in (n,) * 3)))
    build_kind("static", (stills.parent,), folder, name="stills")
    with ExitStack() as stack:
        yield {name: stack.enter_context(ShardSet.open(folder / name)) for name in ("dense", "sparse", "stills")}


def _every_other(frame: int, labels: np.ndarray) -> np.ndarray | None:
    return None if frame % 2 else labels


@st.composite
def sources(draw: st.DrawFn, name: str, sets: dict[str, ShardSet], *, most_clips: int) -> ClipSource:
    """A stage of a recipe with curricula, of a mix whose weights may change, in either order."""
    known = {field.name for field in fields(make_recipe(name, {}))}
    changes = {key: draw(st.sampled_from(rows), label=key) for key, rows in CHANGES.items() if key in known}
    length = {"num_frames": 4} if changes["clip_length"] else {"num_frames": 3}
    recipe = make_recipe(name, OPTIONS[name] | length | {key: rows for key, rows in changes.items() if rows})
    names = (
        ["stills"] if name == "rde_static" else draw(st.sampled_from([["dense"], ["dense", "sparse"]]), label="sets")
    )
    weights = [1 if name == "sparse" else _weight(draw(st.sampled_from(WEIGHTS), label="weight")) for name in names]
    if len(names) == 1:
        weights = [2]
    steps_of = {"dense": 1, "sparse": 2, "stills": 1}
    mix = [MixEntry(sets[each], "train", weight, steps_of[each]) for each, weight in zip(names, weights, strict=True)]
    batch_size = draw(st.integers(1, most_clips), label="clips of a step")
    pooled = draw(st.sampled_from([None, Pooled(2, 2, 1)]), label="order")
    seed, steps = draw(st.integers(0, 2**32), label="seed"), draw(st.integers(2, 4), label="steps")
    return ClipSource(mix, recipe, seed=seed, steps=steps, batch_size=batch_size, pooled=pooled)


def _weight(value: int | list[list[float]]) -> int | Table:
    return value if isinstance(value, int) else Table(value)  # type: ignore[arg-type]


def load(source: ClipSource, executor: Executor, **options: Any) -> list[Batch]:
    with ClipLoader(source, executor, make_assembly(source.recipe, torch.device("cpu")), **options) as loader:
        return list(loader)


@pytest.mark.parametrize(("name", "executor"), PAIRS)
def test_batches_are_those_of_one_process_from_the_start(name: str, executor: str, sets: dict[str, ShardSet]) -> None:
    if executor == "dali":
        pytest.importorskip("nvidia.dali", reason="no DALI in this environment")
    # Sixteen ranks need sixteen clips a step; the published steps of sixteen clips take seconds.
    most_clips = 16 if executor == "cpu" else 4

    @settings(max_examples=12 if executor == "cpu" else 5, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        source = data.draw(sources(name, sets, most_clips=most_clips), label="stage")
        whole = load(source, alone, threads=1, look_ahead=1)
        sizes = [size for size in range(1, 17) if source.batch_size % size == 0]
        world_size = data.draw(st.sampled_from(sizes), label="ranks")
        start = data.draw(st.integers(0, source.steps - 1), label="first step")
        reading = ReadPlan(
            data.draw(st.sampled_from(READ_PLANS), label="plan"),
            data.draw(st.sampled_from([0, 1 << 12, 1 << 30]), label="gap"),
            data.draw(st.sampled_from([0, 1 << 15, 1 << 30]), label="memory"),
        )
        threads = data.draw(st.integers(1, 5), label="threads")
        options = {"look_ahead": data.draw(st.integers(1, 5), label="look-ahead"), "threads": threads}
        options |= {"reading": reading, "start_step": start, "world_size": world_size}
        ranks = [load(source, shared, rank=rank, **options) for rank in range(world_size)]
        for batch, *parts in zip(whole[start:], *ranks, strict=True):
            assert all(part.step == batch.step for part in parts)
            assert_same(batch, parts)

    alone, shared = make_executor(executor, threads=1), make_executor(executor, threads=2)
    try:
        check()
    finally:
        alone.close()
        shared.close()


def assert_same(batch: Batch, parts: Sequence[Batch]) -> None:
    """Every tensor and plan of a batch is those of its parts, one after the other."""
    for field in fields(Batch):
        wanted, found = getattr(batch, field.name), [getattr(part, field.name) for part in parts]
        if isinstance(wanted, torch.Tensor):
            assert torch.equal(wanted, torch.cat(found)), field.name
    together = [plan for part in parts for plan in part.plans]
    assert [plan.number for plan in together] == [plan.number for plan in batch.plans]
    assert all(equal(*pair) for pair in zip(batch.plans, together, strict=True))


def equal(first: Any, second: Any) -> bool:
    """Equality that looks into arrays and records."""
    if is_dataclass(first):
        return type(first) is type(second) and all(
            equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(first)
        )
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(np.array_equal(first, second)) if isinstance(first, np.ndarray) else first == second


@pytest.mark.parametrize("name", OPTIONS)
def test_a_clip_has_the_values_of_its_own_step_and_of_no_other(name: str, sets: dict[str, ShardSet]) -> None:
    """The plan of a clip under tables is that of a recipe with the values of its step, everywhere in the stage."""

    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        source = data.draw(sources(name, sets, most_clips=6), label="stage")
        constant = copy(source)
        for number in range(source.steps * source.batch_size):
            step = number // source.batch_size
            constant.recipe = _as_at(source.recipe, step, source.steps)
            plan = source.plan(number)
            assert equal(plan, constant.plan(number))
            assert len(plan.frames) == constant.recipe.num_frames
            weights = next(weights for first, weights in reversed(source.mix.phases) if first <= step)
            assert weights[plan.dataset] > 0

    check()


def _as_at(recipe: Any, step: int, steps: int) -> Any:
    tables = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    values = {name: table.at(step, steps) for name, table in tables.items() if isinstance(table, Table)}
    length = int(values.pop("clip_length", recipe.num_frames))
    constants = {name: [[0, value]] for name, value in values.items()}
    return replace(recipe, clip_length=None, num_frames=length, **constants)
