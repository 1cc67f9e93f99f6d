"""What STM-Cycle's benchmarks run on: a network, and frames with objects in them; and the clock they read."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from models.stm import Arch, Stm


@dataclass(frozen=True, slots=True)
class StmSize:
    """Network, frames of (height, width) pixels, objects; on which device."""

    arch: Arch = "resnet18"
    width: float = 0.25
    size: tuple[int, int] = (240, 427)
    num_objects: int = 4
    device: str = "cpu"

    def make_model(self) -> Stm:
        """The network, with random weights, the same for every call."""
        return Stm(arch=self.arch, width=self.width, generator=torch.Generator().manual_seed(0)).to(self.device)


def upright_bars(size: tuple[int, int], num_objects: int, *, shift: int = 0) -> Tensor:
    """Label map (H, W) uint8 of 1..num_objects side by side, `shift` pixels to the right."""
    height, width = size
    bar = width // (2 * num_objects + 1)
    labels = torch.zeros(height, width, dtype=torch.uint8)
    for slot in range(1, num_objects + 1):
        left = (2 * slot - 1) * bar + shift
        labels[height // 4 : -(height // 4), left : left + bar] = slot
    return labels


def clock_seconds(device: str, *, wall: bool = False) -> float:
    """CPU time on a CPU, or wall time if asked for; on a GPU wall time, when it has done all it was given."""
    if torch.device(device).type != "cpu":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.perf_counter() if wall else time.process_time()
