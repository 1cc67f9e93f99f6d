"""What a training step of STM-Cycle costs: ours, and the clip-by-clip loop of the published code, in turns in one run.

Times of one thread are CPU time, of several and of a GPU wall time (between synchronisations); medians over rounds.
Before them one step of each is counted, not timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import use_channels_last
from trainers.benchmarks.published_stm import PublishedStmStep
from trainers.benchmarks.stm_size import StmSize, clock_seconds, upright_bars
from trainers.benchmarks.work import Work, count_work
from trainers.objectives.stm_cycle import StmCycleObjective

LOOP, OURS, OURS_CHANNELS_LAST = "clip-by-clip loop", "ours", "ours, channels_last"
STEPS = (LOOP, OURS, OURS_CHANNELS_LAST)
NUM_FRAMES, NUM_SLOTS = 3, 5


@dataclass(frozen=True, slots=True)
class StmStepSize(StmSize):
    """Clips per step, of which every other one has `num_objects`, the rest one; threads: of a CPU."""

    size: tuple[int, int] = (120, 213)
    num_objects: int = 2
    batch_size: int = 4
    threads: int = 1

    @property
    def timed_by_wall(self) -> bool:
        """Threads that wait for others use up CPU time too, so it says nothing of several."""
        return self.threads > 1 or torch.device(self.device).type != "cpu"


@dataclass(frozen=True, slots=True)
class StmStepCost:
    """A step, forward, losses and backward: milliseconds, work, and its loss, which is the same for all."""

    step_ms: float
    work: Work
    loss: float


def time_stm_steps(size: StmStepSize, *, rounds: int = 5) -> dict[str, StmStepCost]:
    """Cost of each way to take the step, on the same batch and weights."""
    steps = {name: _prepare(size, name) for name in STEPS}
    work = {name: count_work(step) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    losses = {}
    for _ in range(rounds):
        for name, step in steps.items():
            started = clock_seconds(size.device, wall=size.timed_by_wall)
            loss = step()
            seconds[name].append(clock_seconds(size.device, wall=size.timed_by_wall) - started)
            losses[name] = float(loss)
    return {name: StmStepCost(1e3 * statistics.median(seconds[name]), work[name], losses[name]) for name in STEPS}


def _prepare(size: StmStepSize, name: str) -> Callable[[], Tensor]:
    model = size.make_model()
    if name == OURS_CHANNELS_LAST:
        use_channels_last(model)
    step: nn.Module = PublishedStmStep(model) if name == LOOP else StmCycleObjective(model)
    batch = make_stm_batch(size)

    def take() -> Tensor:
        step.zero_grad(set_to_none=True)
        loss: Tensor = step(*batch)[0]
        loss.backward()
        return loss.detach()

    return take


def make_stm_batch(size: StmStepSize) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noise images and upright bars that move; every other clip has one object only."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size.batch_size, NUM_FRAMES, *size.size, 3, generator=generator).permute(0, 1, 4, 2, 3)
    counts = [size.num_objects if clip % 2 == 0 else 1 for clip in range(size.batch_size)]
    clips = [[upright_bars(size.size, count, shift=time) for time in range(NUM_FRAMES)] for count in counts]
    masks = torch.stack([torch.stack(frames) for frames in clips])  # (B, T, H, W)
    first = torch.stack([masks[:, 0] == slot for slot in range(1, NUM_SLOTS + 1)], 1).float()
    batch = (images, masks, torch.tensor(counts), first)
    return tuple(part.to(size.device) for part in batch)  # type: ignore[return-value]
