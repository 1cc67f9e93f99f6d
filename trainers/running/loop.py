"""The training loop. It knows nothing of configs, files or methods: a stage comes in, steps happen, hooks are told."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.types import Batch
from trainers.optimizers import set_learning_rate
from trainers.records.journal import Report
from trainers.records.timing import StepTimer, WorkClock, worst_of
from trainers.running.batches import arguments_of, inputs_of, split_batch
from trainers.running.distributed import Ranks, gather_objects, rank_name, sum_over_ranks
from trainers.running.failures import NonFiniteLossError, explain_failure
from trainers.running.stage_run import Ending, Hooks, Objective, StageRun
from trainers.running.stopping import StopRequest

__all__ = ["Ending", "Hooks", "NonFiniteLossError", "Objective", "StageRun", "train_stage"]

SMALLEST_SCALE = 1e-4
"""Of fp16's scaler, which begins at 65536 and halves with every step it leaves out."""


def train_stage(run: StageRun, hooks: Hooks, stop: StopRequest) -> Ending:
    """Take the stage's remaining steps: those the loader still holds. Returns why it ended.

    Raises NonFiniteLossError, with the clips at fault, before an update that would spoil the weights.
    """
    means, timer, work = RunningMeans(), StepTimer(run.device), WorkClock(run.device)
    ending = Ending.FINISHED
    hooks.on_phase("waiting for data")
    for batch in run.loader:
        hooks.on_phase(f"in the forward and backward passes of step {run.first_step + batch.step + 1}")
        set_learning_rate(run.optimizer, run.learning_rate.at(batch.step, run.steps))
        loss, metrics = forward_backward(run, batch, work)
        size = gradient_size(run)
        hooks.on_phase(f"waiting for the other ranks at the end of step {run.first_step + batch.step + 1}")
        signals = exchange_signals(run, loss, size, stop)
        if not signals.healthy:
            raise explain_failure(run, batch, hooks.keep_failure)
        update(run)
        means.add({"loss": loss, **metrics, **({} if run.scaler.is_enabled() else {"gradient_norm": size})})
        timer.end_step(run.loader.wait_seconds, work.seconds())

        ending, stage_step = signals.ending, batch.step + 1
        last = stage_step == run.steps or ending is not Ending.FINISHED
        hooks.on_step(run.first_step + stage_step, signals.loss)
        if last or stage_step % hooks.report_every == 0:
            hooks.on_report(make_report(run, stage_step, means, timer))
            require_scale(run, run.first_step + stage_step)
        was_due, ending = _save_and_validate(hooks, run.first_step + stage_step, stage_step == run.steps, ending)
        if was_due:
            timer.begin()
        if last or ending is not Ending.FINISHED:
            break
        hooks.on_phase("waiting for data")
    hooks.on_phase("")
    return ending


def _save_and_validate(hooks: Hooks, step: int, is_end_of_stage: bool, ending: Ending) -> tuple[bool, Ending]:
    """Do what is due after a step; whether anything was, and why the stage ends, if it does.

    A run that is asked to stop saves, and validates no more. Asked while it validates it takes no further step, since
    only from this step's checkpoint can that validation be made up for.
    """
    validates = hooks.validate_every is not None and (is_end_of_stage or step % hooks.validate_every == 0)
    saves = is_end_of_stage or ending is not Ending.FINISHED or validates or step % hooks.checkpoint_every == 0
    if saves:
        hooks.on_phase("")
        hooks.save(step)
    if validates and ending is Ending.FINISHED:
        ending = hooks.validate(step) or ending
    return saves, ending


def forward_backward(run: StageRun, batch: Batch, work: WorkClock) -> tuple[Tensor, dict[str, Tensor]]:
    """Leave the gradients of a batch in the parameters; its loss and parts, detached. work: times the forward passes.

    A rank's clips go through in `run.accumulate` equal parts, in order; gradients are those of the mean over all clips.
    """
    run.optimizer.zero_grad(set_to_none=True)
    means: dict[str, Tensor] = {}
    parts = split_batch(batch, run.accumulate)
    work.start()
    for number, part in enumerate(parts, start=1):
        # All but the last part keep their gradients to themselves: one exchange between ranks per update.
        with nullcontext() if number == len(parts) else _without_exchange(run.module):
            with run.autocast():
                loss, metrics = run.module(*inputs_of(part), **arguments_of(run.objective, part))
            work.stop()
            run.scaler.scale(loss / len(parts)).backward()
        for name, value in {"loss": loss.detach(), **metrics}.items():
            share = value / len(parts)
            means[name] = means[name] + share if name in means else share
    return means.pop("loss"), means


def _without_exchange(module: nn.Module) -> AbstractContextManager[None]:
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def update(run: StageRun) -> None:
    """Move the weights. Under fp16 the scaler leaves out a step whose scaled gradients overflowed, and scales less."""
    if run.clip_gradients is not None:
        run.scaler.unscale_(run.optimizer)
        torch.nn.utils.clip_grad_norm_(run.module.parameters(), run.clip_gradients)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.average is not None:
        run.average.update()


def require_scale(run: StageRun, step: int) -> None:
    """Raise NonFiniteLossError if the scaler has left out so many steps that it is about to leave out all others."""
    scale = run.scaler.get_scale() if run.scaler.is_enabled() else 1.0
    if scale < SMALLEST_SCALE:
        raise NonFiniteLossError(
            f"step {step}: fp16 leaves out its updates, gradients are not finite even when scaled by {scale:.1g}; "
            "use precision bf16 or fp32, or a lower learning rate, from a checkpoint before that"
        )


@dataclass(frozen=True, slots=True)
class Signals:
    """What all ranks agree on before an update: the loss of the global batch, whether to go on, whether it is sound."""

    loss: float
    healthy: bool
    ending: Ending


def exchange_signals(run: StageRun, loss: Tensor, size: Tensor, stop: StopRequest) -> Signals:
    """Sum up what each rank has to say. The only point of a step where the host waits for the device."""
    asked = loss.new_tensor([stop.requested, stop.interrupted])
    sums = sum_over_ranks(torch.cat([loss[None], size[None], asked]), run.ranks).tolist()
    healthy = math.isfinite(sums[0]) and math.isfinite(sums[1])
    ending = Ending.INTERRUPTED if sums[3] else Ending.STOPPED if sums[2] else Ending.FINISHED
    return Signals(sums[0] / run.ranks.world_size, healthy, ending)


def gradient_size(run: StageRun) -> Tensor:
    """Norm of all gradients; 0 under fp16, where scaled gradients may overflow and the scaler sees to that."""
    gradients = [parameter.grad for parameter in run.module.parameters() if parameter.grad is not None]
    if run.scaler.is_enabled():
        return gradients[0].new_zeros(())
    return torch.nn.utils.get_total_norm(gradients)


class RunningMeans:
    """Sums of scalars on the device, read by the host only when a report is due."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Count one step's scalars. Longer clips have more of them; all ranks have the same at every step."""
        self._counts.update(scalars.keys())
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()

    def take(self, ranks: Ranks) -> dict[str, float]:
        """Means over the steps since the last call that had the scalar, and over all ranks."""
        sums = sum_over_ranks(torch.stack([value.float() for value in self._sums.values()]), ranks).tolist()
        totals = zip(self._sums, sums, strict=True)
        means = {name: total / (self._counts[name] * ranks.world_size) for name, total in totals}
        self._sums, self._counts = {}, Counter()
        return means


def make_report(run: StageRun, stage_step: int, means: RunningMeans, timer: StepTimer) -> Report:
    """What there is to say after `stage_step` steps of the stage. All ranks must call it together."""
    metrics = run.objective.summarise(means.take(run.ranks))
    if run.scaler.is_enabled():
        metrics["loss_scale"] = run.scaler.get_scale()
    gathered = gather_objects((timer.take(), rank_name(run.ranks)), run.ranks)
    of_ranks = [(times, name) for times, name in gathered if times is not None]
    slowest = max(of_ranks, key=lambda pair: pair[0].own_ms, default=(None, ""))[1]
    return Report(
        step=run.first_step + stage_step,
        stage=run.name,
        stage_step=stage_step,
        stage_steps=run.steps,
        learning_rate=run.learning_rate.at(stage_step - 1, run.steps),
        metrics=metrics,
        times=worst_of([times for times, _ in of_ranks]),
        mean_data_ms=sum(times.data_ms for times, _ in of_ranks) / max(1, len(of_ranks)),
        batch_size=run.batch_size,
        slowest=slowest if run.ranks.world_size > 1 else "",
    )
