"""What a training step of RDE costs: ours, its options, and the published structure, in turns in one run.

Times on a CPU are CPU time, on a GPU wall time between synchronisations; medians over rounds, the first round left out.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.layers import use_channels_last
from models.rde import Rde
from trainers.benchmarks.published_rde import NUM_FRAMES, PublishedStep
from trainers.objectives.rde import RdeObjective, RdeObjectiveOptions
from trainers.running.stages import make_autocast

PUBLISHED, OURS = "published structure", "ours"
TOP_P = 0.15


@dataclass(frozen=True, slots=True)
class StepSize:
    """What is trained: width of the network, square frames of `size` pixels, clips per step; on which device."""

    width: float = 0.25
    size: int = 192
    batch_size: int = 2
    device: str = "cpu"


class Variant(NamedTuple):
    """One way to take the step."""

    published: bool = False
    channels_last: bool = False
    checkpointing: bool = False
    bf16: bool = False
    compiled: bool = False


VARIANTS = {
    PUBLISHED: Variant(published=True),
    OURS: Variant(),
    "ours, channels_last": Variant(channels_last=True),
    "ours, checkpointing": Variant(checkpointing=True),
    "ours, bf16": Variant(bf16=True),
    "ours, compile": Variant(compiled=True),
}


@dataclass(frozen=True, slots=True)
class StepCost:
    """Milliseconds of a step (forward, losses, backward), peak memory that it adds to model and batch, and its loss.

    memory_mb: on a GPU the allocator's peak; on a CPU the growth of the resident set of a process of its own.
    """

    step_ms: float
    memory_mb: float
    loss: float


def time_steps(size: StepSize, names: tuple[str, ...] = (PUBLISHED, OURS), *, rounds: int = 5) -> dict[str, StepCost]:
    """Cost of each named variant on the same batch and weights. Raises ValueError for a name not in VARIANTS."""
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or rounds < 1:
        raise ValueError(f"variants are {', '.join(VARIANTS)} and rounds at least 1, got {unknown} and {rounds}")
    steps = {name: prepare(size, VARIANTS[name]) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses = {}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            started = _now(size.device)
            loss = step()
            seconds[name].append(_now(size.device) - started)
            losses[name] = float(loss)
    memory = {name: _memory(size, VARIANTS[name], steps[name]) for name in names}
    return {name: StepCost(1e3 * statistics.median(seconds[name][1:]), memory[name], losses[name]) for name in names}


def prepare(size: StepSize, variant: Variant) -> Callable[[], Tensor]:
    """A function that takes the step once, leaving gradients, and gives the loss."""
    device = torch.device(size.device)
    model = Rde(width=size.width, generator=torch.Generator().manual_seed(0)).to(device)
    model.checkpoint_activations = variant.checkpointing
    if variant.channels_last:
        use_channels_last(model)
    if variant.compiled:
        for part in model.children():
            part.compile()
    objective: nn.Module = (PublishedStep if variant.published else RdeObjective)(model, RdeObjectiveOptions())
    batch = {name: tensor.to(device) for name, tensor in make_batch(size).items()}
    autocast = make_autocast(device, "bf16" if variant.bf16 else "fp32")

    def step() -> Tensor:
        objective.zero_grad(set_to_none=True)
        with autocast():
            loss, _ = objective(**batch, top_p=TOP_P)
        loss.backward()
        result: Tensor = loss.detach()
        return result

    return step


def make_batch(size: StepSize) -> dict[str, Tensor]:
    """Noise images and two square objects that move; every other clip has one object only."""
    generator = torch.Generator().manual_seed(1)
    side, third = size.size, size.size // 3
    images = torch.randn(size.batch_size, NUM_FRAMES, side, side, 3, generator=generator).permute(0, 1, 4, 2, 3)
    masks = torch.zeros(size.batch_size, NUM_FRAMES, side, side, dtype=torch.uint8)
    for frame in range(NUM_FRAMES):
        masks[:, frame, frame : frame + third, frame : frame + third] = 1
        masks[::2, frame, -third:, frame : frame + third] = 2
    first = torch.stack([masks[:, 0] == slot for slot in (1, 2)], 1).float()
    first[:, :, : third // 4] = 0
    return {
        "images": images,
        "masks": masks,
        "num_objects": masks[:, 0].flatten(1).amax(1).long(),
        "first_masks": first,
    }


def _now(device: str) -> float:
    if torch.device(device).type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory(size: StepSize, variant: Variant, step: Callable[[], Tensor]) -> float:
    if torch.device(size.device).type == "cpu":
        # A process of its own, because a resident set never shrinks.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(resident_growth_mb, size, variant, torch.get_num_threads()).result()
    torch.cuda.empty_cache()
    before: Any = torch.cuda.memory_allocated(size.device)
    torch.cuda.reset_peak_memory_stats(size.device)
    step()
    return float(torch.cuda.max_memory_allocated(size.device) - before) / 1e6


def resident_growth_mb(size: StepSize, variant: Variant, threads: int) -> float:
    """By how much the peak resident set of one step lies above what this process holds before it."""
    torch.set_num_threads(threads)
    step = prepare(size, variant)
    before = _status_mb("VmRSS")
    step()
    return _status_mb("VmHWM") - before


def _status_mb(field: str) -> float:
    # Not getrusage: its peak is inherited from the process that started this one.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return int(values[field].split()[0]) * 1024 / 1e6
