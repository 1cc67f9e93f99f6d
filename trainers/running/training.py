"""From a config to a trained model: opens data, builds the network, runs the stages, keeps checkpoints and journal."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from trainers.config import Config, ConfigError, as_plain, make_config
from trainers.records.checkpoint_writer import CheckpointWriter
from trainers.records.checkpoints import (
    Checkpoint,
    list_checkpoints,
    refuse_another_run,
    step_of,
    warn_of_other_versions,
)
from trainers.records.journal import Journal
from trainers.records.run_plots import write_curves
from trainers.running.distributed import (
    choose_device,
    naming_lost_ranks,
    process_group,
    rank_name,
    read_ranks,
    share_threads,
)
from trainers.running.numerics import deterministic_kernels
from trainers.running.stage_run import Ending
from trainers.running.stage_sequence import SLOW_START, Outcome, Run, is_kept_for_good, note_checkpoint, run_stages
from trainers.running.stages import Place, open_sources, require_shares
from trainers.running.start_report import describe_start
from trainers.running.starting import find_start, hold_folder, make_model, position_of, require_one_start
from trainers.running.stopping import StoppedAtOnce, StopRequest, catch_stop_signals
from trainers.running.validation import Best, Validator, remove_results
from trainers.running.watchdog import watch

__all__ = ["Outcome", "Start", "position_of", "train"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """How a run is started, which is no part of what it is.

    resume: go on from the newest checkpoint in its folder, if any. force: even if that is another run's, with a
    warning that names the differences. max_seconds: from now, after which the run ends as if it had been signalled.
    """

    resume: bool = False
    force: bool = False
    max_seconds: float | None = None


def train(
    config: Config,
    start: Start | None = None,
    *,
    resume: bool = False,
    on_step: Callable[[int, float], object] | None = None,
) -> Outcome:
    """Run the stages of `config` as `start` says; resume=True is short for Start(resume=True).

    One process, or one of several started by torchrun. Sets torch's number of threads for this process. SIGTERM and
    SIGUSR1 end the step, save and return Ending.STOPPED; Ctrl-C does the same with Ending.INTERRUPTED. Before the first
    step there is nothing to save: the former end the preparations at once, the latter raises KeyboardInterrupt.
    on_step(step, loss) is called after every update with the loss of the global batch.
    Raises ConfigError for a run that is there already or under way and for another one's checkpoint, DataError for bad
    data, ValueError for numbers that do not fit, NonFiniteLossError.
    """
    start = start or Start(resume=resume)
    deadline = None if start.max_seconds is None else time.monotonic() + start.max_seconds
    ranks = read_ranks(os.environ)
    alone = ranks.world_size == 1
    try:
        catching = catch_stop_signals(at_once=True, deadline=deadline) if alone else nullcontext()
        with catching as stop, naming_lost_ranks(ranks), deterministic_kernels(config.deterministic):
            return _train(config, start, on_step=on_step or _ignore, stop=stop, deadline=deadline)
    except StoppedAtOnce:
        newest = next(iter(list_checkpoints(config.folder)), None)
        step = 0 if newest is None else step_of(newest) or 0
        return Outcome(Ending.STOPPED, step, sum(stage.steps for stage in config.stages), newest)


def _train(
    config: Config,
    start: Start,
    *,
    on_step: Callable[[int, float], object],
    stop: StopRequest | None,
    deadline: float | None,
) -> Outcome:
    place = _find_place(config)
    ranks = place.ranks
    with ExitStack() as stack:
        if ranks.is_first:
            stack.enter_context(hold_folder(config.folder))
        found = find_start(config, resume=start.resume)
        sources = open_sources(config, stack)
        fingerprints = [[entry.dataset.fingerprint for entry in source.mix.entries] for source in sources]
        if found is not None:
            _refuse_another_run(found, config, fingerprints, force=start.force)
        checkpoint = None if found is None else found[1]
        model = make_model(config, found)
        validator = _open_validation(config, model, place)
        watchdog = stack.enter_context(watch(config.hang_seconds, rank_name(ranks), config.folder))
        if watchdog is not None:
            watchdog.begin("meeting the other ranks", SLOW_START)
        stack.enter_context(process_group(ranks, place.device, watched=watchdog is not None))
        model = model.to(place.device)
        step = 0 if checkpoint is None else checkpoint.step
        require_one_start(config, step, fingerprints, ranks)
        if watchdog is not None:
            watchdog.begin("")
        if stop is None:  # no sooner: meeting the other ranks is a wait in native code, where no handler gets a turn
            stop = stack.enter_context(catch_stop_signals(deadline=deadline))
        run = Run(config, place, model, fingerprints, on_step, stop, validator=validator, watchdog=watchdog)
        if found is not None:
            warn_of_other_versions(*found, run.versions)
        if ranks.is_first:
            journal = _keep_records(run, stack, step)
            journal.write(describe_start(config, place, sources, model, step=step, versions=run.versions))
        stop.at_once = False
        return run_stages(run, sources, checkpoint)


def _find_place(config: Config) -> Place:
    ranks = read_ranks(os.environ)
    require_shares(config, ranks.world_size)
    try:
        device = choose_device(config.device, ranks)
    except ValueError as error:
        problem, _, remedy = str(error).partition("; ")
        raise ConfigError(config.name, problem, key="device", remedy=remedy or "give device=cpu") from error
    threads = share_threads(config.threads, ranks, device)
    torch.set_num_threads(threads.compute)
    return Place(ranks, device, threads)


def _open_validation(config: Config, model: nn.Module, place: Place) -> Validator | None:
    if config.validation is None:
        return None
    try:
        return Validator(config.validation, config.model.name, model, place, config.folder)
    except (ValueError, OSError) as error:
        error.add_note("config key validation")
        raise


def _refuse_another_run(
    found: tuple[Path, Checkpoint], config: Config, fingerprints: list[list[str]], *, force: bool
) -> None:
    path, checkpoint = found
    try:  # what the config of a checkpoint does not say had its default then
        checkpoint = replace(checkpoint, config=as_plain(make_config(checkpoint.config, source=path)))
    except ConfigError:
        logger.debug("%s: its config is not one of this version", path)
    refuse_another_run(path, checkpoint, as_plain(config), fingerprints, force=force)


def _keep_records(run: Run, stack: ExitStack, step: int) -> Journal:
    """Open what the first rank writes; on leaving, everything is on disk and plotted."""
    config = run.config
    remove_results(config.folder)
    if config.plots:
        stack.callback(write_curves, config.folder)
    journal = stack.enter_context(Journal(config.folder, step=step, tensorboard=config.tensorboard))
    validator = run.validator
    best = None if validator is None else Best(config.folder, validator.measure, validator.standard, step=step)
    writer = CheckpointWriter(
        config.folder,
        keep=config.keep,
        is_kept=is_kept_for_good(config, best),
        on_written=partial(note_checkpoint, journal),
    )
    run.journal, run.best, run.writer = journal, best, stack.enter_context(writer)
    return journal


def _ignore(_step: int, _loss: float) -> None:
    """Nobody wants to hear of steps."""
