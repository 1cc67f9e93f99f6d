"""The stages of a run, one after the other: what the loop's hooks do, checkpoints, validation, journal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch
from torch import nn

from pipelines.source import ClipSource
from pipelines.types import Batch
from shards.wording import counted
from trainers.config import Config, as_plain
from trainers.records.checkpoint_writer import CheckpointWriter, Written
from trainers.records.checkpoints import Checkpoint
from trainers.records.journal import FILE_NAME, Journal, Report
from trainers.records.provenance import read_versions
from trainers.running.averaging import WeightAverage
from trainers.running.distributed import gather_objects, sum_over_ranks
from trainers.running.loop import train_stage
from trainers.running.replay import keep_clips
from trainers.running.stage_run import Ending, Hooks, StageRun
from trainers.running.stages import Place, open_stage
from trainers.running.starting import fit_to_stage, position_of
from trainers.running.stopping import StopRequest
from trainers.running.validation import Best, Validated, Validator
from trainers.running.watchdog import Watchdog

logger = logging.getLogger(__name__)

SLOW_START = 3.0
"""How much longer than others a stage's first step may take: data is first reached, kernels chosen, parts compiled."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: after `step` of `steps` updates, with its newest checkpoint."""

    ending: Ending
    step: int
    steps: int
    checkpoint: Path | None  # None: stopped before there was one


@dataclass
class Run:
    """What the parts of one run share. journal, writer and best are the first rank's."""

    config: Config
    place: Place
    model: nn.Module
    fingerprints: list[list[str]]
    on_step: Callable[[int, float], object]
    stop: StopRequest
    journal: Journal | None = None
    writer: CheckpointWriter | None = None
    best: Best | None = None
    validator: Validator | None = None
    watchdog: Watchdog | None = None
    versions: dict[str, str] = field(default_factory=read_versions)
    patience: float = SLOW_START

    def on_phase(self, words: str) -> None:
        """See Hooks."""
        if self.watchdog is not None:
            self.watchdog.begin(words, self.patience)


def run_stages(run: Run, sources: Sequence[ClipSource], checkpoint: Checkpoint | None) -> Outcome:
    """Train from the checkpoint's step, or the first, to the end of the last stage or until the run is stopped."""
    config = run.config
    step = 0 if checkpoint is None else checkpoint.step
    first, done = position_of(config, step)
    ending = Ending.FINISHED if checkpoint is None else _validate_missed(run, checkpoint)
    for position in range(first, len(config.stages)):
        if ending is not Ending.FINISHED:
            break
        run.model = fit_to_stage(run.model, config, position, run.place.device)
        # At the border of two stages the checkpoint's optimiser belongs to the one that has ended.
        state = checkpoint if done else None
        with open_stage(
            config, position, sources[position], run.model, run.place, done=done, checkpoint=state
        ) as stage:
            hooks = _hooks(run, stage, position)
            if step == 0:
                hooks.save(0)  # finds out now, not at the first checkpoint, that the folder cannot be written
                _finish_writing(run)
            run.patience = SLOW_START
            ending = train_stage(stage, hooks, run.stop)
            step = stage.first_step + stage.loader.next_step
            _finish_writing(run)
            _report_data(run, stage, step)
            if stage.average is not None and ending is Ending.FINISHED:
                stage.average.settle()
        done = 0
    total = sum(stage.steps for stage in config.stages)
    return Outcome(ending, step, total, config.folder / f"checkpoint-{step}.pt")


def is_kept_for_good(config: Config, best: Best | None) -> Callable[[int], bool]:
    """Whether the checkpoint of a step is more than one of the newest: a stage's end, a milestone, the best."""
    ends = {sum(stage.steps for stage in config.stages[: count + 1]) for count in range(len(config.stages))}

    def is_kept(step: int) -> bool:
        is_milestone = bool(config.milestone_every and step and step % config.milestone_every == 0)
        return is_milestone or step in ends or (best is not None and step == best.step)

    return is_kept


def note_checkpoint(journal: Journal, written: Written) -> None:
    """A line of the journal; called when the file is there."""
    costs = {"stall_ms": 1000 * written.stall_seconds, "write_ms": 1000 * written.write_seconds}
    journal.write({"kind": "checkpoint", "step": written.step, "path": written.path.name, **costs})


def _hooks(run: Run, stage: StageRun, position: int) -> Hooks:
    def report(report: Report) -> None:
        if run.journal is not None:
            run.journal.report(report)

    def on_step(step: int, loss: float) -> None:
        if run.writer is not None:
            run.writer.check()
        run.patience = 1.0
        run.on_step(step, loss)

    config = run.config
    return Hooks(
        on_step,
        report,
        partial(_save, run, stage),
        config.report_every,
        config.checkpoint_every,
        validate=partial(_validate, run, stage.name, stage.average),
        validate_every=None if config.validation is None else config.validation.every,
        on_phase=run.on_phase,
        keep_failure=partial(_keep_failure, run, stage, position),
    )


def _save(run: Run, stage: StageRun, step: int) -> None:
    if run.writer is None:
        return
    state = run.model.state_dict()
    checkpoint = Checkpoint(
        step=step,
        model=state if stage.average is None else stage.average.state_dict(),
        trained={} if stage.average is None else state,
        optimizer=stage.optimizer.state_dict(),
        scaler=stage.scaler.state_dict(),
        config=as_plain(run.config),
        fingerprints=run.fingerprints,
        versions=run.versions,
    )
    run.writer.submit(checkpoint)


def _finish_writing(run: Run) -> None:
    if run.writer is not None:
        run.writer.finish()


def _validate(run: Run, stage: str, average: WeightAverage | None, step: int) -> Ending | None:
    """Score the held set; the first rank notes what came out. Why it was given up, if it was, agreed by all ranks."""
    if run.validator is None:
        return None
    if run.config.compile:
        run.patience = SLOW_START  # each new size of frames is compiled for
    is_stopping = lambda: run.stop.requested or run.stop.interrupted  # noqa: E731
    found = run.validator.score(run.model, average, is_stopping, run.on_phase)
    run.patience = 1.0
    if found is None:
        interrupted = any(gather_objects(run.stop.interrupted, run.place.ranks))
        if run.journal is not None:
            logger.info("step %d: validation given up, the run was asked to stop; --resume begins with it", step)
        return Ending.INTERRUPTED if interrupted else Ending.STOPPED
    _note_figures(run, run.validator.measure, stage, step, found)
    return None


def _note_figures(run: Run, measure: str, stage: str, step: int, found: Validated) -> None:
    if run.journal is None or run.best is None:
        return
    best = run.best.offer(step, found.figures)
    record = {"seconds": found.seconds, "videos": found.num_videos, "best": best}
    run.journal.validation({"kind": "validation", "step": step, "stage": stage, **found.figures, **record})
    words = "the best so far" if best else f"best after step {run.best.step}"
    text = "step %d: %s %.4f on %s in %.0f s, %s"
    logger.info(text, step, measure, found.figures[measure], counted(found.num_videos, "video"), found.seconds, words)


def _validate_missed(run: Run, checkpoint: Checkpoint) -> Ending:
    """Make up for the validation of a checkpoint that a run was stopped or killed in, so that the journal has all."""
    config, step = run.config, checkpoint.step
    _, done = position_of(config, step)
    if config.validation is None or not step or (done and step % config.validation.every):
        return Ending.FINISHED
    missing = run.journal is not None and not run.journal.holds("validation", step)
    if not any(gather_objects(missing, run.place.ranks)):
        return Ending.FINISHED
    run.model.load_state_dict(checkpoint.model)  # the average, where the stage has one
    stage = config.stages[min(position_of(config, step - 1)[0], len(config.stages) - 1)]  # fewer steps, by force
    ending = _validate(run, stage.name, None, step)
    if done and checkpoint.trained:
        run.model.load_state_dict(checkpoint.trained)
    return ending or Ending.FINISHED


def _keep_failure(run: Run, stage: StageRun, position: int, batch: Batch, clips: Sequence[int]) -> Path | None:
    rank = run.place.ranks.rank
    path = run.config.folder / "replay" / f"step-{stage.first_step + batch.step + 1}-rank-{rank}.pt"
    described = {"config": as_plain(run.config), "stage": position, "versions": run.versions}
    return keep_clips(path, stage, batch, clips, model=run.model.state_dict(), described=described)


def _report_data(run: Run, stage: StageRun, step: int) -> None:
    """Say what this process's part of the stage read on all ranks, and which clips were not what was planned."""
    seen = stage.loader.statistics
    numbers = [
        seen.clips,
        seen.requests,
        seen.retries,
        seen.bytes_read,
        seen.bytes_used,
        seen.trials,
        int(seen.misses or 0),
    ]
    sums = sum_over_ranks(torch.tensor(numbers, device=run.place.device), run.place.ranks).tolist()
    names = ("clips", "requests", "retries", "bytes_read", "bytes_used", "choices_passed_over", "clips_without_object")
    record = dict(zip(names, sums, strict=True))
    of_ranks = gather_objects(seen.substitutes, run.place.ranks)
    replaced = sorted((asdict(each) for rank in of_ranks for each in rank), key=itemgetter("number"))
    clips, missed = counted(record["clips"], "clip"), counted(record["clips_without_object"], "clip")
    trials, times = (
        counted(record["choices_passed_over"], "choice"),
        record["bytes_read"] / max(1, record["bytes_used"]),
    )
    text = "stage %s: %s, %.1f MB read (%.2f of what they use), %s showed no object, %s passed over"
    logger.info(text, stage.name, clips, record["bytes_read"] / 1e6, times, missed, trials)
    if record["retries"]:
        text = "stage %s: the storage did not answer well at once; requests made again: %d"
        logger.warning(text, stage.name, record["retries"])
    if replaced:
        text = "stage %s: %s of another video than planned, which is damaged (in %s); the first: %s"
        logger.warning(text, stage.name, counted(len(replaced), "clip"), FILE_NAME, replaced[0]["found"])
    if run.journal is not None:
        run.journal.write({"kind": "data", "step": step, "stage": stage.name, **record, "substitutes": replaced})
