"""One row of a recipe made ready to run: its data, loader, objective, optimiser and precision."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from pipelines.assembly import make_assembly
from pipelines.executors import make_executor
from pipelines.loader import ClipLoader, share_of_batch
from pipelines.order.sampling import MixEntry
from pipelines.source import ClipSource
from pipelines.types import Batch
from shards.errors import DataError
from shards.reader import ShardSet
from shards.shard_files import ShardOpener
from shards.sources import SOURCES
from shards.sources.own_videos import SPLIT as OWN_VIDEOS
from trainers.config import Config, ConfigError, DataEntry, Precision, Stage
from trainers.objectives import OBJECTIVES, UsesSource
from trainers.optimizers import make_optimizer, restore_moments
from trainers.records.checkpoints import Checkpoint
from trainers.running.averaging import WeightAverage
from trainers.running.distributed import Ranks, Threads, wrap
from trainers.running.stage_run import StageRun

logger = logging.getLogger(__name__)

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process runs: its rank, device and threads."""

    ranks: Ranks
    device: torch.device
    threads: Threads


def open_sources(config: Config, stack: ExitStack) -> list[ClipSource]:
    """The clips of every stage. All data is opened before the first step; `stack` closes it."""
    opener = config.reading.opener()
    return [_open_source(config, position, opener, stack) for position in range(len(config.stages))]


def _open_source(config: Config, position: int, opener: ShardOpener, stack: ExitStack) -> ClipSource:
    stage, entries = config.stages[position], []
    for row, entry in enumerate(stage.data):
        try:
            entries.append(_open_entry(entry, opener, stack))
        except DataError as error:
            error.add_note(_where_it_is_named(stage, position, row))
            raise
    pooled = None if stage.pooled is None else stage.pooled.order()
    return ClipSource(
        entries,
        stage.clip_recipe(),
        seed=config.seed + position,
        steps=stage.steps,
        batch_size=stage.batch_size,
        pooled=pooled,
    )


def _where_it_is_named(stage: Stage, position: int, row: int) -> str:
    """The key of a data set that cannot be opened; of one that is not there, how to build it or do without."""
    key, path = f"stages.{position}.data", stage.data[row].path
    words = f"config key {key}.{row}.path"
    if path.exists():
        return words
    kind = path.name if path.name in SOURCES else "KIND"
    words += f"; build it: tools/shard.py {kind} FOLDER {path.parent}"
    others = [_row(entry) for number, entry in enumerate(stage.data) if number != row]
    return words + (f"; or do without it: '{key}=[{', '.join(others)}]'" if others else "")


def _row(entry: DataEntry) -> str:
    """As it is written in a config; what is at its default is left out."""
    usual = {field.name: field.default for field in dataclasses.fields(DataEntry)}
    given = {name: value for name, value in dataclasses.asdict(entry).items() if value != usual[name]}
    return "{" + ", ".join(f"{name}: {value}" for name, value in given.items()) + "}"


def _open_entry(entry: DataEntry, opener: ShardOpener, stack: ExitStack) -> MixEntry:
    shard_set = stack.enter_context(ShardSet.open(entry.path, opener))
    # Not any lone split: a set of validation videos is never trained on unless its split is named.
    usual = OWN_VIDEOS if list(shard_set.manifest.splits) == [OWN_VIDEOS] else "train"
    return MixEntry(shard_set, entry.split or usual, entry.repeat, entry.gap_step, entry.clips_per_pass)


def require_shares(config: Config, world_size: int) -> None:
    """Raise ConfigError for a stage whose batch does not divide among the ranks, or a rank's clips into its parts."""
    for position, stage in enumerate(config.stages):
        key = f"stages.{position}.batch_size"
        try:
            share = len(share_of_batch(stage.batch_size, 0, world_size))
        except ValueError as error:
            problem, _, remedy = str(error).partition("; ")
            raise ConfigError(config.name, problem, key=key, remedy=remedy) from error
        if share % stage.accumulate:
            problem = f"{share} clips of each of {world_size} ranks do not divide into accumulate={stage.accumulate}"
            raise ConfigError(config.name, problem, key=key, remedy="give another accumulate or batch_size")


def executor_name(config: Config, device: torch.device) -> str:
    """The executor of the config, with "auto" decided."""
    if config.executor != "auto":
        return config.executor
    return "dali" if device.type == "cuda" else "cpu"


def precision_on(device: torch.device, wanted: Precision) -> Precision:
    """`wanted`, but fp32 for fp16 on a CPU, where it does not exist. The caller says so."""
    return "fp32" if wanted == "fp16" and device.type == "cpu" else wanted


def make_autocast(device: torch.device, precision: Precision) -> Callable[[], AbstractContextManager[None]]:
    """Makes the context a forward pass runs in."""
    if precision == "fp32":
        return nullcontext
    return partial(torch.autocast, device.type, AUTOCAST_TYPES[precision])


@contextmanager
def open_stage(
    config: Config,
    position: int,
    source: ClipSource,
    model: nn.Module,
    place: Place,
    *,
    done: int,
    checkpoint: Checkpoint | None,
) -> Iterator[StageRun]:
    """Stage `position` of `config` with `done` of its steps behind it; its threads end with the block.

    checkpoint: where optimiser, scaler and average go on from; None at the start of a stage.
    """
    stage = config.stages[position]
    precision = precision_on(place.device, stage.precision)
    objective = OBJECTIVES[stage.objective.name](model, stage.objective)
    if isinstance(objective, UsesSource):
        objective.use_source(source)
    optimizer = make_optimizer(objective.parameters(), stage.optimizer, weight_decay=stage.weight_decay)
    average = None if stage.ema is None else WeightAverage(model, stage.ema)
    scaler = GradScaler(place.device.type, enabled=precision == "fp16")
    if checkpoint is not None:
        if not restore_moments(optimizer, checkpoint.optimizer):  # by --force alone
            logger.warning("stage %s: the checkpoint's optimiser was another one; moments begin at zero", stage.name)
        if checkpoint.scaler and scaler.is_enabled():
            scaler.load_state_dict(checkpoint.scaler)
        if average is not None and checkpoint.trained:
            average.load_state_dict(checkpoint.model)
    with ExitStack() as stack:
        loader = _open_loader(config, source, place, done, stack)
        yield StageRun(
            name=stage.name,
            steps=stage.steps,
            first_step=sum(earlier.steps for earlier in config.stages[:position]),
            batch_size=stage.batch_size,
            learning_rate=stage.learning_rate,
            loader=loader,
            objective=objective,
            module=wrap(objective, place.ranks, place.device),
            optimizer=optimizer,
            scaler=scaler,
            autocast=make_autocast(place.device, precision),
            ranks=place.ranks,
            describe=partial(_describe, source),
            device=place.device,
            accumulate=stage.accumulate,
            clip_gradients=stage.clip_gradients,
            average=average,
        )


def _open_loader(config: Config, source: ClipSource, place: Place, done: int, stack: ExitStack) -> ClipLoader:
    name = executor_name(config, place.device)
    try:
        executor = make_executor(name, threads=place.threads.loading, device=place.device)
    except ModuleNotFoundError as error:
        problem = f"{name} cannot be used here: {error}"
        raise ConfigError(config.name, problem, key="executor", remedy="install it, or give executor=cpu") from error
    stack.callback(executor.close)
    positions = share_of_batch(source.batch_size, place.ranks.rank, place.ranks.world_size)
    loader = ClipLoader(
        source,
        executor,
        make_assembly(source.recipe, place.device),
        rank=place.ranks.rank,
        world_size=place.ranks.world_size,
        start_step=done,
        look_ahead=config.look_ahead,
        threads=config.reading.threads,
        reading=config.reading.reading(source, positions),
        on_corrupt=config.reading.on_corrupt,
        device=place.device,
    )
    return stack.enter_context(loader)


def _describe(source: ClipSource, batch: Batch, position: int) -> str:
    return source.describe(batch.plans[position])
