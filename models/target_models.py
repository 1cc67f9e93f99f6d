"""Target models: for each object and level a bilinear filter that scores where the object is, fitted while segmenting.

Source: MTMFI, which has one on each of two levels, and FRTM, Robinson et al. 2020, which has one on layer4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.target_fitting import (
    MIN_PIXELS,
    Carried,
    PixelWeighting,
    Regularisation,
    Samples,
    Targets,
    Weights,
    condense,
    fit,
    pixel_weights,
    scores_of,
)
from models.target_memory import Growth, LevelMemory, SlotWeights, sum_bytes


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """How target models are fitted; the defaults are MTMFI's at inference.

    num_channels: c, after projection. init_iterations, update_iterations: conjugate gradient steps of each Gauss-Newton
    step, on the first frame and on the memory. forgetting_rate: large means that conjugate gradient starts afresh.
    capacity: samples in memory. refit_every: frames. growth: of the newest sample's weight.
    """

    num_channels: int = 64
    regularisation: Regularisation = field(default_factory=Regularisation)
    init_iterations: tuple[int, ...] = (5, 10, 10, 10, 10)
    update_iterations: tuple[int, ...] = (10,)
    forgetting_rate: float = 750
    weighting: PixelWeighting = "hinge"
    influence: float = 0.1
    capacity: int = 80
    refit_every: int = 8
    growth: Growth = "mtmfi"

    def __post_init__(self) -> None:
        """Refuse numbers that fit nothing."""
        counts = (self.num_channels, self.capacity, self.refit_every, *self.init_iterations, *self.update_iterations)
        if min(counts) < 1 or not self.init_iterations or not self.update_iterations:
            raise ValueError(f"channels, capacity, iterations and refit_every must be at least 1: {self}")
        if not 0 < self.influence < 1 or self.forgetting_rate < 0:
            raise ValueError(f"influence must lie within 0..1 and forgetting_rate be at least 0: {self}")
        if self.regularisation.project <= 0 or self.regularisation.filter <= 0:
            raise ValueError(f"regularisation must be positive, it is the preconditioner: {self.regularisation}")

    @property
    def forgetting(self) -> float:
        """Divides what conjugate gradient remembers; the smallest normal number for rates beyond it."""
        return max(0.9**self.forgetting_rate, torch.finfo(torch.float32).tiny)

    def faster(self) -> TargetOptions:
        """Fewer iterations, as the published `--fast` was meant to have (as released it changed nothing)."""
        return replace(self, init_iterations=(5, 10, 10, 10), update_iterations=(5,))


TRAINING = TargetOptions(
    num_channels=64, regularisation=Regularisation(1e-5, 1e-4), forgetting_rate=75, weighting="none", capacity=20
)
"""FRTM's settings for training, with the 64 channels that MTMFI is thought to have; nothing is refitted there."""


def random_weights(num_objects: int, num_in: int, num_channels: int, generator: torch.Generator) -> Weights:
    """PyTorch's default start of both convolutions, uniform in +-1/sqrt(fan_in), float32 on the CPU."""
    project = torch.rand(num_objects, num_channels, num_in, generator=generator)
    taps = torch.rand(num_objects, num_channels, 9, generator=generator)
    return Weights((2 * project - 1) / math.sqrt(num_in), (2 * taps - 1) / math.sqrt(9 * num_channels))


def join_weights(parts: Sequence[Weights]) -> Weights:
    """The weights of several sets of objects as one set."""
    projects = [each.project for each in parts if each.project is not None]
    return Weights(torch.cat(projects) if projects else None, torch.cat([each.filter for each in parts]))


@dataclass(slots=True)
class LevelFit:
    """One level of O objects after the first frame: weights with projection, the projected samples, CG's state."""

    weights: Weights
    samples: Samples
    carried: Carried | None

    @property
    def filters(self) -> Weights:
        """The filters over projected features."""
        return Weights(None, self.weights.filter)


def first_sample_weights(num_objects: int, num_samples: int, like: Tensor) -> Tensor:
    """(O, K): the frame as it is counts twice as much as each augmentation of it; sums are 1."""
    weights = like.new_ones(num_objects, num_samples)
    weights[:, 0] = 2
    return weights / (num_samples + 1)


def fit_first(features: Tensor, targets: Targets, start: Weights, options: TargetOptions) -> LevelFit:
    """Fit one level on the K samples of the first frame, features (O, K, C, h, w), sample 0 as it is.

    Projection and filter together, then at once the filter alone on the projected samples, as published.
    """
    weights = first_sample_weights(len(features), features.shape[1], features)
    fitted, _ = fit(
        start,
        Samples(features, targets, weights),
        options.regularisation,
        options.init_iterations,
        forgetting=options.forgetting,
    )
    assert fitted.project is not None
    projected = Samples(project(features, fitted), targets, weights)
    alone, carried = fit(
        Weights(None, fitted.filter),
        projected,
        options.regularisation,
        options.update_iterations,
        forgetting=options.forgetting,
    )
    return LevelFit(Weights(fitted.project, alone.filter), projected, carried)


def project(features: Tensor, weights: Weights) -> Tensor:
    """(O, K, c, h, w): features (O, K, C, h, w), or (1, K, C, h, w) of all objects, with fewer channels."""
    assert weights.project is not None
    return (weights.project[:, None] @ features.flatten(3)).unflatten(3, features.shape[3:])


class TargetModels:
    """The target models of objects that began in one frame, on all levels, with their memory.

    Every frame: `score`, then, when the masks of all objects are merged, `update`.
    """

    def __init__(self, fits: Sequence[LevelFit], options: TargetOptions) -> None:
        self._levels, self._options = list(fits), options
        samples = fits[0].samples
        num_objects, self._num_used = samples.weights.shape
        self._slots = SlotWeights(num_objects, self._num_used, options.capacity, options.growth)
        self._slots.to(samples.features.device, samples.features.dtype)
        self._memories = [LevelMemory(each.samples.features, each.samples.targets, options.capacity) for each in fits]
        self._projected: list[Tensor] = []
        self._num_scored = 0

    @property
    def num_objects(self) -> int:
        """Objects that began together."""
        return len(self._slots.weights)

    @property
    def sample_weights(self) -> Tensor:
        """(O, capacity): what each slot weighs now, 0 where it is empty."""
        return self._slots.weights

    @property
    def weights(self) -> list[Weights]:
        """Projection and filter of each level as they are now."""
        return [level.weights for level in self._levels]

    @property
    def num_bytes(self) -> int:
        """Bytes of the memory."""
        return sum_bytes(self._memories)

    def score(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Scores (O, 1, h, w) of each level in a frame with features (1, C, h, w)."""
        with torch.autocast(features[0].device.type, enabled=False):
            self._projected = [
                project(feature[:, None].to(level.weights.filter.dtype), level.weights)
                for feature, level in zip(features, self._levels, strict=True)
            ]
            self._num_scored += 1
            return [
                scores_of(projected, level.filters)
                for projected, level in zip(self._projected, self._levels, strict=True)
            ]

    def update(self, masks: Tensor) -> None:
        """Memorise the frame that was scored last with its soft masks (O, H, W), and refit if one is due.

        An object with fewer than ten pixels above one half is left as it is, memory and filters.
        """
        hard = (masks > 0.5).to(masks.dtype)
        active = hard.sum((1, 2)) >= MIN_PIXELS
        slots = self._slots.insert(active)
        self._num_used = min(self._num_used + 1, self._options.capacity)
        squared = pixel_weights(hard, self._options.weighting, self._options.influence)
        for memory, projected in zip(self._memories, self._projected, strict=True):
            targets = condense(masks, squared, projected.shape[-2:])
            memory.write(slots, projected[:, 0], targets, active, needed=self._num_used)
        if self._num_scored % self._options.refit_every == 0:
            self.refit(active)

    def refit(self, active: Tensor | None = None) -> None:
        """Fit the filters of active objects (O,) bool, or of all, to the memory as it is."""
        options = self._options
        if active is None:
            active = torch.ones(self.num_objects, dtype=torch.bool, device=self._slots.weights.device)
        for level, memory in zip(self._levels, self._memories, strict=True):
            fitted, carried = fit(
                level.filters,
                memory.samples(self._slots.weights, self._num_used),
                options.regularisation,
                options.update_iterations,
                forgetting=options.forgetting,
                carried=level.carried,
            )
            kept = torch.where(active[:, None, None], fitted.filter, level.weights.filter)
            level.weights = Weights(level.weights.project, kept)
            level.carried = _choose(active, carried, level.carried)


def _choose(active: Tensor, new: Carried | None, old: Carried | None) -> Carried | None:
    """`new` for active objects, `old` for the others; `new` where there is nothing old."""
    if new is None or old is None:
        return new
    each = active[:, None, None]
    direction = torch.where(each, new.direction.filter, old.direction.filter)
    residual = torch.where(each, new.residual.filter, old.residual.filter)
    return Carried(Weights(None, direction), Weights(None, residual), torch.where(active, new.rho, old.rho))
