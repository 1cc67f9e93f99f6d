"""The weights, frames and masks of STM-Cycle's published numbers, made of sines."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HEIGHT, WIDTH = 240, 427


@torch.no_grad()
def fill_weights(model: nn.Module) -> None:
    """Set every parameter by the rule of the numbers; batch norm statistics are 0 and 1."""
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.copy_(_sines(name, parameter).float())
        else:
            parameter.fill_(1 if name.endswith("weight") else 0)
    for name, buffer in model.named_buffers():
        buffer.fill_(1 if name.endswith("running_var") else 0)


def _sines(name: str, parameter: Tensor) -> Tensor:
    index = torch.arange(parameter.numel(), dtype=torch.float64)
    phase = 0.1 * (sum(map(ord, name)) % 97)
    scale = math.sqrt(2 / parameter[0].numel()) * (0.1 if ".Key." in name else 1)
    return (scale * torch.sin(0.37 * index**1.5 + phase)).view(parameter.shape)


def frame(*, shift: float = 0.0) -> Tensor:
    """sin(0.01 (x + 2y) + channel + shift), (3, 240, 427)."""
    channel, y, x = torch.meshgrid(*map(torch.arange, (3, HEIGHT, WIDTH)), indexing="ij")
    return torch.sin(0.01 * (x + 2 * y) + channel + shift)


def query_frame() -> Tensor:
    """The cosine of the same argument."""
    channel, y, x = torch.meshgrid(*map(torch.arange, (3, HEIGHT, WIDTH)), indexing="ij")
    return torch.cos(0.01 * (x + 2 * y) + channel)


def labels(*, right: int = 0, objects: tuple[int, ...] = (1, 2)) -> Tensor:
    """Two rectangles, moved to the right, (240, 427) uint8."""
    found = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    if 1 in objects:
        found[50:100, 50 + right : 100 + right] = 1
    if 2 in objects:
        found[100:150, 100 + right : 250 + right] = 2
    return found
