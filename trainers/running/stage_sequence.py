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
from trainers.config import Config, as_plain
from trainers.records.checkpoint_writer import CheckpointWriter, Written
from trainers.records.checkpoints import Checkpoint
from trainers.records.journal import FILE_NAME, Journal, Report
from trainers.records.provenance import read_versions
from trainers.running.distributed import gather_objects, sum_over_ranks
from trainers.running.loop import train_stage
from trainers.running.replay import keep_clips
from trainers.running.stage_run import Ending, Hooks, StageRun
from trainers.running.stages import Place, open_stage
from trainers.running.starting import fit_to_stage, position_of
from trainers.running.stopping import StopRequest
from trainers.running.validation import MEASURE, Best, Validated, Validator
from trainers.running.watchdog import Watchdog

logger = logging.getLogger(__name__)


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

    def on_phase(self, words: str) -> None:
        """See Hooks."""
        if self.watchdog is not None:
            self.watchdog.begin(words)


def run_stages(run: Run, sources: Sequence[ClipSource], checkpoint: Checkpoint | None) -> Outcome:
    """Train from the checkpoint's step, or the first, to the end of the last stage or until the run is stopped."""
    config = run.config
    step = 0 if checkpoint is None else checkpoint.step
    first, done = position_of(config, step)
    ending = Ending.FINISHED
    for position in range(first, len(config.stages)):
        run.model = fit_to_stage(run.model, config, position, run.place.device)
        # At the border of two stages the checkpoint's optimiser belongs to the one that has ended.
        state = checkpoint if done else None
        with open_stage(
            config, position, sources[position], run.model, run.place, done=done, checkpoint=state
        ) as stage:
            hooks = _hooks(run, stage, position)
            given_up = None
            if step == 0:
                hooks.save(0)  # finds out now, not at the first checkpoint, that the folder cannot be written
                _finish_writing(run)
            elif state is not None:
                given_up = _validate_again(run, stage, step)
            ending = given_up or train_stage(stage, hooks, run.stop)
            step = stage.first_step + stage.loader.next_step
            _finish_writing(run)
            _report_data(run, stage, step)
            if stage.average is not None and ending is Ending.FINISHED:
                stage.average.settle()
        if ending is not Ending.FINISHED:
            break
        done = 0
    total = sum(stage.steps for stage in config.stages)
    return Outcome(ending, step, total, config.folder / f"checkpoint-{step}.pt")


def is_kept_for_good(config: Config, best: Best) -> Callable[[int], bool]:
    """Whether the checkpoint of a step is more than one of the newest: a stage's end, a milestone, the best."""
    ends = {sum(stage.steps for stage in config.stages[: count + 1]) for count in range(len(config.stages))}

    def is_kept(step: int) -> bool:
        is_milestone = bool(config.milestone_every and step and step % config.milestone_every == 0)
        return is_milestone or step in ends or step == best.step

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
        run.on_step(step, loss)

    config = run.config
    return Hooks(
        on_step,
        report,
        partial(_save, run, stage),
        config.report_every,
        config.checkpoint_every,
        validate=partial(_validate, run, stage),
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


def _validate(run: Run, stage: StageRun, step: int) -> Ending | None:
    """Score the held set; the first rank notes what came out. Why it was given up, if it was, agreed by all ranks."""
    if run.validator is None:
        return None
    run.on_phase("validating")
    is_stopping = lambda: run.stop.requested or run.stop.interrupted  # noqa: E731
    found = run.validator.score(run.model, stage.average, is_stopping, partial(run.on_phase, "validating"))
    run.on_phase("")
    if found is None:
        interrupted = any(gather_objects(run.stop.interrupted, run.place.ranks))
        is_end = step == stage.first_step + stage.steps
        if run.journal is not None:
            later = "at the end of a stage it is left out" if is_end else "it is made up for on resume"
            logger.info("step %d: validation given up, the run was asked to stop; %s", step, later)
        return Ending.INTERRUPTED if interrupted else Ending.STOPPED
    _note_figures(run, stage, step, found)
    return None


def _note_figures(run: Run, stage: StageRun, step: int, found: Validated) -> None:
    if run.journal is None or run.best is None:
        return
    best = run.best.offer(step, found.figures)
    record = {"seconds": found.seconds, "videos": found.num_videos, "best": best}
    run.journal.validation({"kind": "validation", "step": step, "stage": stage.name, **found.figures, **record})
    words = "the best so far" if best else f"best after step {run.best.step}"
    text = "step %d: %s %.4f on %d videos in %.0f s, %s"
    logger.info(text, step, MEASURE, found.figures[MEASURE], found.num_videos, found.seconds, words)


def _validate_again(run: Run, stage: StageRun, step: int) -> Ending | None:
    """Make up for the validation that a run stopped in, so that it is in the journal whatever happened."""
    options = run.config.validation
    if options is None or step % options.every:
        return None
    missing = run.journal is not None and not run.journal.holds("validation", step)
    return _validate(run, stage, step) if any(gather_objects(missing, run.place.ranks)) else None


def _keep_failure(run: Run, stage: StageRun, position: int, batch: Batch, clips: Sequence[int]) -> Path | None:
    rank = run.place.ranks.rank
    path = run.config.folder / "replay" / f"step-{stage.first_step + batch.step + 1}-rank-{rank}.pt"
    described = {"config": as_plain(run.config), "stage": position, "versions": run.versions}
    return keep_clips(path, stage, batch, clips, model=run.model.state_dict(), described=described)


def _report_data(run: Run, stage: StageRun, step: int) -> None:
    """Say what this process's part of the stage read on all ranks, and which clips were not what was planned."""
    seen = stage.loader.statistics
    counted = [seen.clips, seen.requests, seen.bytes_read, seen.bytes_used, seen.trials, int(seen.misses or 0)]
    sums = sum_over_ranks(torch.tensor(counted, device=run.place.device), run.place.ranks).tolist()
    names = ("clips", "requests", "bytes_read", "bytes_used", "choices_passed_over", "clips_without_object")
    record = dict(zip(names, sums, strict=True))
    of_ranks = gather_objects(seen.substitutes, run.place.ranks)
    replaced = sorted((asdict(each) for rank in of_ranks for each in rank), key=itemgetter("number"))
    text = "stage %s: %d clips, %.1f MB read (%.2f of what they use), %d clips showed no object, %d choices passed over"
    times = record["bytes_read"] / max(1, record["bytes_used"])
    misses, trials = record["clips_without_object"], record["choices_passed_over"]
    logger.info(text, stage.name, record["clips"], record["bytes_read"] / 1e6, times, misses, trials)
    if replaced:
        text = "stage %s: %d clips show another video because their own is damaged (in %s); the first: %s"
        logger.warning(text, stage.name, len(replaced), FILE_NAME, replaced[0]["found"])
    if run.journal is not None:
        run.journal.write({"kind": "data", "step": step, "stage": stage.name, **record, "substitutes": replaced})
