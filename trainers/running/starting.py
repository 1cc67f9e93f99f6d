"""How a run begins: alone in its folder, from a checkpoint or fresh, the same on every rank."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from models.layers import use_channels_last
from shards.locks import hold_alone
from trainers.config import Config, ConfigError
from trainers.methods import METHODS
from trainers.records.checkpoints import Checkpoint, list_checkpoints, model_of, read_newest
from trainers.running.distributed import Ranks, gather_objects

logger = logging.getLogger(__name__)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Be the only run that writes into a folder; a lock of the system, which ends with the process however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with hold_alone(folder) as held:
        if not held:
            raise ConfigError(folder, "another run is at work here", remedy="wait, stop it, or give output=FOLDER")
        yield


def find_start(config: Config, *, resume: bool) -> tuple[Path, Checkpoint] | None:
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


def require_one_start(config: Config, step: int, fingerprints: list[list[str]], ranks: Ranks) -> None:
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


def position_of(config: Config, step: int) -> tuple[int, int]:
    """(stage, steps of it already done) of a run after `step` updates; (number of stages, 0) after the last."""
    for position, stage in enumerate(config.stages):
        if step < stage.steps:
            return position, step
        step -= stage.steps
    return len(config.stages), step


def make_model(config: Config, found: tuple[Path, Checkpoint] | None) -> nn.Module:
    """The network with the weights it starts from, which are the same on every rank."""
    method = METHODS[config.model.name]
    if found is not None:
        path, checkpoint = found
        model = model_of(checkpoint, path)
        _, done = position_of(config, checkpoint.step)
        if done and checkpoint.trained:  # a stage that averages goes on with what it trains; the next begins averaged
            model.load_state_dict(checkpoint.trained)
        return set_up(model, config)
    generator = torch.Generator().manual_seed(config.seed)
    model = method.build(config.model, config.stages[0].objective, generator)
    if config.start_from is not None:
        method.start_from(model, config.start_from, generator)
    return set_up(model, config)


def fit_to_stage(model: nn.Module, config: Config, position: int, device: torch.device) -> nn.Module:
    """A run's network as a stage needs it: the same on every rank and on resume."""
    generator = torch.Generator().manual_seed(config.seed + position)
    fitted = METHODS[config.model.name].fit_to(model, config.stages[position].objective, generator)
    return model if fitted is model else set_up(fitted, config).to(device)


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
