"""The training loop. It knows nothing of configs, files or methods: a stage comes in, steps happen, hooks are told."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from pipelines.curriculum import Table
from pipelines.loader import ClipLoader
from pipelines.types import Batch
from trainers.distributed import Ranks, gather_objects, sum_over_ranks
from trainers.journal import Report
from trainers.optimizers import set_learning_rate
from trainers.stopping import StopRequest
from trainers.timing import StepTimer


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


class NonFiniteLossError(ValueError):
    """Loss or gradients are not finite. The weights are still those before the step."""


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
    describe: names the i-th clip of a batch in messages.
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


@dataclass(frozen=True)
class Hooks:
    """What the loop tells others, and when.

    on_step(step of the run, loss): after every update. on_report(report): every report_every steps of a stage and at
    its end. save(step of the run): every checkpoint_every steps of the run, at the end of a stage, before stopping.
    """

    on_step: Callable[[int, float], object]
    on_report: Callable[[Report], object]
    save: Callable[[int], object]
    report_every: int
    checkpoint_every: int


def train_stage(run: StageRun, hooks: Hooks, stop: StopRequest) -> Ending:
    """Take the stage's remaining steps: those the loader still holds. Returns why it ended.

    Raises NonFiniteLossError, with the clips at fault, before an update that would spoil the weights.
    """
    means, timer, ending = RunningMeans(), StepTimer(), Ending.FINISHED
    for batch in run.loader:
        set_learning_rate(run.optimizer, run.learning_rate.at(batch.step, run.steps))
        loss, metrics = forward_backward(run, batch)
        signals = exchange_signals(run, loss, stop)
        if not signals.healthy:
            raise explain_failure(run, batch)
        update(run)
        means.add({"loss": loss, **metrics})
        timer.end_step(run.loader.wait_seconds)

        ending, stage_step = signals.ending, batch.step + 1
        step, last = run.first_step + stage_step, stage_step == run.steps or ending is not Ending.FINISHED
        hooks.on_step(step, signals.loss)
        if last or stage_step % hooks.report_every == 0:
            hooks.on_report(make_report(run, stage_step, means, timer))
        if last or step % hooks.checkpoint_every == 0:
            hooks.save(step)
            timer.begin()
        if last:
            break
    return ending


def forward_backward(run: StageRun, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Leave the gradients of a batch in the parameters; the loss and its parts, detached."""
    run.optimizer.zero_grad(set_to_none=True)
    with run.autocast():
        loss, metrics = run.module(*_inputs(batch), **_arguments(run, batch))
    run.scaler.scale(loss).backward()
    return loss.detach(), metrics


def _inputs(batch: Batch, clips: slice = slice(None)) -> tuple[Tensor, ...]:
    return tuple(t[clips] for t in (batch.images, batch.masks, batch.num_objects, batch.first_masks))


def _arguments(run: StageRun, batch: Batch, clips: slice = slice(None)) -> dict[str, Any]:
    arguments: dict[str, Any] = run.objective.arguments(batch)
    return arguments if batch.clean_masks is None else arguments | {"clean_masks": batch.clean_masks[clips]}


def update(run: StageRun) -> None:
    """Move the weights. Under fp16 the scaler leaves out a step whose scaled gradients overflowed, and scales less."""
    run.scaler.step(run.optimizer)
    run.scaler.update()


@dataclass(frozen=True, slots=True)
class Signals:
    """What all ranks agree on before an update: the loss of the global batch, whether to go on, whether it is sound."""

    loss: float
    healthy: bool
    ending: Ending


def exchange_signals(run: StageRun, loss: Tensor, stop: StopRequest) -> Signals:
    """Sum up what each rank has to say. The only point of a step where the host waits for the device."""
    asked = loss.new_tensor([stop.requested, stop.interrupted])
    sums = sum_over_ranks(torch.cat([loss[None], _gradient_size(run)[None], asked]), run.ranks).tolist()
    healthy = math.isfinite(sums[0]) and math.isfinite(sums[1])
    ending = Ending.INTERRUPTED if sums[3] else Ending.STOPPED if sums[2] else Ending.FINISHED
    return Signals(sums[0] / run.ranks.world_size, healthy, ending)


def _gradient_size(run: StageRun) -> Tensor:
    """Norm of all gradients; 0 under fp16, where scaled gradients may overflow and the scaler sees to that."""
    gradients = [parameter.grad for parameter in run.module.parameters() if parameter.grad is not None]
    if run.scaler.is_enabled():
        return gradients[0].new_zeros(())
    return torch.nn.utils.get_total_norm(gradients)


def explain_failure(run: StageRun, batch: Batch) -> NonFiniteLossError:
    """The error for a step that must not be taken, naming the clips whose own loss is not finite, on any rank."""
    found = [name for names in gather_objects(_clips_at_fault(run, batch), run.ranks) for name in names]
    clips = "\n  ".join(found) if found else "no clip alone: the gradients overflowed"
    return NonFiniteLossError(
        f"step {run.first_step + batch.step + 1}: loss or gradients are not finite, the weights were left alone; "
        f"lower the learning rate or look at these clips:\n  {clips}"
    )


@torch.no_grad()
def _clips_at_fault(run: StageRun, batch: Batch) -> list[str]:
    names = []
    for position in range(len(batch.plans)):
        one = slice(position, position + 1)
        with run.autocast():
            loss, _ = run.objective(*_inputs(batch, one), **_arguments(run, batch, one))
        if not torch.isfinite(loss):
            names.append(run.describe(batch, position))
    return names


class RunningMeans:
    """Sums of scalars on the device, read by the host only when a report is due."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Count one step's scalars; every step has the same names."""
        self._count += 1
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()

    def take(self, ranks: Ranks) -> dict[str, float]:
        """Means over the steps since the last call and over all ranks."""
        sums = sum_over_ranks(torch.stack([value.float() for value in self._sums.values()]), ranks).tolist()
        means = {name: total / (self._count * ranks.world_size) for name, total in zip(self._sums, sums, strict=True)}
        self._sums, self._count = {}, 0
        return means


def make_report(run: StageRun, stage_step: int, means: RunningMeans, timer: StepTimer) -> Report:
    """What there is to say after `stage_step` steps of the stage. All ranks must call it together."""
    metrics = run.objective.summarise(means.take(run.ranks))
    of_ranks = [times for times in gather_objects(timer.take(), run.ranks) if times is not None]
    slowest = max(of_ranks, key=lambda times: times.data_ms, default=None)
    mean_data_ms = sum(times.data_ms for times in of_ranks) / max(1, len(of_ranks))
    return Report(
        step=run.first_step + stage_step,
        stage=run.name,
        stage_step=stage_step,
        stage_steps=run.steps,
        learning_rate=run.learning_rate.at(stage_step - 1, run.steps),
        metrics=metrics,
        times=slowest,
        mean_data_ms=mean_data_ms,
        batch_size=run.batch_size,
    )
