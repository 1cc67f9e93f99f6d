"""Target models of first frames kept on disk: fitted once, read by every later epoch, run and rank of equal settings.

A folder belongs to one set of settings, which are in its settings.json; its name is their digest. Every process appends
records of one size to a file of its own, so ranks need no lock; what a killed process left half written is passed over.
Records: frame row and object id (int64 each), the weights (float32, level by level, projection before filter), and the
CRC-32 of all that; little-endian.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import struct
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.target_fitting import Weights
from shards.errors import DataError
from shards.manifest import encode_json
from shards.storage.paths import write_bytes

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.json"
FORMAT = 1
REFRESH_SECONDS = 30.0
"""Between two looks at what other processes have added."""

_HEAD = struct.Struct("<qq")
_TAIL = struct.Struct("<I")


class Subject(NamedTuple):
    """What a target model is of: a row of the data set's frame table, and an object id."""

    frame: int
    object_id: int


class LevelShape(NamedTuple):
    """Channels before and after the projection of one level."""

    num_in: int
    num_channels: int

    @property
    def num_values(self) -> int:
        """Numbers of both tensors."""
        return self.num_channels * (self.num_in + 9)


@dataclass(frozen=True, slots=True)
class SizeReport:
    """Target models in a cache and the bytes they take; `bytes_each` of one more."""

    models: int
    bytes: int
    bytes_each: int

    def __str__(self) -> str:
        return f"{self.models} target models, {self.bytes / 1e6:.1f} MB, {self.bytes_each / 1e3:.1f} kB each"


def settings_digest(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for JSON values."""
    return hashlib.sha256(encode_json(settings)).hexdigest()[:16]


class TargetCache:
    """The cache of one data set under one set of settings, in `<parent>/<digest of the settings>`."""

    def __init__(self, parent: Path, settings: Mapping[str, Any], levels: Sequence[LevelShape]) -> None:
        complete = {"format": FORMAT, **settings, "levels": [list(level) for level in levels]}
        self.folder = parent / settings_digest(complete)
        self._levels = tuple(levels)
        self._num_values = sum(level.num_values for level in levels)
        self._record_size = _HEAD.size + 4 * self._num_values + _TAIL.size
        # Several where ranks fitted the same at once, or one was damaged and fitted again.
        self._places: dict[Subject, list[tuple[Path, int]]] = {}
        self._seen: dict[Path, int] = {}
        self._own: Path | None = None
        self._refreshed = -math.inf
        self._claim(complete)
        self.refresh()

    def __contains__(self, subject: Subject) -> bool:
        """Whether its weights are known to be there."""
        return subject in self._places

    def get(self, subjects: Sequence[Subject]) -> list[list[Weights] | None]:
        """For each subject its weights by level, (1, ...) float32 on the CPU, or None where there are none yet.

        A record that fails its checksum counts as none, with a warning.
        """
        if any(subject not in self._places for subject in subjects):
            self._refresh_sometimes()
        return [self._read(subject) for subject in subjects]

    def put(self, subject: Subject, weights: Sequence[Weights]) -> None:
        """Append the weights (1, ...) of a subject; each record is written at once, and is there for others then."""
        values = [
            tensor.detach().cpu().float().flatten() for level in weights for tensor in level if tensor is not None
        ]
        numbers: NDArray[np.float32] = torch.cat(values).numpy()
        if len(numbers) != self._num_values:
            raise ValueError(f"{len(numbers)} numbers of a target model, this cache holds {self._num_values}")
        content = _HEAD.pack(*subject) + numbers.astype("<f4").tobytes()
        if self._own is None:
            self._own = self.folder / f"models-{uuid.uuid4().hex}.bin"
            self._seen[self._own] = 0
        with self._own.open("ab") as file:
            file.write(content + _TAIL.pack(zlib.crc32(content)))
        self._places.setdefault(subject, []).append((self._own, self._seen[self._own]))
        self._seen[self._own] += self._record_size

    def refresh(self) -> None:
        """Look at what other processes have added."""
        self._refreshed = time.monotonic()
        for path in sorted(self.folder.glob("models-*.bin")):
            if path != self._own:
                self._scan(path)

    def report(self) -> SizeReport:
        """How many models are known to this process, and the bytes of all files."""
        total = sum(path.stat().st_size for path in self.folder.glob("models-*.bin"))
        return SizeReport(len(self._places), total, self._record_size)

    def _claim(self, settings: Mapping[str, Any]) -> None:
        path = self.folder / SETTINGS_FILE
        self.folder.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            write_bytes(path, encode_json(settings))
        found = json.loads(path.read_bytes())
        if found != json.loads(encode_json(settings)):
            raise DataError(
                path, expected="the settings its name stands for", found="other ones", remedy=f"remove {self.folder}"
            )

    def _refresh_sometimes(self) -> None:
        if time.monotonic() - self._refreshed >= REFRESH_SECONDS:
            self.refresh()

    def _scan(self, path: Path) -> None:
        """Note the subjects of a file's whole records from where the last look ended."""
        with path.open("rb") as file:
            whole = os.fstat(file.fileno()).st_size // self._record_size * self._record_size
            for offset in range(self._seen.get(path, 0), whole, self._record_size):
                head = os.pread(file.fileno(), _HEAD.size, offset)
                self._places.setdefault(Subject(*_HEAD.unpack(head)), []).append((path, offset))
        self._seen[path] = whole

    def _read(self, subject: Subject) -> list[Weights] | None:
        while places := self._places.get(subject):
            values = self._read_record(*places[0])
            if values is not None:
                return self._unpack(values)
            del places[0]
        self._places.pop(subject, None)
        return None

    def _read_record(self, path: Path, offset: int) -> NDArray[np.float32] | None:
        with path.open("rb") as file:
            record = os.pread(file.fileno(), self._record_size, offset)
        content, tail = record[: -_TAIL.size], record[-_TAIL.size :]
        if len(record) < self._record_size or zlib.crc32(content) != _TAIL.unpack(tail)[0]:
            logger.warning("%s: target model at byte %d fails its checksum; it is not used", path, offset)
            return None
        return np.frombuffer(content, "<f4", offset=_HEAD.size)

    def _unpack(self, values: NDArray[np.float32]) -> list[Weights]:
        numbers = torch.from_numpy(values.astype(np.float32))
        weights = []
        for level, part in zip(self._levels, numbers.split([each.num_values for each in self._levels]), strict=True):
            project, taps = part.split([level.num_channels * level.num_in, level.num_channels * 9])
            weights.append(
                Weights(project.view(1, level.num_channels, level.num_in), taps.view(1, level.num_channels, 9))
            )
        return weights
