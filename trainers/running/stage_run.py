"""What one stage of training works with, and whom its loop tells what."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from pipelines.loader import ClipLoader
from pipelines.order.curriculum import Table
from pipelines.types import Batch
from trainers.records.journal import Report
from trainers.running.averaging import WeightAverage
from trainers.running.distributed import Ranks


class Objective(Protocol):
    """Model and losses of one method."""

    def arguments(self, batch: Batch) -> dict[str, Any]:
        """What changes from batch to batch, as keyword arguments of forward."""

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Means of forward's scalars over steps and ranks -> what is reported."""

    def __call__(
        self, images: Tensor, masks: Tensor, num_objects: Tensor, first_masks: Tensor, **arguments: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch and detached scalars. arguments: of `arguments`, and clean_masks where a batch has them."""


class Ending(enum.Enum):
    """Why a stage ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class StageRun:
    """All that one stage of training works with.

    objective is what `module` computes; the module may be wrapped for several ranks. first_step: updates of the whole
    run before this stage began. autocast: makes the context of a forward pass. scaler: disabled unless fp16.
    describe: names the i-th clip of a batch in messages. accumulate: equal parts of a rank's batch that go through the
    model one after the other before an update. clip_gradients: largest norm of all gradients together. average: of the
    weights, updated with them.
    """

    name: str
    steps: int
    first_step: int
    batch_size: int
    learning_rate: Table
    loader: ClipLoader
    objective: Objective
    module: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    autocast: Callable[[], AbstractContextManager[None]]
    ranks: Ranks
    describe: Callable[[Batch, int], str]
    device: torch.device
    accumulate: int = 1
    clip_gradients: float | None = None
    average: WeightAverage | None = None


def _ignore(*_: object) -> None:
    """Nobody wants to hear of it."""


@dataclass(frozen=True)
class Hooks:
    """What the loop tells others, and when.

    on_step(step of the run, loss): after every update. on_report(report): every report_every steps of a stage and at
    its end. save(step of the run): every checkpoint_every steps of the run, at the end of a stage, before stopping.
    validate(step of the run): every validate_every steps of the run and at the end of a stage, after save; why it was
    given up, if it was, the same on every rank.
    on_phase(words): what this rank begins to do; it may take as long as it likes only where the words are "".
    keep_failure(batch, positions): clips of a batch whose loss is not finite; the file they were written to.
    """

    on_step: Callable[[int, float], object]
    on_report: Callable[[Report], object]
    save: Callable[[int], object]
    report_every: int
    checkpoint_every: int
    validate: Callable[[int], Ending | None] = _ignore
    validate_every: int | None = None
    on_phase: Callable[[str], object] = _ignore
    keep_failure: Callable[[Batch, Sequence[int]], Path | None] = _ignore
