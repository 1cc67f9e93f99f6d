"""What the training loop takes out of a batch: a part of its clips, the inputs of an objective."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from pipelines.types import Batch


def part_of(batch: Batch, clips: slice) -> Batch:
    """Some clips of a batch as a batch; tensors are views."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    parts = {name: value[clips] for name, value in fields.items() if isinstance(value, Tensor) or name == "plans"}
    return dataclasses.replace(batch, **parts)


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Equal parts in clip order. Raises ValueError if the clips do not divide by their number."""
    num_clips = len(batch.plans)
    if num_clips % num_parts:
        raise ValueError(f"{num_clips} clips of a rank do not divide into {num_parts} parts to accumulate")
    size = num_clips // num_parts
    return [batch] if num_parts == 1 else [part_of(batch, slice(n * size, (n + 1) * size)) for n in range(num_parts)]


def inputs_of(batch: Batch) -> tuple[Tensor, ...]:
    """What every objective takes: images, masks, num_objects, first_masks."""
    return batch.images, batch.masks, batch.num_objects, batch.first_masks


def arguments_of(objective: Any, batch: Batch) -> dict[str, Any]:
    """Keyword arguments of an objective for a batch: its own, and clean_masks where the batch has them."""
    arguments: dict[str, Any] = objective.arguments(batch)
    return arguments if batch.clean_masks is None else arguments | {"clean_masks": batch.clean_masks}
