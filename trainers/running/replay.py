"""The clips of a failed step as a file: seen again anywhere, without the data set, with the weights of that step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.weight_files import load_strictly
from pipelines.types import Batch, Normalisation
from shards.errors import DataError
from shards.storage.paths import replacing
from trainers.config import make_config
from trainers.methods import METHODS
from trainers.objectives import OBJECTIVES
from trainers.records.checkpoint_writer import copied
from trainers.running.batches import arguments_of, inputs_of, part_of
from trainers.running.stage_run import StageRun
from trainers.running.stages import make_autocast, precision_on

FORMAT = "vosforge replay 1"
TENSORS = [name for name, field in Batch.__dataclass_fields__.items() if "Tensor" in str(field.type)]


def keep_clips(
    path: Path,
    stage: StageRun,
    batch: Batch,
    clips: Sequence[int],
    *,
    model: Mapping[str, Tensor],
    described: Mapping[str, Any],
) -> Path:
    """Write clips of a batch, and all that is needed to compute their loss again. Returns `path`.

    clips: positions in the batch. model: state of the network. described: plain values of the run: `config`, `stage`
    (its position), `versions`.
    """
    kept = [_kept_clip(stage, part_of(batch, slice(clip, clip + 1))) for clip in clips]
    fields = {"format": FORMAT, "step": stage.first_step + batch.step + 1, "stage_step": batch.step}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save({**fields, **described, "model": dict(model), "clips": kept}, file)
    return path


def _kept_clip(stage: StageRun, clip: Batch) -> dict[str, Any]:
    tensors = {name: value.cpu().clone() for name in TENSORS if (value := getattr(clip, name)) is not None}
    arguments = arguments_of(stage.objective, clip)
    return {
        "described": stage.describe(clip, 0),
        "tensors": tensors,
        "normalisation": dataclasses.asdict(clip.normalisation),
        # Other objects could not be read back without executing what a file names.
        "arguments": {name: copied(value) for name, value in arguments.items() if _is_plain(value)},
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str | Tensor)


@dataclass(frozen=True, slots=True)
class ReplayedClip:
    """A clip seen again: its loss and the parts of it, and the first module whose output was not finite ("" if none).

    input_range: least and greatest value of its pixels, normalised.
    """

    described: str
    loss: float
    metrics: dict[str, float]
    first_bad_module: str
    input_range: tuple[float, float]


def replay(path: Path, device: torch.device) -> tuple[int, list[ReplayedClip]]:
    """The step a replay file is of, and its clips, computed again one at a time. Raises DataError for another file."""
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        known = isinstance(kept, dict) and kept.get("format") == FORMAT
    except Exception as error:  # torch raises what the bytes make of it
        remedy = "give a file of the run's folder replay/"
        raise DataError(path, expected="a replay file", found=f"{error}", remedy=remedy) from error
    if not known:
        remedy = "give a file of the run's folder replay/"
        raise DataError(path, expected=f"a replay file ({FORMAT})", found="another file", remedy=remedy)
    config = make_config(kept["config"], source=path)
    stage = config.stages[kept["stage"]]
    model = METHODS[config.model.name].restore(kept["config"]["model"], kept["model"])
    load_strictly(model, kept["model"], path)
    objective = OBJECTIVES[stage.objective.name](model, stage.objective).to(device)
    autocast = make_autocast(device, precision_on(device, stage.precision))
    clips = []
    for clip in kept["clips"]:
        batch = _batch_of(clip, kept["stage_step"], device)
        with torch.no_grad(), autocast(), _FirstBadModule(objective) as watch:
            arguments = {name: _on(device, value) for name, value in clip["arguments"].items()}
            loss, metrics = objective(*inputs_of(batch), **arguments)
        values = {name: float(value) for name, value in metrics.items()}
        extremes = (float(batch.images.min()), float(batch.images.max()))
        clips.append(ReplayedClip(clip["described"], float(loss), values, watch.name, extremes))
    return kept["step"], clips


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_on(device, item) for item in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _batch_of(clip: Mapping[str, Any], step: int, device: torch.device) -> Batch:
    tensors = {name: tensor.to(device) for name, tensor in clip["tensors"].items()}
    return Batch(step=step, plans=(), normalisation=Normalisation(**clip["normalisation"]), **tensors)


class _FirstBadModule:
    """Finds the first innermost module of a network whose output is not finite."""

    def __init__(self, network: nn.Module) -> None:
        self.name = ""
        self._network = network
        self._handles: list[Any] = []

    def __enter__(self) -> _FirstBadModule:
        for name, module in self._network.named_modules():
            if not any(module.children()):
                self._handles.append(module.register_forward_hook(self._note(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, name: str) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not self.name and isinstance(output, Tensor) and not torch.isfinite(output).all():
                self.name = name

        return note
