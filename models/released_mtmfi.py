"""MTMFI's and FRTM's released checkpoints: pickles that name the authors' classes, read without running any of them.

A released file is a dict with the refiner's weights under `model` beside an optimiser state and meters of the authors'
own class. torch refuses such a file as unsafe, and without that rule it needs the authors' source. Here the few calls
that make tensors are known by name, and everything else in the file becomes an empty stand-in that is dropped.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from models.frozen_trunk import TrunkName, load_trunk
from models.mtmfi import REFINER_PREFIX, TRUNK_PREFIX, Mtmfi
from models.refiner import refiner_options
from models.weight_files import NoWeightsError, load_strictly, read_tensors, require_finite

KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
}
"""All that a released file may call; storages are torch's reader's own business."""


class StandIn:
    """Takes whatever a pickle does to an object of a class that is not known, and keeps nothing."""

    def __new__(cls, *_args: object, **_kwargs: object) -> StandIn:
        """Any arguments will do."""
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        """Nothing is kept."""

    def __call__(self, *_args: object, **_kwargs: object) -> StandIn:
        """Called in place of a function."""
        return StandIn()

    def __setstate__(self, state: object) -> None:
        """Nothing is kept."""

    def __setitem__(self, key: object, value: object) -> None:
        """Nothing is kept."""

    def append(self, value: object) -> None:
        """Nothing is kept."""

    def extend(self, values: object) -> None:
        """Nothing is kept."""


class TensorUnpickler(pickle.Unpickler):
    """Makes tensors and plain containers; every other class or function of the file becomes `StandIn`."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The class or function that a pickle names."""
        return KNOWN.get((module_name, global_name), StandIn)


def _load(file: Any, **options: Any) -> Any:
    return TensorUnpickler(file, **options).load()


REMEDY = "give a checkpoint of MTMFI or FRTM"
TRUNKS: dict[int, TrunkName] = {1024: "resnet101", 256: "resnet18"}
"""By the channels of layer4; the released files know no other widths."""

_PICKLE = SimpleNamespace(Unpickler=TensorUnpickler, load=_load, __name__="models.released_mtmfi")


def load(path: Path, trunk_weights: Path | None = None) -> Mtmfi:
    """The network with the weights of a file, ready to segment (`eval()`), on the CPU.

    The file is a checkpoint of ours, or one of the authors, which holds the refiner alone and needs torchvision's V1
    weights of the trunk in the file trunk_weights. Variant and trunk are read from names and shapes. Raises ValueError,
    in one message, for every difference, and for trunk_weights that are missing or not needed.
    """
    state = read_model(path)
    try:
        if any(name.startswith(TRUNK_PREFIX) for name in state):
            _require(trunk_weights is None, f"{path}: holds its trunk; leave the trunk's weights out")
            model = Mtmfi(initialise=False, **Mtmfi.options_of(state))
            load_strictly(model, state, path)
        else:
            model = _with_trunk(state, path, trunk_weights)
    except NoWeightsError as error:
        raise ValueError(f"{path}: no weights of MTMFI or FRTM ({error}); {REMEDY}") from error
    require_finite(model.state_dict(), path)
    return model.eval()


def read_model(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of ours or of the authors, names beginning with `refiner.` and in ours `trunk.`.

    Tensors only, on the CPU. Raises ValueError for a file that holds none, OSError for one that cannot be read.
    """
    content = _read(path)
    state = content.get("model", content) if isinstance(content, Mapping) else content
    _require(isinstance(state, Mapping), f"{path}: expected a checkpoint, found a {type(state).__name__}; {REMEDY}")
    strange = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if strange or not any(str(name).startswith(REFINER_PREFIX) for name in state):
        found = f"{strange[0]} that is no tensor" if strange else ", ".join(map(str, [*state][:4])) or "nothing"
        raise ValueError(f"{path}: expected weights named {REFINER_PREFIX}*, found {found}; {REMEDY}")
    return {str(name): tensor.detach() for name, tensor in state.items()}


def _with_trunk(state: Mapping[str, Tensor], path: Path, trunk_weights: Path | None) -> Mtmfi:
    """The authors' refiner on a trunk from a file of its own."""
    variant, channels = refiner_options(state)
    trunk = TRUNKS.get(channels["layer4"])
    if trunk is None:
        known = ", ".join(f"{name} has {count}" for count, name in TRUNKS.items())
        raise ValueError(f"{path}: its layer4 has {channels['layer4']} channels, {known}; {REMEDY}")
    if trunk_weights is None:
        raise ValueError(f"{path}: holds no trunk; give torchvision's V1 weights of {trunk} beside it")
    model = Mtmfi(variant, trunk, initialise=False)
    load_trunk(model.trunk, trunk_weights)
    load_strictly(model.refiner, {name.removeprefix(REFINER_PREFIX): value for name, value in state.items()}, path)
    return model


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _read(path: Path) -> Any:
    """What the file holds, with stand-ins for what torch's own safe reader refuses."""
    try:
        return read_tensors(path)
    except ValueError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
    _refuse_scripts(path)
    try:
        # Not torch's rule but a stricter one: see TensorUnpickler.
        return torch.load(path, map_location="cpu", pickle_module=_PICKLE, weights_only=False)
    except (
        AttributeError,
        EOFError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        pickle.PickleError,
    ) as error:
        raise ValueError(
            f"{path}: expected a file written by torch.save, found one torch cannot read; {REMEDY}"
        ) from error


def _refuse_scripts(path: Path) -> None:
    """torch would hand an archive with compiled code to its interpreter."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise ValueError(f"{path}: expected a checkpoint of tensors, found a TorchScript archive; {REMEDY}")
    except zipfile.BadZipFile:
        return  # the format of torch before 1.6
