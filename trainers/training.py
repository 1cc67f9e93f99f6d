"""From a config to a trained model: opens data, builds the network, runs the stages, keeps checkpoints and journal."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.layers import use_channels_last
from shards.locks import hold_alone
from trainers.checkpoints import (
    Checkpoint,
    list_checkpoints,
    model_of,
    read_newest,
    refuse_another_run,
    save_checkpoint,
    step_of,
)
from trainers.config import Config, ConfigError, as_plain
from trainers.distributed import (
    Ranks,
    choose_device,
    gather_objects,
    process_group,
    read_ranks,
    share_threads,
    sum_over_ranks,
)
from trainers.journal import Journal, Report
from trainers.loop import Ending, Hooks, StageRun, train_stage
from trainers.methods import METHODS
from trainers.provenance import read_versions
from trainers.stages import Place, open_sources, open_stage
from trainers.start_report import describe_start
from trainers.stopping import StoppedAtOnce, StopRequest, catch_stop_signals

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: after `step` of `steps` updates, with its newest checkpoint."""

    ending: Ending
    step: int
    steps: int
    checkpoint: Path | None  # None: stopped before there was one


@dataclass
class _Run:
    """What the parts of one run share."""

    config: Config
    place: Place
    model: nn.Module
    fingerprints: list[list[str]]
    on_step: Callable[[int, float], object]
    stop: StopRequest
    journal: Journal | None  # of the first rank
    versions: dict[str, str] = field(default_factory=read_versions)


def train(config: Config, *, resume: bool = False, on_step: Callable[[int, float], object] | None = None) -> Outcome:
    """Run the stages of `config` from the start, or with `resume` from the newest checkpoint in its folder, if any.

    One process, or one of several started by torchrun. Sets torch's number of threads for this process. SIGTERM and
    SIGUSR1 end the step, save and return Ending.STOPPED; Ctrl-C does the same with Ending.INTERRUPTED. Before the first
    step there is nothing to save: the former end the preparations at once, the latter raises KeyboardInterrupt.
    on_step(step, loss) is called after every update with the loss of the global batch.
    Raises ConfigError for a run that is there already or under way and for another one's checkpoint, DataError for bad
    data, ValueError for numbers that do not fit, NonFiniteLossError.
    """
    alone = read_ranks(os.environ).world_size == 1
    try:
        with catch_stop_signals(at_once=True) if alone else nullcontext() as stop:
            return _train(config, resume=resume, on_step=on_step or _ignore, stop=stop)
    except StoppedAtOnce:
        newest = next(iter(list_checkpoints(config.folder)), None)
        step = 0 if newest is None else step_of(newest) or 0
        return Outcome(Ending.STOPPED, step, sum(stage.steps for stage in config.stages), newest)


def _train(
    config: Config, *, resume: bool, on_step: Callable[[int, float], object], stop: StopRequest | None
) -> Outcome:
    ranks = read_ranks(os.environ)
    device = choose_device(config.device, ranks)
    place = Place(ranks, device, share_threads(config.threads, ranks, device))
    torch.set_num_threads(place.threads.compute)
    with ExitStack() as stack:
        if ranks.is_first:
            stack.enter_context(_hold_folder(config.folder))
        found = _find_start(config, resume=resume)
        sources = open_sources(config, stack)
        fingerprints = [[entry.dataset.fingerprint for entry in source.mix.entries] for source in sources]
        if found is not None:
            refuse_another_run(*found, as_plain(config), fingerprints)
        stack.enter_context(process_group(ranks, device))
        checkpoint = None if found is None else found[1]
        model = _make_model(config, found).to(device)
        step = 0 if checkpoint is None else checkpoint.step
        _require_one_start(config, step, fingerprints, ranks)
        journal = None
        if ranks.is_first:
            journal = stack.enter_context(Journal(config.folder, step=step, tensorboard=config.tensorboard))
        if stop is None:  # no sooner: meeting the other ranks is a wait in native code, where no handler gets a turn
            stop = stack.enter_context(catch_stop_signals())
        run = _Run(config, place, model, fingerprints, on_step, stop, journal)
        if journal is not None:
            journal.write(describe_start(config, place, sources, model, step=step, versions=run.versions))
        stop.at_once = False
        return _run_stages(run, sources, checkpoint)


def position_of(config: Config, step: int) -> tuple[int, int]:
    """(stage, steps of it already done) of a run after `step` updates; (number of stages, 0) after the last."""
    for position, stage in enumerate(config.stages):
        if step < stage.steps:
            return position, step
        step -= stage.steps
    return len(config.stages), step


def _run_stages(run: _Run, sources: list[Any], checkpoint: Checkpoint | None) -> Outcome:
    config = run.config
    step = 0 if checkpoint is None else checkpoint.step
    first, done = position_of(config, step)
    ending = Ending.FINISHED
    for position in range(first, len(config.stages)):
        run.model = _fit_to_stage(run, position)
        # At the border of two stages the checkpoint's optimiser belongs to the one that has ended.
        state = checkpoint if done else None
        with open_stage(
            config, position, sources[position], run.model, run.place, done=done, checkpoint=state
        ) as stage:
            save = _saver(run, stage)
            if step == 0:
                save(0)  # finds out now, not at the first checkpoint, that the folder cannot be written
            ending = train_stage(stage, _hooks(run, save), run.stop)
            step = stage.first_step + stage.loader.next_step
            _report_data(run, stage, step)
        if ending is not Ending.FINISHED:
            break
        done = 0
    total = sum(stage.steps for stage in config.stages)
    return Outcome(ending, step, total, config.folder / f"checkpoint-{step}.pt")


def _report_data(run: _Run, stage: StageRun, step: int) -> None:
    """Say what this process's part of the stage read on all ranks, and how many clips showed no object."""
    seen = stage.loader.statistics
    counts = torch.tensor([seen.clips, seen.bytes_read, seen.trials, int(seen.misses or 0)], device=run.place.device)
    clips, num_bytes, trials, misses = sum_over_ranks(counts, run.place.ranks).tolist()
    record = {"clips": clips, "bytes_read": num_bytes, "choices_passed_over": trials, "clips_without_object": misses}
    text = "stage %s: %d clips, %.1f MB read, %d clips showed no object, %d choices of frames passed over for that"
    logger.info(text, stage.name, clips, num_bytes / 1e6, misses, trials)
    if run.journal is not None:
        run.journal.write({"kind": "data", "step": step, "stage": stage.name, **record})


def _hooks(run: _Run, save: Callable[[int], object]) -> Hooks:
    def report(report: Report) -> None:
        if run.journal is not None:
            run.journal.report(report)

    return Hooks(run.on_step, report, save, run.config.report_every, run.config.checkpoint_every)


def _saver(run: _Run, stage: StageRun) -> Callable[[int], object]:
    def save(step: int) -> None:
        if run.journal is None:
            return
        checkpoint = Checkpoint(
            step=step,
            model=run.model.state_dict(),
            optimizer=stage.optimizer.state_dict(),
            scaler=stage.scaler.state_dict(),
            config=as_plain(run.config),
            fingerprints=run.fingerprints,
            versions=run.versions,
        )
        path = save_checkpoint(run.config.folder, checkpoint, keep=run.config.keep)
        run.journal.write({"kind": "checkpoint", "step": step, "path": path.name})

    return save


@contextmanager
def _hold_folder(folder: Path) -> Iterator[None]:
    """Be the only run that writes into a folder; a lock of the system, which ends with the process however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with hold_alone(folder) as held:
        if not held:
            raise ConfigError(folder, "another run is at work here", remedy="wait, stop it, or give output=FOLDER")
        yield


def _find_start(config: Config, *, resume: bool) -> tuple[Path, Checkpoint] | None:
    """The checkpoint to go on from. Raises ConfigError for a folder in use unless resuming."""
    folder = config.folder
    if not resume:
        if list_checkpoints(folder):  # a journal alone is a run that failed before its first step
            remedy = "add --resume to go on with it, or give another output=FOLDER"
            raise ConfigError(folder, "holds a run already", remedy=remedy)
        return None
    found = read_newest(folder)
    if found is None:
        logger.info("nothing to resume in %s: starting from step 0", folder)
    return found


def _require_one_start(config: Config, step: int, fingerprints: list[list[str]], ranks: Ranks) -> None:
    """Raise ConfigError on every rank unless all found the same checkpoint and data: machines may see other disks."""
    starts = gather_objects((step, fingerprints), ranks)
    if any(found != fingerprints for _, found in starts):
        problem = "processes found different data at the same paths"
        raise ConfigError(config.folder, problem, remedy="give every machine the same shard sets")
    steps = [found for found, _ in starts]
    if len(set(steps)) > 1:
        problem = f"processes would start from different steps: {', '.join(map(str, steps))}"
        remedy = "let every machine see the same output folder, or copy the newest checkpoint into each"
        raise ConfigError(config.folder, problem, remedy=remedy)


def _fit_to_stage(run: _Run, position: int) -> nn.Module:
    """The run's network as the stage needs it: the same on every rank and on resume."""
    generator = torch.Generator().manual_seed(run.config.seed + position)
    model = METHODS[run.config.model.name].fit_to(run.model, run.config.stages[position].objective, generator)
    return model if model is run.model else set_up(model, run.config).to(run.place.device)


def _make_model(config: Config, found: tuple[Path, Checkpoint] | None) -> nn.Module:
    """The network with the weights it starts from, which are the same on every rank."""
    method = METHODS[config.model.name]
    if found is not None:
        return set_up(model_of(found[1], found[0]), config)
    generator = torch.Generator().manual_seed(config.seed)
    model = method.build(config.model, config.stages[0].objective, generator)
    if config.start_from is not None:
        method.start_from(model, config.start_from, generator)
    return set_up(model, config)


def set_up(model: nn.Module, config: Config) -> nn.Module:
    """Apply the choices of the config that change speed and memory only."""
    if config.activation_checkpointing:
        if not hasattr(model, "checkpoint_activations"):
            problem = f"the model {config.model.name} cannot compute activations again"
            raise ConfigError(config.name, problem, key="activation_checkpointing", remedy="leave it out")
        setattr(model, "checkpoint_activations", True)  # noqa: B010 - an attribute of some models only
    if config.channels_last:
        use_channels_last(model)
    if config.compile:
        for part in model.children():
            part.compile()
    return model


def _ignore(_step: int, _loss: float) -> None:
    """Nobody wants to hear of steps."""
