"""A step that must not be taken: which clips are at fault, on any rank, and where they were kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pipelines.types import Batch
from trainers.running.batches import arguments_of, inputs_of, part_of
from trainers.running.distributed import gather_objects
from trainers.running.stage_run import StageRun

logger = logging.getLogger(__name__)


class NonFiniteLossError(ValueError):
    """Loss or gradients are not finite. The weights are still those before the step."""


def explain_failure(
    run: StageRun, batch: Batch, keep: Callable[[Batch, Sequence[int]], Path | None]
) -> NonFiniteLossError:
    """The error for a step that must not be taken, naming the clips whose own loss is not finite, on any rank.

    keep(batch, positions) writes those clips to a file for a replay, all of them where none is at fault alone. All
    ranks must call this together.
    """
    at_fault = _clips_at_fault(run, batch)
    names = [run.describe(batch, position) for position in at_fault]
    gathered = gather_objects(names, run.ranks)
    found = [name for names in gathered for name in names]
    kept = None
    if at_fault or not found:
        try:
            kept = keep(batch, at_fault or range(len(batch.plans)))
        except OSError as error:  # of a full disk, say; which clips it were must be said all the same
            logger.warning("clips of the failed step cannot be kept: %s", error)
    files = [path for path in gather_objects(kept, run.ranks) if path is not None]
    clips = "\n  ".join(found) if found else "no clip alone: the gradients overflowed"
    replay = "".join(f"\n  kept for tools/train.py --replay: {path}" for path in files)
    return NonFiniteLossError(
        f"step {run.first_step + batch.step + 1}: loss or gradients are not finite, the weights were left alone; "
        f"lower the learning rate or look at these clips:\n  {clips}{replay}"
    )


@torch.no_grad()
def _clips_at_fault(run: StageRun, batch: Batch) -> list[int]:
    positions = []
    for position in range(len(batch.plans)):
        clip = part_of(batch, slice(position, position + 1))
        with run.autocast():
            loss, _ = run.objective(*inputs_of(clip), **arguments_of(run.objective, clip))
        if not torch.isfinite(loss):
            positions.append(position)
    return positions
