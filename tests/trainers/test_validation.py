"""Validation on the way: of every benchmark, at the end of stages too, never left out and never done twice."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.rde import Rde
from shards.building.build import build
from shards.building.plan import BuildRequest, make_plan
from shards.errors import DataError
from tests.trainers.small_runs import build_shards, plain_config, two_stages
from tests.trainers.small_youtube import write_youtube_tree
from tools.evaluate import evaluate_results
from tools.segment import segment
from trainers.config import ConfigError, SeenAs, Validation, make_config
from trainers.records.checkpoints import list_checkpoints
from trainers.records.journal import read_journal
from trainers.running.distributed import Ranks, Threads
from trainers.running.loop import Ending
from trainers.running.stages import Place
from trainers.running.training import train
from trainers.running.validation import BEST_FILE, RESULTS_FOLDER, Best, Validator

CATEGORIES = {"unseen": ["owl"], "videos": {"late": {"2": "cat", "5": "owl"}, "dark": {"3": "owl"}}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tmp_path_factory.mktemp("shards"))


def validated_run(shards: Path, output: Path, **validation: Any) -> dict[str, Any]:
    """A run of one step; `validation` is its section."""
    values = plain_config(shards, output, validation={"every": 100, **validation})
    values["stages"][0]["steps"] = 1
    return values


def validations(folder: Path) -> list[dict[str, Any]]:
    """Records of validations, without how long they took."""
    records = [record for record in read_journal(folder) if record["kind"] == "validation"]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def figures_of_the_tools(checkpoint: Path, videos: Path, out: Path, *words: str) -> dict[str, float]:
    """What segment.py and evaluate.py give for the same videos."""
    segment(["--model", "rde", "--weights", str(checkpoint), str(videos), str(out), "--threads", "1", *words[:2]])
    evaluate_results([str(out), str(videos), "--jobs", "1", *words])
    (report,) = out.glob("results-*.json")
    figures: dict[str, float] = json.loads(report.read_text())["global"]
    return figures


def test_youtube_vos_is_validated_as_the_tools_do_with_late_objects_and_unseen_categories(
    shards: Path, tmp_path: Path
) -> None:
    tree, table = write_youtube_tree(tmp_path / "tree"), tmp_path / "categories.json"
    table.write_text(json.dumps(CATEGORIES))
    options = {"path": str(tree), "split": "valid_gt", "categories": str(table)}
    train(make_config(validated_run(shards, tmp_path / "run", **options), source="test"))
    (found,) = validations(tmp_path / "run")
    expected = figures_of_the_tools(
        tmp_path / "run" / "checkpoint-1.pt", tree, tmp_path / "out", "--split", "valid_gt", "--categories", str(table)
    )
    assert {"G", "J-seen", "J-unseen", "F-seen", "F-unseen", "objects-seen", "objects-unseen"} == expected.keys()
    assert {name: found[name] for name in expected} == expected
    best = json.loads((tmp_path / "run" / BEST_FILE).read_text())
    assert (best["step"], best["G"], best["of"]["protocol"]) == (1, found["G"], "youtube_vos")


def test_youtube_vos_spread_over_ranks_has_the_figures_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table.json").write_text(json.dumps(CATEGORIES))
    tree = write_youtube_tree(tmp_path / "tree")
    options = Validation(tree, 1, categories=tmp_path / "table.json", sight=SeenAs(shorter_side=48))
    model = Rde(width=0.0625, generator=torch.Generator().manual_seed(5))

    def on_rank(rank: int, world_size: int) -> Validator:
        return Validator(
            options, "rde", model, Place(Ranks(rank, world_size), torch.device("cpu"), Threads(1, 1)), tmp_path
        )

    alone = on_rank(0, 1).score(model, None, lambda: False, lambda _: None)
    ranks = [on_rank(rank, 3) for rank in range(3)]
    parts = [validator._score_own(model, lambda: False, lambda _: None) for validator in ranks]
    assert [{item.video for item in part or ()} for part in parts] == [{"late"}, {"dark"}, set()]
    monkeypatch.setattr("trainers.running.validation.gather_objects", lambda _mine, _ranks: parts)
    together = ranks[2].score(model, None, lambda: False, lambda _: None)
    assert alone is not None
    assert together is not None
    assert together.figures == alone.figures
    assert together.num_videos == 2


def test_ones_own_videos_are_validated_by_the_mean_of_j_and_f(shards: Path, tmp_path: Path) -> None:
    raw = shards.parent / "raw"
    folders = (raw / "JPEGImages" / "480p", raw / "Annotations" / "480p")
    request = BuildRequest("folder", folders, tmp_path / "mine")
    build(request, make_plan(request), lambda _progress: None)
    mine = Path(str(request.root))
    train(make_config(validated_run(shards, tmp_path / "run", path=str(mine)), source="test"))
    (found,) = validations(tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-1.pt"
    expected = figures_of_the_tools(checkpoint, mine, tmp_path / "out")
    assert found["J&F-Mean"] == (found["J-Mean"] + found["F-Mean"]) / 2
    assert {name: found[name] for name in expected} == expected


def ask_to_stop(*_: object, on_frame: Callable[[], None]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    on_frame()


def test_the_validation_at_the_end_of_a_stage_or_of_the_run_is_never_left_out(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def values(folder: Path) -> dict[str, Any]:
        plain = two_stages(validated_run(shards, folder, path=str(shards)))
        plain["stages"][0]["ema"] = plain["stages"][1]["ema"] = 0.5
        return plain

    train(make_config(values(tmp_path / "whole"), source="test"))
    expected = validations(tmp_path / "whole")
    assert [(r["step"], r["stage"]) for r in expected] == [(2, "small"), (5, "second")]
    assert caplog.text.count("two: the first frame has ids") == 1  # of two validations

    def stop_in_4(step: int, _loss: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    config = make_config(values(tmp_path / "stopped"), source="test")
    for step in (2, 5):
        with monkeypatch.context() as patch:
            patch.setattr("trainers.running.validation.segment_to_folder", ask_to_stop)
            for _ in range(2):  # asked again while it makes up for it
                outcome = train(config, resume=True)
                assert (outcome.ending, outcome.step) == (Ending.STOPPED, step)
        if step == 2:
            assert train(config, resume=True, on_step=stop_in_4).step == 4
            assert validations(tmp_path / "stopped") == expected[:1]
    assert train(config, resume=True).ending is Ending.FINISHED
    assert validations(tmp_path / "stopped") == expected
    assert train(config, resume=True).ending is Ending.FINISHED  # done already
    assert validations(tmp_path / "stopped") == expected

    # Killed in one of them: the checkpoint is there and its figures are not.
    for step in (2, 5):
        folder = tmp_path / f"killed at {step}"
        folder.mkdir()
        name = f"checkpoint-{step}.pt"
        (folder / name).write_bytes((tmp_path / "whole" / name).read_bytes())
        (folder / RESULTS_FOLDER / "rank-1" / "one").mkdir(parents=True)
        train(make_config(values(folder), source="test"), resume=True)
        assert validations(folder) == [
            {**record, "best": record["best"] or record["step"] == step}
            for record in expected
            if record["step"] >= step
        ]
        assert list_checkpoints(folder)[0].name == "checkpoint-5.pt"
        assert not (folder / RESULTS_FOLDER).exists()


def test_a_set_without_the_truth_is_refused_before_the_first_step(shards: Path, tmp_path: Path) -> None:
    tree = write_youtube_tree(tmp_path / "tree")
    for options, message in (
        ({"split": "valid"}, "masks of the 2 frames in which object 3 is scored"),
        ({"split": "valid_gt", "categories": str(tmp_path / "table.json")}, "a category that is seen or unseen"),
    ):
        (tmp_path / "table.json").write_text('{"unseen": ["owl"]}')
        config = make_config(validated_run(shards, tmp_path / "run", path=str(tree), **options), source="test")
        with pytest.raises(DataError, match=message) as caught:
            train(config)
        assert caught.value.__notes__ == ["config key validation"]
        assert not list_checkpoints(tmp_path / "run")


def test_categories_that_nothing_asks_for_are_refused(shards: Path, tmp_path: Path) -> None:
    options = {"path": str(shards), "categories": "table.json"}
    with pytest.raises(ConfigError, match="validation: davis2016 knows no categories; leave them out"):
        make_config(validated_run(shards, tmp_path, protocol="davis2016", **options), source="test")
    (tmp_path / "table.json").write_text('{"unseen": ["owl"]}')
    known = Validation(shards, every=1, categories=tmp_path / "table.json")
    model = Rde(width=0.0625, initialise=False)
    place = Place(Ranks(), device=next(model.parameters()).device, threads=Threads(1, 1))
    with pytest.raises(ValueError, match="is scored by davis2017, which knows no categories"):
        Validator(known, "rde", model, place, tmp_path)


def test_the_best_is_by_the_measure_of_its_own_standard_and_is_found_again(tmp_path: Path) -> None:
    best = Best(tmp_path, "G", {"dataset": "a"}, step=0)
    assert [best.offer(step, {"G": value}) for step, value in ((1, 0.5), (2, 0.5), (3, 0.7), (4, 0.6))] == [
        True,
        False,
        True,
        False,
    ]
    # Killed after best.json, before the journal: the same step comes again.
    assert Best(tmp_path, "G", {"dataset": "a"}, step=3).offer(3, {"G": 0.7})
    assert Best(tmp_path, "G", {"dataset": "a"}, step=3).step == 3
    assert Best(tmp_path, "G", {"dataset": "a"}, step=2).step is None
    assert Best(tmp_path, "G", {"dataset": "b"}, step=9).step is None
    for text in ("", "[1]", '{"steq": 3, "G": 0.7, "of": {"dataset": "a"}}', '{"step": 3, "of": {"dataset": "a"}}'):
        (tmp_path / BEST_FILE).write_text(text)
        assert Best(tmp_path, "G", {"dataset": "a"}, step=9).step is None
