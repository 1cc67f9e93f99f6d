"""From object logits to probabilities that sum to one, and frames padded to what the network divides."""

from __future__ import annotations

from functools import reduce
from operator import mul
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CLAMP = 1e-7
"""Probabilities are clamped to [CLAMP, 1 - CLAMP] before their logit is taken."""


class Aggregate(NamedTuple):
    """logits (B, 1+O, H, W), background first, for the loss; probabilities (B, O, H, W), softmax without background."""

    logits: Tensor
    probabilities: Tensor


def aggregate(object_logits: Tensor, valid: Tensor | None = None) -> Aggregate:
    """Soft aggregation of the decoder's object logits (B, O, H, W), O >= 1, computed in float32.

    valid (B, O) is 1 for objects that exist and 0 for absent ones, whose probability is set to 0 first; None: all
    exist. The probabilities with background are `logits.softmax(1)`.
    Source: STM, Oh et al. 2019, as in STCN.
    """
    probabilities = object_logits.float().sigmoid()
    if valid is not None:
        probabilities = probabilities * valid[:, :, None, None].to(probabilities.dtype)
    logits = aggregate_probabilities(probabilities)
    return Aggregate(logits, logits.softmax(1)[:, 1:])


def aggregate_probabilities(probabilities: Tensor) -> Tensor:
    """Logits (B, 1+O, H, W), background first, of independent object probabilities (B, O, H, W) in [0, 1], O >= 1.

    Background probability is the product of 1 - p. First masks (0 and 1) come in here at inference.
    """
    # Multiplied one by one: the gradient of torch.prod looks for zeros on the host, which would stop the device each
    # step.
    background = reduce(mul, (1 - probabilities).unbind(1))
    joined = torch.cat([background.unsqueeze(1), probabilities], 1).clamp(CLAMP, 1 - CLAMP)
    return (joined / (1 - joined)).log()


class Padding(NamedTuple):
    """Pixels added on each side."""

    left: int
    right: int
    top: int
    bottom: int


def pad_to_multiple(frames: Tensor, multiple: int = 16, *, smallest: int = 0) -> tuple[Tensor, Padding]:
    """Zeros around frames (..., C, H, W) until H and W are multiples, and at least `smallest`, itself a multiple.

    Evenly, the smaller half left and top. Zero is the mean colour of a normalised image and the background of a mask.
    """
    height, width = frames.shape[-2:]
    extra_width, extra_height = (max(side + -side % multiple, smallest) - side for side in (width, height))
    left, top = extra_width // 2, extra_height // 2
    padding = Padding(left, extra_width - left, top, extra_height - top)
    return F.pad(frames, padding), padding


def unpad(frames: Tensor, padding: Padding) -> Tensor:
    """Cut what `pad_to_multiple` added: (..., C, H, W) back to the original H and W (a view)."""
    height, width = frames.shape[-2:]
    return frames[..., padding.top : height - padding.bottom, padding.left : width - padding.right]
