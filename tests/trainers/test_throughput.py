"""The tool must find the wall it was given: one stage is made slow at the lowest layer there is, and has to be named.

Delays are sleeps many times longer than all other work, of which the model's is left out, and only verdicts are
asserted, so that load does not matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import simplejpeg
import torch

import pipelines.assembly
from pipelines.reading.clip_reader import ClipReader, ReadClip
from pipelines.types import ClipPlan
from shards.reader import ShardSet
from tests.trainers.small_runs import build_shards, plain_config
from trainers.config import Config, make_config
from trainers.objectives.rde import RdeObjective
from trainers.throughput.measure import RankResult, measure, slowest_rank
from trainers.throughput.report import Report
from trainers.throughput.verdict import judge

pytestmark = pytest.mark.usefixtures("one_thread")

SECONDS = 0.3
"""Added to each step, by one call or by several."""
FRAMES = 5


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One clip per step, one thread to load and one to compute."""
    folder = tmp_path_factory.mktemp("throughput")
    values = plain_config(build_shards(folder), folder / "run")
    values["stages"][0]["batch_size"] = 1
    values["reading"] = {"plan": "frame", "threads": 1, "latency_ms": 0.1, "bandwidth_mb": 1000}
    return make_config(values, source="test")


def free_forward(objective: RdeObjective, *_tensors: torch.Tensor, **_arguments: float) -> tuple[torch.Tensor, dict]:
    """A loss that costs next to nothing and depends on every parameter."""
    return torch.stack([parameter.mean() for parameter in objective.parameters()]).mean(), {}


def slow(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    ("slowed", "calls", "expected"),
    [
        ((ShardSet, "read_ranges"), 1, ("data", "read")),
        ((simplejpeg, "decode_jpeg"), FRAMES, ("data", "image decode")),
        ((cv2, "warpAffine"), 2 * FRAMES, ("data", "warp")),
        ((pipelines.assembly, "normalise"), 1, ("data", "assembly")),
        ((RdeObjective, "forward"), 1, ("compute", "forward")),
    ],
    ids=["reader", "decoder", "warp", "assembly", "model"],
)
def test_a_slow_stage_is_named(
    config: Config, monkeypatch: pytest.MonkeyPatch, slowed: tuple[Any, str], calls: int, expected: tuple[str, str]
) -> None:
    # Otherwise a loaded machine would make the small model slow, too.
    monkeypatch.setattr(RdeObjective, "forward", free_forward)
    monkeypatch.setattr(*slowed, slow(getattr(*slowed), SECONDS / calls))
    results = measure(config, seconds=0.5)
    verdict = judge(results[0].numbers)
    assert (verdict.limit, verdict.wall) == expected, verdict.words
    assert verdict.words.startswith(f"{expected[0]}-bound: ")
    assert expected[1] in verdict.words


def test_a_step_outside_the_stage_is_refused(config: Config) -> None:
    with pytest.raises(ValueError, match=r"stage 0 has no step 6; stages and their steps are \[\('small', 6\)\]"):
        measure(config, step=6)
    with pytest.raises(ValueError, match="stage 1 has no step 0"):
        measure(config, stage=1)


def test_nothing_is_written_and_the_report_is_of_the_rank_that_waited_longest(config: Config) -> None:
    (result,) = measure(config, seconds=0.5)
    assert not config.folder.exists()
    numbers = result.numbers
    assert numbers.at.clips_per_step == 1
    assert numbers.at.frames_per_clip == FRAMES
    assert numbers.bytes_per_step > 0
    assert set(numbers.data_parts) == {
        "plan", "read", "image decode", "mask decode", "warp", "colour", "assembly",
    }  # fmt: skip
    assert sum(numbers.compute_parts.values()) == pytest.approx(numbers.compute_ms, rel=0.05)
    assert numbers.unsynchronised_ms is None
    assert numbers.waits.num_steps == len(result.waits) >= 3
    waited = RankResult(_with_wait(numbers, 1e6), *(list[Any]() for _ in range(5)))
    assert slowest_rank([result, waited, waited]) == 1
    assert Report([result, waited], {}).rank is waited


def _with_wait(numbers: Any, mean_ms: float) -> Any:
    from dataclasses import replace

    return replace(numbers, waits=replace(numbers.waits, mean_ms=mean_ms))


def test_no_run_reads_what_another_one_has_just_brought_into_memory(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RdeObjective, "forward", free_forward)
    read, asked = [], ClipReader.read

    def note(reader: ClipReader, plan: ClipPlan) -> ReadClip:
        read.append(plan.number)
        return asked(reader, plan)

    monkeypatch.setattr(ClipReader, "read", note)
    long_stage = replace(config, stages=(replace(config.stages[0], steps=100_000),))
    (result,) = measure(long_stage, step=50, seconds=0.3)
    assert min(read) == 50
    assert len(read) == len(set(read)) > 20
    assert 0 < result.numbers.read_rate < float("inf")


def test_the_config_of_the_stage_is_kept(config: Config, tmp_path: Path) -> None:
    """The measured stage draws the clips that the run draws there: its seed moves with its position."""
    from trainers.throughput.measure import _one_stage

    two = make_config(
        plain_config(Path("data"), tmp_path, stages=[_named(config, "a"), _named(config, "b")]), source="test"
    )
    two = replace(two, model=replace(two.model, key_weights=tmp_path / "not_there.pth"), start_from=tmp_path / "x.pt")
    alone = _one_stage(two, 1, 0)
    assert (alone.model.key_weights, alone.start_from) == (None, None)
    assert alone.seed == two.seed + 1
    assert [(stage.name, stage.steps) for stage in alone.stages] == [("b", two.stages[1].steps)]


def _named(config: Config, name: str) -> dict[str, Any]:
    from trainers.config import as_plain

    return as_plain(config)["stages"][0] | {"name": name}
