"""Checkpoints written beside the training: a step waits for a copy in memory, a thread brings it to disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from trainers.records.checkpoints import Checkpoint, save_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint that is on disk, and what it cost: seconds the training waited for it and seconds in all."""

    step: int
    path: Path
    stall_seconds: float
    write_seconds: float


class CheckpointWriter:
    """Writes one checkpoint at a time into a folder; whoever brings the next one waits until the last is on disk.

    keep, is_kept: as in save_checkpoint. on_written is called in the writing thread. An error of the disk is raised in
    the training: by `check`, or by the next `submit` or `finish`. Leaving the block waits for what is being written.
    """

    def __init__(
        self, folder: Path, *, keep: int, is_kept: Callable[[int], bool], on_written: Callable[[Written], object]
    ) -> None:
        self._folder, self._keep, self._is_kept, self._on_written = folder, keep, is_kept, on_written
        self._pool = ThreadPoolExecutor(1, "checkpoint-writer")
        self._writing: Future[None] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self.finish()
        elif self._writing is not None and (unheard := self._writing.exception()) is not None:
            logger.error("%s", unheard)

    def submit(self, checkpoint: Checkpoint) -> None:
        """Copy the tensors to the memory of the host, then let them be written."""
        started = time.perf_counter()
        self.finish()
        fields = ("model", "trained", "optimizer", "scaler")
        copy = replace(checkpoint, **{name: copied(getattr(checkpoint, name)) for name in fields})
        self._writing = self._pool.submit(self._write, copy, time.perf_counter() - started)

    def finish(self) -> None:
        """Wait until everything is on disk. Raises OSError if it could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def check(self) -> None:
        """Raise the error of a write that has failed; never waits."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def _write(self, checkpoint: Checkpoint, stall_seconds: float) -> None:
        started = time.perf_counter()
        path = save_checkpoint(self._folder, checkpoint, keep=self._keep, is_kept=self._is_kept)
        self._on_written(Written(checkpoint.step, path, stall_seconds, time.perf_counter() - started))


def copied(value: Any) -> Any:
    """Nested dicts, lists and tuples with every tensor copied to the CPU, layouts kept."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(item) for item in value)
    return value
