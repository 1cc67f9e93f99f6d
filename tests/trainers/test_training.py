"""Whole small runs: exact resume, stopping, several stages, what a run writes, what it refuses."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from shards.errors import DataError
from shards.locks import hold_alone
from tests.trainers.small_runs import assert_equal_states, build_shards, plain_config, small_config, two_stages
from trainers.config import ConfigError, as_plain, make_config
from trainers.records.checkpoints import list_checkpoints, load_model, read_checkpoint
from trainers.records.journal import FILE_NAME, read_journal
from trainers.running.loop import Ending, NonFiniteLossError
from trainers.running.training import Outcome, position_of, train


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def whole_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, float]]]:
    """Six steps at once: the run's folder, and (step, loss) of each."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    losses: list[tuple[int, float]] = []
    train(small_config(shards, folder), on_step=lambda step, loss: losses.append((step, loss)))
    return folder, losses


def stop_after(step: int, number: signal.Signals) -> Callable[[int, float], None]:
    def on_step(done: int, _loss: float) -> None:
        if done == step:
            os.kill(os.getpid(), number)

    return on_step


def test_a_run_takes_every_step_and_its_losses_are_finite(whole_run: tuple[Path, list[tuple[int, float]]]) -> None:
    folder, losses = whole_run
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    assert all(0 < loss < 100 for _, loss in losses)
    assert [path.name for path in list_checkpoints(folder)] == [f"checkpoint-{step}.pt" for step in (6, 4, 2, 0)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stopped_and_resumed_run_equals_one_run_bit_for_bit(
    shards: Path, tmp_path: Path, whole_run: tuple[Path, list[tuple[int, float]]], number: signal.Signals
) -> None:
    config = small_config(shards, tmp_path / "run")
    losses: list[tuple[int, float]] = []
    first = train(config, on_step=stop_after(2, number))
    # The signal arrives after step 2 was settled, so one more step ends before the run does.
    assert (first.step, first.steps, first.checkpoint.name) == (3, 6, "checkpoint-3.pt")
    assert first.ending is (Ending.INTERRUPTED if number == signal.SIGINT else Ending.STOPPED)
    second = train(config, resume=True, on_step=lambda step, loss: losses.append((step, loss)))
    assert (second.ending, second.step) == (Ending.FINISHED, 6)
    assert losses == whole_run[1][3:]
    assert_equal_states(tmp_path / "run" / "checkpoint-6.pt", whole_run[0] / "checkpoint-6.pt")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_first_step_ends_the_preparations_at_once(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    config = small_config(shards, tmp_path / "run")

    def open_and_be_stopped(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)
        raise AssertionError("the signal was not answered")

    with monkeypatch.context() as patch:
        patch.setattr("trainers.running.training.open_sources", open_and_be_stopped)
        assert train(config) == Outcome(Ending.STOPPED, 0, 6, None)
    assert train(config, on_step=stop_after(1, number)).step == 2
    with monkeypatch.context() as patch:
        patch.setattr("trainers.running.training.open_sources", open_and_be_stopped)
        outcome = train(config, resume=True)
    assert outcome == Outcome(Ending.STOPPED, 2, 6, config.folder / "checkpoint-2.pt")


def test_a_second_run_in_a_folder_at_work_is_refused(shards: Path, tmp_path: Path) -> None:
    config = small_config(shards, tmp_path)
    with hold_alone(tmp_path) as held:
        assert held
        for resume in (False, True):
            with pytest.raises(ConfigError, match=r"another run is at work here; wait, stop it, or give output=FOLDER"):
                train(config, resume=resume)
    assert not list_checkpoints(tmp_path)

    def refuse_a_second(_step: int, _loss: float) -> None:
        with pytest.raises(ConfigError, match="another run is at work here"):
            train(config, resume=True)

    assert train(config, on_step=refuse_a_second).ending is Ending.FINISHED


def test_going_on_with_another_executor_is_said(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = small_config(shards, tmp_path)
    train(config, on_step=stop_after(1, signal.SIGTERM))
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text().replace('"executor": "cpu"', '"executor": "dali"', 1))
    train(config, resume=True, on_step=stop_after(3, signal.SIGTERM))
    message = "pixels come from the executor cpu now, and came from dali; give executor=dali for the same ones"
    assert caplog.text.count(message) == 1
    train(config, resume=True)
    assert caplog.text.count(message) == 1


def test_reporting_and_saving_do_not_touch_the_result(
    shards: Path, tmp_path: Path, whole_run: tuple[Path, list[tuple[int, float]]]
) -> None:
    changes: dict[str, Any] = {"report_every": 5, "checkpoint_every": 100, "look_ahead": 1, "keep": 1}
    train(small_config(shards, tmp_path / "run", **changes))
    assert_equal_states(tmp_path / "run" / "checkpoint-6.pt", whole_run[0] / "checkpoint-6.pt")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-6.pt"]


def test_resume_falls_back_to_the_checkpoint_before_a_damaged_one(
    shards: Path, tmp_path: Path, whole_run: tuple[Path, list[tuple[int, float]]], caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(shards, tmp_path / "run")
    train(config, on_step=stop_after(3, signal.SIGTERM))
    newest = tmp_path / "run" / "checkpoint-4.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    train(config, resume=True)
    assert "passing over a checkpoint" in caplog.text
    assert str(newest) in caplog.text
    assert_equal_states(tmp_path / "run" / "checkpoint-6.pt", whole_run[0] / "checkpoint-6.pt")


def test_the_journal_says_every_report_once_even_after_resume(
    shards: Path, tmp_path: Path, whole_run: tuple[Path, list[tuple[int, float]]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = small_config(shards, tmp_path / "run", checkpoint_every=4)
    train(config)
    (tmp_path / "run" / "checkpoint-6.pt").unlink()
    train(config, resume=True)
    reports = [record for record in read_journal(tmp_path / "run") if record["kind"] == "report"]
    assert [record["step"] for record in reports] == [2, 4, 6]
    pairs = [(a + b) / 2 for (_, a), (_, b) in zip(whole_run[1][::2], whole_run[1][1::2], strict=True)]
    assert [record["loss"] for record in reports] == pytest.approx(pairs, rel=1e-5)
    assert [record["learning_rate"] for record in reports] == [1e-4, 1e-5, 1e-5]
    assert reports[-1]["top_p"] == pytest.approx(0.15)
    assert {"loss_frame_1", "divergence_4", "cross_entropy"} <= reports[-1].keys()
    # The resumed process took two steps, too few to time; the whole run took six.
    assert "step_ms" not in reports[-1]
    whole = [record for record in read_journal(whole_run[0]) if record["kind"] == "report"]
    assert {"step_ms", "data_ms", "mean_data_ms", "clips_per_second"} <= whole[-1].keys()
    assert "step 6/6 small | loss" in caplog.text


def test_a_run_says_what_it_is_and_at_the_end_what_it_read(
    whole_run: tuple[Path, list[tuple[int, float]]], shards: Path
) -> None:
    folder, _ = whole_run
    start = read_journal(folder)[0]
    assert start["kind"] == "start"
    assert start["versions"]["torch"] == torch.__version__
    assert (start["world_size"], start["device"], start["executor"], start["compute_threads"]) == (1, "cpu", "cpu", 1)
    (stage,) = start["stages"]
    assert stage["clips_per_rank"] == 2
    assert stage["data"] == ["davis2017 val: 2 videos x 1 = 2 of 2 clips; none left out"]
    end = next(record for record in read_journal(folder) if record["kind"] == "data")
    assert end["clips"] == 12
    assert 0 <= end["clips_without_object"] <= 2
    # Twelve frames of over 500 bytes, each once: what the read plan resident takes, which a busy machine may choose.
    assert end["bytes_read"] > 12 * 500
    saved = make_config(yaml.safe_load((folder / "config.yaml").read_text()), source="saved")
    assert as_plain(saved) == as_plain(small_config(shards, folder))


def test_a_model_comes_back_from_its_checkpoint(whole_run: tuple[Path, list[tuple[int, float]]]) -> None:
    path = whole_run[0] / "checkpoint-6.pt"
    model, info = load_model(path)
    assert not model.training
    assert (info["step"], info["config"]["model"]["width"]) == (6, 0.0625)
    saved = read_checkpoint(path).model
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


def test_stages_follow_each_other_and_resume_at_their_border_and_inside(shards: Path, tmp_path: Path) -> None:
    values = two_stages(plain_config(shards, tmp_path / "whole", checkpoint_every=1))
    train(make_config(values, source="test"))
    names = [record["stage"] for record in read_journal(tmp_path / "whole") if record["kind"] == "report"]
    assert names == ["small", "second", "second"]
    # A new stage is a new optimiser: its count of updates starts again.
    assert read_checkpoint(tmp_path / "whole" / "checkpoint-3.pt").optimizer["state"][0]["step"] == 1
    for step in (2, 3):
        config = make_config(values | {"output": str(tmp_path / f"from{step}")}, source="test")
        config.folder.mkdir()
        (config.folder / f"checkpoint-{step}.pt").write_bytes(
            (tmp_path / "whole" / f"checkpoint-{step}.pt").read_bytes()
        )
        train(config, resume=True)
        assert_equal_states(config.folder / "checkpoint-5.pt", tmp_path / "whole" / "checkpoint-5.pt")


def test_positions_of_steps_among_stages(shards: Path, tmp_path: Path) -> None:
    config = make_config(two_stages(plain_config(shards, tmp_path)), source="test")
    assert [position_of(config, step) for step in (0, 1, 2, 4, 5)] == [(0, 0), (0, 1), (1, 0), (1, 2), (2, 0)]


def test_a_finished_run_resumes_to_the_same_end(whole_run: tuple[Path, list[tuple[int, float]]], shards: Path) -> None:
    outcome = train(small_config(shards, whole_run[0]), resume=True)
    assert (outcome.ending, outcome.step) == (Ending.FINISHED, 6)


def test_a_folder_with_a_run_is_refused_without_resume(
    whole_run: tuple[Path, list[tuple[int, float]]], shards: Path
) -> None:
    with pytest.raises(ConfigError, match=r"holds a run already; add --resume .* or give another output=FOLDER"):
        train(small_config(shards, whole_run[0]))


def test_resume_with_another_config_names_every_difference(
    whole_run: tuple[Path, list[tuple[int, float]]], shards: Path
) -> None:
    values = plain_config(shards, whole_run[0], seed=7, report_every=1)
    values["stages"][0]["batch_size"] = 4
    message = r"6.pt: is a checkpoint of another run: seed was 14159265 and is 7, stages.0.batch_size was 2 and is 4;"
    with pytest.raises(ConfigError, match=message):
        train(make_config(values, source="test"), resume=True)


def test_resume_on_other_data_is_refused_and_on_moved_data_goes_on(
    whole_run: tuple[Path, list[tuple[int, float]]], shards: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(shards)
    assert train(small_config(moved, whole_run[0]), resume=True).step == 6
    other = build_shards(tmp_path / "other", num_frames=7)
    with pytest.raises(ConfigError, match=r"stages.0.data.0: the shard set was [0-9a-f]{12} and is [0-9a-f]{12}"):
        train(small_config(other, whole_run[0]), resume=True)


def test_a_run_that_failed_before_its_first_step_is_in_nobodys_way(shards: Path, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"kind": "start", "step": 0}\n')
    train(small_config(shards, tmp_path), on_step=stop_after(1, signal.SIGTERM))
    assert [record["kind"] for record in read_journal(tmp_path)][:3] == ["start", "start", "checkpoint"]


def test_an_executor_that_is_not_installed_is_a_clear_refusal(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("DALI is not installed; pip install 'vosforge[cuda130]'")

    monkeypatch.setattr("trainers.running.stages.make_executor", missing)
    with pytest.raises(
        ConfigError, match=r"executor: dali cannot be used here: DALI is not installed.*; .*executor=cpu"
    ):
        train(small_config(shards, tmp_path, executor="dali"))


def test_resume_without_any_checkpoint_starts_at_step_0(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train(small_config(shards, tmp_path / "run"), resume=True, on_step=stop_after(1, signal.SIGTERM))
    assert "nothing to resume" in caplog.text


def test_weights_can_come_from_another_run(
    whole_run: tuple[Path, list[tuple[int, float]]], shards: Path, tmp_path: Path
) -> None:
    end = whole_run[0] / "checkpoint-6.pt"
    train(small_config(shards, tmp_path / "run", start_from=str(end)), on_step=stop_after(1, signal.SIGTERM))
    start = read_checkpoint(tmp_path / "run" / "checkpoint-0.pt")
    assert (start.step, start.optimizer["state"]) == (0, {})
    saved = read_checkpoint(end).model
    assert all(torch.equal(start.model[name], tensor) for name, tensor in saved.items())


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_clips(shards: Path, tmp_path: Path) -> None:
    values = plain_config(shards, tmp_path / "run")
    train(make_config(values, source="test"), on_step=stop_after(1, signal.SIGTERM))
    path = tmp_path / "run" / "checkpoint-2.pt"
    fields = torch.load(path, weights_only=True)
    fields["model"]["decoder.pred.bias"] += torch.inf
    torch.save(fields, path)
    with pytest.raises(
        NonFiniteLossError, match=r"step 3: .*\n  clip 4 \(step 2\): davis2017, video .*\n  clip 5"
    ) as caught:
        train(make_config(values, source="test"), resume=True)
    assert "lower the learning rate or look at these clips" in str(caught.value)
    assert list_checkpoints(tmp_path / "run")[0] == path


def test_bad_bytes_stop_the_run_with_the_place(tmp_path: Path) -> None:
    root = build_shards(tmp_path / "data")
    tar = next(root.glob("*.tar"))
    data = bytearray(tar.read_bytes())
    for start in range(len(data)):  # every JPEG of the set
        if data[start : start + 3] == b"\xff\xd8\xff":
            data[start + 40] ^= 1
    tar.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"davis2017-000000.tar"):
        train(small_config(root, tmp_path / "run"))


def test_mixed_precision_and_layout_are_choices(
    shards: Path, tmp_path: Path, whole_run: tuple[Path, list[tuple[int, float]]], caplog: pytest.LogCaptureFixture
) -> None:
    expected = dict(whole_run[1])
    for name, changes in {"layout": {"channels_last": True}, "fp16": {}, "bf16": {}}.items():
        values = plain_config(shards, tmp_path / name, **changes)
        values["stages"][0]["precision"] = name if name in ("fp16", "bf16") else "fp32"
        losses: dict[int, float] = {}
        train(make_config(values, source="test"), on_step=lambda step, loss, losses=losses: losses.update({step: loss}))
        tolerance = 0.05 if name == "bf16" else 1e-3
        assert losses == pytest.approx(expected, rel=tolerance), name
    assert "stage small: no fp16 on cpu, training in fp32" in caplog.text


def test_tensorboard_gets_the_reports(shards: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(small_config(shards, tmp_path / "run", tensorboard=True))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("small/loss")
    reports = [record for record in read_journal(tmp_path / "run") if record["kind"] == "report"]
    assert [(s.step, pytest.approx(s.value)) for s in scalars] == [(r["step"], r["loss"]) for r in reports]


def test_the_checkpoint_file_holds_plain_values_and_tensors_only(
    whole_run: tuple[Path, list[tuple[int, float]]],
) -> None:
    fields = torch.load(whole_run[0] / "checkpoint-6.pt", weights_only=True)
    names = {"step", "model", "trained", "optimizer", "scaler", "config", "fingerprints", "versions", "format"}
    assert set(fields) == names
    assert json.loads(json.dumps(fields["config"])) == fields["config"]
