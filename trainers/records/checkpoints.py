"""Checkpoints: everything a run needs to go on, in one file that is either whole or not there."""

from __future__ import annotations

import errno
import logging
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from models.weight_files import load_strictly
from shards.errors import DataError
from shards.storage.paths import remove_unfinished, replacing
from trainers.config_reading import ConfigError
from trainers.methods import METHODS

logger = logging.getLogger(__name__)

PATTERN = "checkpoint-*.pt"

FREE_ENDINGS = (".accumulate", ".objective.cache", ".objective.cache_folder", ".objective.fit_at_once")

# Names that are no text, sizes that lead nowhere (EINVAL of a seek): found by flipping bits.
UNREADABLE = (zipfile.BadZipFile, RuntimeError, ValueError, pickle.UnpicklingError, EOFError, struct.error, OSError)

FORMAT = 2
"""What a checkpoint file holds. 1 had neither this number nor weights apart from their average."""

FREE_KEYS = frozenset(
    {
        *(
            "name",
            "output",
            "device",
            "threads",
            "look_ahead",
            "report_every",
            "checkpoint_every",
            "keep",
            "milestone_every",
            "hang_seconds",
            "tensorboard",
            "plots",
        ),
        *("start_from", "model.key_weights", "model.value_weights", "model.trunk_weights", "channels_last", "compile"),
        *("activation_checkpointing", "deterministic"),
    }
)
"""Config keys that may differ when a run goes on: they move it, show it or speed it up, but do not say what it is.

Paths of data are free as well, since the fingerprints say what lies there; so are validation, which changes nothing
of the training, and the parts in which clips are accumulated, which follow from the number of ranks.
"""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` updates, counted over all its stages.

    model: state dict of the network, no prefix: what to use, their average where the stage averages its weights.
    trained: the weights in training then, {} where they are those of `model`. optimizer, scaler: state dicts, of the
    stage that `step` lies in. config: the run's config as plain values. fingerprints: per stage, of its shard sets in
    order. versions: of what made it.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    config: dict[str, Any]
    fingerprints: list[list[str]]
    versions: dict[str, str]
    trained: dict[str, Tensor] = field(default_factory=dict)
    format: int = FORMAT


def _none(_step: int) -> bool:
    return False


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int, is_kept: Callable[[int], bool] = _none) -> Path:
    """Write checkpoint-<step>.pt into `folder`, then remove all but the newest `keep` and those that are kept for good.

    is_kept: whether the checkpoint of a step is. Returns its path.

    Raises OSError if it cannot be written; the checkpoints that are there stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    path = folder / f"checkpoint-{checkpoint.step}.pt"
    fields = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    try:
        with replacing(path) as file:
            torch.save(fields, file)
    except (OSError, RuntimeError) as error:
        # Closing its archive, torch covers the reason (a full disk, say) with a message about positions.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise OSError(f"{path} cannot be written ({reason}); make room and go on with --resume") from error
    # Later ones can only be damaged ones that a resume has passed over: they must not push out what is whole.
    until_now = [each for each in list_checkpoints(folder) if (step_of(each) or 0) <= checkpoint.step]
    for old in until_now[keep:]:
        if not is_kept(step_of(old) or 0):
            old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files in `folder`, the one with the most steps first."""
    paths = [path for path in folder.glob(PATTERN) if step_of(path) is not None]
    return sorted(paths, key=lambda path: step_of(path) or 0, reverse=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file, tensors on the CPU. Raises DataError if it is cut short, damaged or something else."""
    remedy = "use an older checkpoint of the run, or copy the file again"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not compare checksums
        if damaged is not None:
            raise DataError(
                path, expected="an undamaged checkpoint", found=f"a wrong checksum in {damaged}", remedy=remedy
            )
        fields = torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise DataError(path, expected="a complete checkpoint", found=f"none ({error})", remedy=remedy) from error
    names = Checkpoint.__dataclass_fields__.keys()
    missing = names - {"format", "trained"} - fields.keys() if isinstance(fields, dict) else {"everything"}
    if missing:
        found = f"a file without {', '.join(sorted(missing))}"
        raise DataError(path, expected="a checkpoint written by tools/train.py", found=found, remedy=remedy)
    if fields.get("format", 1) != FORMAT:
        found = f"format {fields.get('format', 1)}, written by commit {fields['versions'].get('commit', 'unknown')}"
        raise DataError(
            path,
            expected=f"a checkpoint of format {FORMAT}",
            found=found,
            remedy="go on with that version of the program; of its weights alone, start_from=FILE makes a new run",
        )
    return Checkpoint(**{name: fields[name] for name in names})


def read_newest(folder: Path) -> tuple[Path, Checkpoint] | None:
    """The newest readable checkpoint of a run; None if it has none at all.

    An unreadable one is passed over with a warning that names it. Raises DataError if no one of several can be read.
    """
    failure = None
    for path in list_checkpoints(folder):
        try:
            return path, read_checkpoint(path)
        except DataError as error:
            logger.warning("passing over a checkpoint: %s", error)
            failure = error
    if failure is not None:
        raise failure
    return None


def load_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a checkpoint in eval mode on the CPU, and what the file says of itself (all but the states)."""
    checkpoint = read_checkpoint(path)
    model = model_of(checkpoint, path)
    info = {name: getattr(checkpoint, name) for name in ("step", "config", "fingerprints", "versions")}
    return model.eval(), info


def model_of(checkpoint: Checkpoint, path: Path) -> nn.Module:
    """The network that a checkpoint (read from `path`) holds, which changes its kind between stages; on the CPU."""
    described = checkpoint.config["model"]
    model = METHODS[described["name"]].restore(described, checkpoint.model)
    load_strictly(model, checkpoint.model, path)
    return model


def refuse_another_run(
    path: Path, checkpoint: Checkpoint, config: Mapping[str, Any], fingerprints: list[list[str]], *, force: bool = False
) -> None:
    """Raise ConfigError, naming every difference, unless `config` on this data goes on with what `checkpoint` began.

    force: only warn, except of another network, which the weights do not fit.
    """
    different = dict(_differences(checkpoint.config, config))
    changes = list(different.values())
    changes += [
        f"stages.{stage}.data.{entry}: the shard set was {before[:12]} and is {now[:12]}"
        for stage, sets in enumerate(zip(checkpoint.fingerprints, fingerprints, strict=False))
        for entry, (before, now) in enumerate(zip(*sets, strict=False))  # those that come or go are named above
        if before != now
    ]
    if changes and force and not any(key.partition(".")[0] == "model" for key in different):
        logger.warning("%s: going on as another run, by force: %s", path, ", ".join(changes))
    elif changes:
        remedy = "give the old values to go on with this run, or another output=FOLDER to start a new one"
        raise ConfigError(path, f"is a checkpoint of another run: {', '.join(changes)}", remedy=remedy)


def warn_of_other_versions(path: Path, checkpoint: Checkpoint, versions: Mapping[str, str]) -> None:
    """Log how this program, its libraries included, differs from the one that wrote the checkpoint at `path`."""
    names = sorted(checkpoint.versions.keys() | versions.keys())
    pairs = {name: (checkpoint.versions.get(name, "none"), versions.get(name, "none")) for name in names}
    changes = [f"{name} was {_short(old)} and is {_short(new)}" for name, (old, new) in pairs.items() if old != new]
    if changes:
        logger.warning("%s was written by another version: %s", path.name, ", ".join(changes))


def _short(version: str) -> str:
    """A commit by its first 12 digits."""
    digits, plus, changes = version.partition("+")
    return digits[:12] + plus + changes


def _differences(old: object, new: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, what it was and is) of all that differs and is not free, sorted; a table is one value.

    Of sections of two kinds (by `name`) only the kind is said, of a row that comes or goes only its name.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        is_section = bool(key) and not key.rpartition(".")[2].isdecimal()
        is_other_kind = is_section and old.get("name") != new.get("name")
        for name in ["name"] if is_other_kind else sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif _has_rows(old) and _has_rows(new):
        for number, (before, now) in enumerate(zip_longest(old, new)):
            yield from _differences(before, now, f"{key}.{number}")
    elif old != new and not _is_free(key):
        yield key, f"{key} was {_named(old)!r} and is {_named(new)!r}"


def _has_rows(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


def _named(value: object) -> object:
    return value.get("name", value.get("path", dict(value))) if isinstance(value, Mapping) else value


def _is_free(key: str) -> bool:
    if key.startswith(("validation", "reading")) or key.endswith(FREE_ENDINGS):
        return True
    return key in FREE_KEYS or (".data." in key and key.endswith(".path"))


def step_of(path: Path) -> int | None:
    """The steps in the name of a checkpoint file; None for another name."""
    digits = path.stem.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() else None
