"""What a run says before its first step: versions, commit, config, sizes that follow from it, videos left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from torch import nn

from pipelines.source import ClipSource
from shards.storage import write_bytes
from trainers.config import Config, Stage, as_plain
from trainers.journal import read_journal
from trainers.provenance import package_folders
from trainers.stages import Place, executor_name, precision_on

logger = logging.getLogger(__name__)


def describe_start(
    config: Config,
    place: Place,
    sources: Sequence[ClipSource],
    model: nn.Module,
    *,
    step: int,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Log all there is to know about a run and write its config.yaml; returns the same as a record of the journal."""
    text = yaml.safe_dump(as_plain(config), sort_keys=False)
    write_bytes(config.folder / "config.yaml", text.encode())
    stages = [_describe_stage(*pair, place) for pair in zip(config.stages, sources, strict=True)]
    record = {
        "kind": "start",
        "step": step,
        "versions": dict(versions),
        "imported_from": package_folders(),
        "world_size": place.ranks.world_size,
        "device": str(place.device),
        "executor": executor_name(config, place.device),
        "compute_threads": place.threads.compute,
        "loading_threads": place.threads.loading,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stages": stages,
        "config": as_plain(config),
    }
    plain = {key: value for key, value in record.items() if key not in ("kind", "config")}
    logger.info("%s: %s step %d", config.folder, "resuming at" if step else "starting at", step)
    logger.info("%s", yaml.safe_dump(plain, sort_keys=False, width=200).rstrip())
    logger.info("config (%s):\n%s", config.folder / "config.yaml", text.rstrip())
    _warn_of_precision(config, place)
    if step:
        _warn_of_executor(config, executor_name(config, place.device))
    return record


def _describe_stage(stage: Stage, source: ClipSource, place: Place) -> dict[str, Any]:
    return {
        "name": stage.name,
        "clips_per_rank": stage.batch_size // place.ranks.world_size,
        "clips_in_all": stage.steps * stage.batch_size,
        "clips_per_pass": sum(source.mix.weights),
        "precision": precision_on(place.device, stage.precision),
        "learning_rate_from_step": dict(stage.learning_rate.switches(stage.steps)),
        "data": list(source.mix.report()),
    }


def _warn_of_precision(config: Config, place: Place) -> None:
    for stage in config.stages:
        used = precision_on(place.device, stage.precision)
        if used != stage.precision:
            logger.warning("stage %s: no %s on %s, training in %s", stage.name, stage.precision, place.device, used)


def _warn_of_executor(config: Config, executor: str) -> None:
    """Say when a run goes on with other pixels: `auto` follows the device, which may change between its parts."""
    before = next((r["executor"] for r in reversed(read_journal(config.folder)) if "executor" in r), executor)
    if before != executor:
        text = "pixels come from the executor %s now, and came from %s; give executor=%s for the same ones"
        logger.warning(text, executor, before, before)
