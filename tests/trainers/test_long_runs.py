"""What a run of weeks needs: time limits, averages, milestones, validation on the way, failures to be seen again."""

from __future__ import annotations

import json
import logging
import os
import signal
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.amp.grad_scaler import GradScaler

from models.rde import Rde
from models.stm import Stm
from tests.trainers.small_mtmfi import small_network
from tests.trainers.small_runs import assert_equal_states, build_shards, plain_config, small_config
from tests.trainers.test_stages_of_two_kinds import build_stills
from tools.evaluate import evaluate_results
from tools.segment import segment
from tools.segment_methods import METHOD_ARGUMENTS
from tools.train import train_tool
from trainers.config import ConfigError, SeenAs, Validation, make_config
from trainers.methods import METHODS
from trainers.prediction.files import OutputForm
from trainers.prediction.plan import SEGMENTATION_PROTOCOLS
from trainers.records.checkpoints import list_checkpoints, load_model, read_checkpoint
from trainers.records.journal import read_journal
from trainers.running.distributed import Ranks, Threads
from trainers.running.loop import Ending, NonFiniteLossError
from trainers.running.stages import Place
from trainers.running.starting import make_model
from trainers.running.training import Start, train
from trainers.running.validation import BEST_FILE, ValidationAbandonedError, Validator

MEASURE = "J&F-Mean"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tmp_path_factory.mktemp("shards"))


def staged(shards: Path, output: Path, stage: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A run of one stage with changes in the stage and at the top."""
    values = plain_config(shards, output, **changes)
    values["stages"][0] |= stage
    return values


@pytest.fixture(scope="module")
def validated(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with an average, validated after steps 2 and 4."""
    folder = tmp_path_factory.mktemp("validated") / "run"
    validation = {"path": str(shards), "every": 2, "split": "val"}
    values = staged(
        shards, folder, {"steps": 4, "ema": 0.5}, validation=validation, keep=1, plots=True, tensorboard=True
    )
    train(make_config(values, source="test"))
    return folder


def test_a_time_limit_ends_a_run_as_a_signal_does(shards: Path, tmp_path: Path) -> None:
    outcome = train(small_config(shards, tmp_path), Start(max_seconds=1e-6))
    assert (outcome.ending, outcome.step, outcome.steps) == (Ending.STOPPED, 1, 6)
    assert outcome.checkpoint == tmp_path / "checkpoint-1.pt"


def test_ends_of_stages_and_milestones_are_kept(shards: Path, tmp_path: Path) -> None:
    values = plain_config(shards, tmp_path, keep=1, checkpoint_every=1, milestone_every=3)
    values["stages"] = [{**values["stages"][0], "name": name, "steps": steps} for name, steps in (("a", 1), ("b", 4))]
    train(make_config(values, source="test"))
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{n}.pt" for n in (5, 3, 1)]
    costs = [record for record in read_journal(tmp_path) if record["kind"] == "checkpoint"]
    assert [record["step"] for record in costs] == [0, 1, 2, 3, 4, 5]
    assert all(0 < record["stall_ms"] < 10_000 and record["write_ms"] > 0 for record in costs)


def test_validation_gives_the_figures_of_the_tools(validated: Path, shards: Path, tmp_path: Path) -> None:
    records = [record for record in read_journal(validated) if record["kind"] == "validation"]
    assert [record["step"] for record in records] == [2, 4]
    weights, out = str(validated / "checkpoint-4.pt"), tmp_path / "out"
    segment(["--model", "rde", "--weights", weights, str(shards), str(out), "--threads", "1", "--split", "val"])
    evaluate_results([str(out), str(shards), "--jobs", "1", "--output", str(tmp_path / "scores")])
    text = "".join(path.read_text() for path in (tmp_path / "scores").glob("*.json"))
    assert all(repr(records[-1][name]) in text for name in ("J&F-Mean", "J-Mean", "F-Mean")), text


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "rde": partial(Rde, width=0.0625, initialise=False),
    "stm": partial(Stm, arch="resnet18", width=0.0625, initialise=False),
    "mtmfi": small_network,
}


@pytest.mark.parametrize("method", list(METHODS))
def test_validation_sees_and_follows_as_the_tool_does(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    names = [name for group in METHOD_ARGUMENTS.values() for name in group.names]
    nothing = Namespace(**dict.fromkeys(names), shorter_side=None, mem_every=None, amp=False)
    way = METHOD_ARGUMENTS[method]
    model = NETWORKS[method]()
    for protocol in SEGMENTATION_PROTOCOLS.values():
        assert METHODS[method].published(model, protocol) == (
            way.options(nothing, protocol),
            way.sight(nothing, protocol),
        )
    seen: list[object] = []

    def note(segmenter: object, _source: object, _plan: object, _folder: Path, form: OutputForm, **_: object) -> None:
        seen.extend((segmenter, form.sight))
        raise ValidationAbandonedError

    monkeypatch.setattr("trainers.running.validation.segment_to_folder", note)
    monkeypatch.setattr(METHODS[method], "segmenter", lambda _model, options: options)
    place = Place(Ranks(), torch.device("cpu"), Threads(1, 1))
    usual = METHODS[method].published(model, SEGMENTATION_PROTOCOLS["davis2017"])
    for sight in (None, SeenAs(box=(48, 64))):
        options = Validation(shards, every=1, split="val", sight=sight)
        validator = Validator(options, method, model, place, tmp_path)
        assert validator.score(model, None, lambda: False, lambda _: None) is None
    assert seen == [*usual, usual[0], SeenAs(box=(48, 64))]


def test_a_network_of_still_images_is_validated_without_its_later_memory(shards: Path, tmp_path: Path) -> None:
    stage = {
        "steps": 1,
        "data": [{"path": str(build_stills(tmp_path)), "split": "few"}],
        "recipe": {"name": "rde_static", "size": 32},
        "objective": {"name": "rde_still", "top_p_start_step": 0, "top_p_end_step": 1},
    }
    validation = {"path": str(shards), "every": 10, "videos": 1}
    train(make_config(staged(shards, tmp_path / "run", stage, validation=validation), source="test"))
    (found,) = [record for record in read_journal(tmp_path / "run") if record["kind"] == "validation"]
    assert (found["step"], found["videos"]) == (1, 1)
    assert 0 <= found[MEASURE] <= 1


def test_the_best_is_named_and_kept(validated: Path) -> None:
    records = [record for record in read_journal(validated) if record["kind"] == "validation"]
    best = max(records, key=lambda record: (record[MEASURE], -record["step"]))
    found = json.loads((validated / BEST_FILE).read_text())
    assert (found["step"], found[MEASURE]) == (best["step"], best[MEASURE])
    assert (validated / found["checkpoint"]).exists()
    assert (validated / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_validating_changes_nothing_and_is_made_up_for(validated: Path, shards: Path, tmp_path: Path) -> None:
    plain = staged(shards, tmp_path / "plain", {"steps": 4, "ema": 0.5})
    train(make_config(plain, source="test"))
    assert_equal_states(tmp_path / "plain" / "checkpoint-4.pt", validated / "checkpoint-4.pt")
    # A run killed in its validation: the checkpoint of that step is there, its figures are not.
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "checkpoint-2.pt").write_bytes((tmp_path / "plain" / "checkpoint-2.pt").read_bytes())
    validation = {"path": str(shards), "every": 2, "split": "val"}
    train(make_config(plain | {"output": str(folder), "validation": validation}, source="test"), resume=True)
    before, after = ([r for r in read_journal(f) if r["kind"] == "validation"] for f in (validated, folder))
    assert [(r["step"], r[MEASURE]) for r in after] == [(r["step"], r[MEASURE]) for r in before]
    # Resumed inside a stage that averages: the average and the weights both went on.
    assert_equal_states(folder / "checkpoint-4.pt", validated / "checkpoint-4.pt")
    trained = [read_checkpoint(path / "checkpoint-4.pt").trained for path in (folder, validated)]
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())


def test_a_validation_given_up_for_a_signal_is_made_up_for(
    validated: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask_to_stop(*_: object, on_frame: Callable[[], None]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        on_frame()

    validation = {"path": str(shards), "every": 2, "split": "val"}
    config = make_config(staged(shards, tmp_path, {"steps": 4, "ema": 0.5}, validation=validation), source="test")
    with monkeypatch.context() as patch:
        patch.setattr("trainers.running.validation.segment_to_folder", ask_to_stop)
        for resume in (False, True):  # asked again while it makes up for it
            outcome = train(config, resume=resume)
            assert (outcome.ending, outcome.step) == (Ending.STOPPED, 2)
    assert train(config, resume=True).ending is Ending.FINISHED
    before, after = ([r for r in read_journal(f) if r["kind"] == "validation"] for f in (validated, tmp_path))
    assert [(r["step"], r[MEASURE]) for r in after] == [(r["step"], r[MEASURE]) for r in before]


def test_a_checkpoint_gives_the_average_to_whoever_uses_it(validated: Path) -> None:
    checkpoint = read_checkpoint(validated / "checkpoint-4.pt")
    model, _ = load_model(validated / "checkpoint-4.pt")
    name, weight = next(iter(model.named_parameters()))
    assert torch.equal(weight, checkpoint.model[name])
    assert not torch.equal(weight, checkpoint.trained[name])


def test_force_goes_on_with_other_values(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(small_config(shards, tmp_path), Start(max_seconds=1e-6))
    other = small_config(shards, tmp_path, seed=7)
    with pytest.raises(ConfigError, match="seed was 14159265 and is 7"):
        train(other, Start(resume=True))
    assert train(other, Start(resume=True, force=True)).step == 6
    assert "going on as another run, by force: seed was 14159265 and is 7" in caplog.text


def test_a_default_that_is_written_out_is_no_other_run(shards: Path, tmp_path: Path) -> None:
    values = plain_config(shards, tmp_path)
    train(make_config(values, source="test"), Start(max_seconds=1e-6))
    recipe = values["stages"][0]["recipe"]
    recipe |= {"flip": 0.5, "size": [32, 32]}
    assert train(make_config(values, source="test"), resume=True).step == 6
    recipe["flip"] = 0.25
    with pytest.raises(ConfigError, match=r"another run: stages.0.recipe.flip was 0.5 and is 0.25; give the old"):
        train(make_config(values, source="test"), resume=True)


def test_clips_of_a_failed_step_can_be_seen_again_without_the_data(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = plain_config(shards, tmp_path / "run")
    train(make_config(values, source="test"), Start(max_seconds=1e-6))
    path = tmp_path / "run" / "checkpoint-1.pt"
    fields = torch.load(path, weights_only=True)
    fields["model"]["decoder.pred.bias"] += torch.inf
    torch.save(fields, path)
    with pytest.raises(NonFiniteLossError, match=r"\n  kept for tools/train.py --replay: .*step-2-rank-0.pt") as caught:
        train(make_config(values, source="test"), resume=True)
    file = tmp_path / "run" / "replay" / "step-2-rank-0.pt"
    assert train_tool(["--replay", str(file)]) == 1
    said = capsys.readouterr().out
    assert said.count("step 2: clip ") == str(caught.value).count("\n  clip ") == 2
    assert "first output that is not finite: model.decoder.pred" in said
    kept = torch.load(file, weights_only=True)
    kept["model"]["decoder.pred.bias"].zero_()
    torch.save(kept, file)
    assert train_tool(["--replay", str(file)]) == 0


def test_the_scaler_of_fp16_goes_on_where_it_was(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where fp16 is not used otherwise."""
    monkeypatch.setattr("trainers.running.stages.precision_on", lambda *_: "fp16")
    monkeypatch.setattr("trainers.running.stages.GradScaler", partial(GradScaler, growth_interval=2))
    stage = {"steps": 4, "precision": "fp16"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(make_config(staged(shards, whole, stage, checkpoint_every=1), source="test"))
    parts.mkdir()
    (parts / "checkpoint-2.pt").write_bytes((whole / "checkpoint-2.pt").read_bytes())
    train(make_config(staged(shards, parts, stage, checkpoint_every=1), source="test"), resume=True)
    scalers = [read_checkpoint(whole / f"checkpoint-{step}.pt").scaler for step in (1, 2, 4)]
    assert scalers[0] != scalers[1]
    assert scalers[1]["_growth_tracker"] == 1  # which a scaler that begins anew does not have
    assert read_checkpoint(parts / "checkpoint-4.pt").scaler == scalers[-1]
    assert_equal_states(whole / "checkpoint-4.pt", parts / "checkpoint-4.pt")
    reports = [record for record in read_journal(whole) if record["kind"] == "report"]
    assert [record["loss_scale"] for record in reports] == [scaler["scale"] for scaler in scalers[1:]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, when its compiler is imported
def test_compiled_networks_have_the_names_of_plain_ones_in_their_checkpoints(shards: Path, tmp_path: Path) -> None:
    plain, compiled = (make_model(small_config(shards, tmp_path, compile=wanted), None) for wanted in (False, True))
    assert all(part._compiled_call_impl is not None for part in compiled.children())
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_deterministic_kernels_are_the_runs_alone(shards: Path, tmp_path: Path) -> None:
    seen: list[bool] = []
    config = small_config(shards, tmp_path, deterministic=True)
    train(
        config,
        Start(max_seconds=1e-6),
        on_step=lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()),
    )
    assert (seen, torch.are_deterministic_algorithms_enabled()) == ([True], False)


def test_the_start_is_told_in_a_few_lines_and_its_files_hold_the_rest(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SECRET_TOKEN", "do-not-write-me")
    train(small_config(shards, tmp_path), Start(max_seconds=1e-6))
    before_the_first_report = caplog.text.partition("step 1/6")[0]
    assert before_the_first_report.count("\n") < 12
    assert "max_gap 2 from step 0, 1 from step 3" in before_the_first_report
    environment = yaml.safe_load((tmp_path / "environment.yaml").read_text())
    assert environment["environment"]["SLURM_JOB_ID"] == "17"
    assert environment["versions"]["commit"]
    assert all("do-not-write-me" not in path.read_text() for path in tmp_path.glob("*.yaml"))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"accumulate": 3}, "batch_size 2 does not divide into 3 parts to accumulate"),
        ({"optimizer": {"name": "adamm"}}, "optimizer.name"),
        ({"clip_gradients": 0}, "clip_gradients"),
        ({"ema": 1.0}, "ema"),
    ],
)
def test_options_of_a_stage_out_of_range_are_refused(
    shards: Path, tmp_path: Path, stage: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(staged(shards, tmp_path, stage), source="test")
