"""The losses of RDE as functions of tensors and plain numbers. They know nothing of models, steps or devices.

Source: RDE-VOS, Li et al. 2022; the bootstrapping and its schedule are STCN's, Cheng et al. 2021.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.types import VOID

FrameWeighting = Literal["published", "uniform"]


def bootstrapped_cross_entropy(logits: Tensor, labels: Tensor, num_objects: Tensor, top_p: float) -> Tensor:
    """Mean of the hardest `top_p` of each sample's pixel losses.

    logits (B, 1 + K, H, W), background first; labels (B, H, W) integer, 0..K or 255 = void; num_objects (B,) integer,
    0..K. Returns (B,) float32. A sample is judged on the background, its objects and always the first object's channel,
    so a clip without any object still learns that there is none. With n pixels that are not void the mean is over the
    int(n * top_p) largest losses; top_p = 1 is the plain mean. A sample that is void everywhere has loss 0.
    Raises ValueError unless 0 < top_p <= 1.
    """
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must lie in (0, 1], not {top_p}")
    logits = _without_absent_classes(logits.float(), num_objects)
    labels = labels.long()
    losses = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="none").flatten(1)  # (B, H * W)
    num_judged = (labels != VOID).flatten(1).sum(1)  # (B,)
    if top_p == 1.0:
        return losses.sum(1) / num_judged.clamp(min=1)
    num_kept = (num_judged.double() * top_p).floor().long()  # (B,), as int(n * top_p) does; stays on the device
    hardest = losses.topk(max(1, int(losses.shape[1] * top_p)), dim=1).values
    kept = torch.arange(hardest.shape[1], device=hardest.device) < num_kept[:, None]
    return (hardest * kept).sum(1) / num_kept.clamp(min=1)


def _without_absent_classes(logits: Tensor, num_objects: Tensor) -> Tensor:
    """`logits` with unused slots at minus infinity: softmax then equals one over the used channels alone."""
    slots = torch.arange(logits.shape[1], device=logits.device)
    absent = slots > num_objects.clamp(min=1)[:, None]  # (B, 1 + K)
    return logits.masked_fill(absent[:, :, None, None], float("-inf"))


def hardest_share(step: int, *, top_p: float, start_step: int, end_step: int) -> float:
    """Share of the pixels the cross-entropy keeps: 1 before start_step, top_p after end_step, linear between."""
    if step < start_step:
        return 1.0
    if step > end_step:
        return top_p
    if start_step == end_step:
        return top_p
    return top_p + (1.0 - top_p) * (end_step - step) / (end_step - start_step)


def frame_weights(num_frames: int, weighting: FrameWeighting) -> tuple[float, ...]:
    """Weights of frames 1 .. num_frames - 1 (frame 0 is given, never judged).

    "published": 2 ** -(num_frames - i) for frame i. The released code halves the running total inside its loop over
    frames; whether that was meant is unknown, but the published numbers come from it. "uniform": 1 each, as STCN.
    """
    if weighting == "uniform":
        return (1.0,) * (num_frames - 1)
    return tuple(2.0 ** -(num_frames - frame) for frame in range(1, num_frames))


def channel_divergence(student: Tensor, teacher: Tensor, temperature: float, *, dim: int) -> Tensor:
    """KL(teacher || student) over the channels in `dim`, as the mean over all elements of each row of dimension 0.

    student, teacher: equal shapes (N, ...); returns (N,) float32 >= 0, multiplied by temperature squared. The mean runs
    over the channels too (the library's reduction "mean", not "batchmean"), as published. Gradients flow into both.
    """
    student_log = F.log_softmax(student.float() / temperature, dim=dim)
    teacher_log = F.log_softmax(teacher.float() / temperature, dim=dim)
    return temperature**2 * (teacher_log.exp() * (teacher_log - student_log)).flatten(1).mean(1)
