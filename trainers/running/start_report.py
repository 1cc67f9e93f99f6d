"""What a run says before its first step: a few lines for people, all of it in files of its folder."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml
from torch import nn

from pipelines.order.curriculum import Table
from pipelines.recipes import clip_lengths
from pipelines.source import ClipSource
from shards.storage.paths import write_bytes
from shards.wording import counted
from trainers.config import Config, Stage, as_plain
from trainers.methods.rde import RdeNetwork
from trainers.records.journal import read_journal
from trainers.records.provenance import package_folders, read_changes
from trainers.running.distributed import rank_name
from trainers.running.memory_needs import StepNeeds, warn_of_memory
from trainers.running.stages import Place, executor_name, precision_on

logger = logging.getLogger(__name__)

RECIPE_TABLES = ("max_gap", "smallest_crop", "clip_length")
CLUSTER_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)
"""Of the environment only these are written down: others may hold secrets."""


def describe_start(
    config: Config,
    place: Place,
    sources: Sequence[ClipSource],
    model: nn.Module,
    *,
    step: int,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Log what a run is, write its config.yaml and environment.yaml; returns all of it as a record of the journal."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    changes = read_changes()
    stages = [_describe_stage(*pair, place) for pair in zip(config.stages, sources, strict=True)]
    record = {
        "kind": "start",
        "step": step,
        "command": sys.argv,
        "environment": {name: os.environ[name] for name in CLUSTER_VARIABLES if name in os.environ},
        "versions": dict(versions),
        "changes": _changes_file(changes),
        "imported_from": package_folders(),
        "world_size": place.ranks.world_size,
        "first_rank": rank_name(place.ranks),
        "device": str(place.device),
        "device_name": torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else "CPU",
        "executor": executor_name(config, place.device),
        "compute_threads": place.threads.compute,
        "loading_threads": place.threads.loading,
        "parameters": num_parameters,
        "stages": stages,
        "config": as_plain(config),
    }
    _write(config, "config.yaml", as_plain(config))
    if changes:
        write_bytes(config.folder / _changes_file(changes), changes)
    _write(
        config, "environment.yaml", {name: value for name, value in record.items() if name not in ("kind", "config")}
    )
    _say(config, record)
    _warn_of_precision(config, place)
    _warn_of_memory(config, place, num_parameters)
    if step:
        _warn_of_executor(config, executor_name(config, place.device))
    return record


def _changes_file(changes: bytes) -> str:
    """Named by its contents, so that a run's earlier starts keep theirs; "" for no changes."""
    return f"changes-{hashlib.sha256(changes).hexdigest()[:8]}.patch" if changes else ""


def _write(config: Config, name: str, values: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(values), sort_keys=False, width=120)
    write_bytes(config.folder / name, text.encode())


def _say(config: Config, record: Mapping[str, Any]) -> None:
    step, versions = record["step"], record["versions"]
    where = f"resuming at step {step}" if step else "starting at step 0"
    size = f"{config.model.name}, {record['parameters'] / 1e6:.4g} M parameters"
    made = f"commit {versions['commit'][:12]}{'+changes' if versions['commit'].endswith('+changes') else ''}"
    logger.info("%s: %s | %s | %s | torch %s", config.folder, where, size, made, versions["torch"])
    alone = record["world_size"] == 1
    device = "cpu" if record["device"] == "cpu" else f"{record['device']} ({record['device_name']})"
    place = f"{counted(record['world_size'], 'process', 'processes')} on {device}"
    threads = f"threads {record['compute_threads']} to compute, {record['loading_threads']} to load"
    each = "" if alone else ", each"
    logger.info("%s | executor %s | %s%s | seed %d", place, record["executor"], threads, each, config.seed)
    for stage, described in zip(config.stages, record["stages"], strict=True):
        share = "" if alone else f" ({described['clips_per_rank']} of each process)"
        clips = f"{counted(stage.batch_size, 'clip')}{share}"
        rates = ", ".join(f"{rate:g} from step {at}" for at, rate in described["learning_rate_from_step"].items())
        text = "stage %s: %s x %s | %s | learning rate %s"
        logger.info(text, stage.name, counted(stage.steps, "step"), clips, described["precision"], rates)
        for name in RECIPE_TABLES:
            values = ", ".join(f"{value:g} from step {at}" for at, value in described[f"{name}_from_step"].items())
            if values:
                logger.info("  %s %s", name, values)
        for line in described["data"]:
            logger.info("  %s", line)
    logger.info("config.yaml, environment.yaml and journal.jsonl in %s say the rest", config.folder)


def _describe_stage(stage: Stage, source: ClipSource, place: Place) -> dict[str, Any]:
    tables = {name: getattr(stage.clip_recipe(), name, None) for name in RECIPE_TABLES}  # stills have no gap
    return {
        "name": stage.name,
        "clips_per_rank": stage.batch_size // place.ranks.world_size,
        "clips_in_all": stage.steps * stage.batch_size,
        "clips_per_pass_from_step": {first: sum(weights) for first, weights in source.mix.phases},
        "precision": precision_on(place.device, stage.precision),
        "learning_rate_from_step": dict(stage.learning_rate.switches(stage.steps)),
        **{
            f"{name}_from_step": dict(table.switches(stage.steps)) if isinstance(table, Table) else {}
            for name, table in tables.items()
        },
        "data": list(source.mix.report()),
    }


def _warn_of_precision(config: Config, place: Place) -> None:
    for stage in config.stages:
        used = precision_on(place.device, stage.precision)
        if used != stage.precision:
            logger.warning("stage %s: no %s on %s, training in %s", stage.name, stage.precision, place.device, used)


def _warn_of_memory(config: Config, place: Place, num_parameters: int) -> None:
    if place.device.type != "cpu" or not isinstance(config.model, RdeNetwork):
        return
    needs = [
        StepNeeds(
            stage.name,
            stage.objective.name,
            stage.clip_recipe().size,
            stage.batch_size // place.ranks.world_size // stage.accumulate,
            clip_lengths(stage.clip_recipe())[-1],
            config.activation_checkpointing,
        )
        for stage in config.stages
    ]
    processes = place.ranks.local_world_size
    warn_of_memory(needs, width=config.model.width, num_parameters=num_parameters, processes=processes)


def _warn_of_executor(config: Config, executor: str) -> None:
    """Say when a run goes on with other pixels: `auto` follows the device, which may change between its parts."""
    before = next((r["executor"] for r in reversed(read_journal(config.folder)) if "executor" in r), executor)
    if before != executor:
        text = "pixels come from the executor %s now, and came from %s; give executor=%s for the same ones"
        logger.warning(text, executor, before, before)
