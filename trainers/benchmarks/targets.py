"""What fitting, refitting and refining cost, beside a plain loop over objects and levels on the same features."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.frozen_trunk import FrozenTrunk, TrunkName
from models.refiner import LEVELS, Refiner
from models.target_fitting import Targets, Weights, condense, pixel_weights
from models.target_models import TargetModels, TargetOptions, fit_first, random_weights
from trainers.benchmarks.published_targets import PlainTargetModel

STRIDES = {"layer5": 32, "layer4": 16, "layer3": 8, "layer2": 4}
TARGET_LEVELS = ("layer3", "layer4")
NUM_FIRST = 5
"""Samples of the first frame."""


@dataclass(frozen=True, slots=True)
class TargetSize:
    """What is timed: a trunk's channels, frames in pixels, objects, and frames in memory when filters are refitted."""

    trunk: TrunkName = "resnet101"
    height: int = 240
    width: int = 427
    objects: int = 3
    remembered: int = 20

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


@dataclass(frozen=True, slots=True)
class TargetTiming:
    """Seconds for all objects, ours and the plain loop's, medians: of the CPU, or where there is a GPU of the wall."""

    name: str
    ours: float
    plain: float


@dataclass(frozen=True, slots=True)
class TargetCosts:
    """All timings, the bytes of either memory, and how far the scores of the two versions are apart at most."""

    timings: tuple[TargetTiming, ...]
    bytes_ours: int
    bytes_plain: int
    largest_difference: float


@torch.no_grad()
def time_targets(size: TargetSize, *, rounds: int, device: str = "cpu") -> TargetCosts:
    """Fit, refit and refine made-up features of `size` on `device`, both ways in turn."""
    scene = _Scene(size, torch.device(device))
    both = _Both(scene)
    fits = [_in_turn(both.fit_ours, both.fit_plainly) for _ in range(rounds)]
    for number in range(size.remembered):
        both.remember(number)
    refits = [_in_turn(both.refit_ours, both.refit_plainly) for _ in range(rounds)]
    refines = [_in_turn(scene.refine_together, scene.refine_alone) for _ in range(rounds + 1)][1:]
    named = {"fit in a first frame": fits, "refit": refits, "refine a frame": refines}
    return TargetCosts(
        tuple(TargetTiming(name, *map(statistics.median, zip(*pairs, strict=True))) for name, pairs in named.items()),
        both.ours.num_bytes,
        sum(model.num_bytes for model in both.plain),
        both.difference(),
    )


def _in_turn(*works: Callable[[], object]) -> tuple[float, ...]:
    return tuple(_seconds(work) for work in works)


def _seconds(work: Callable[[], object]) -> float:
    started = _now()
    work()
    return _now() - started


def _now() -> float:
    """Of the CPU; where there is a GPU of the wall, when it has done all it was given."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class _Scene:
    """Features, masks and a refiner of one size, from one generator."""

    def __init__(self, size: TargetSize, device: torch.device) -> None:
        self.size, self.device = size, device
        self.channels = FrozenTrunk(size.trunk).num_channels
        generator = torch.Generator().manual_seed(0)
        self._generator = generator
        self.refiner = Refiner("bise", self.channels).to(device).eval()
        self.features = [self._made(level, 1) for level in LEVELS]
        self.first = {level: self._made(level, size.objects, NUM_FIRST) for level in TARGET_LEVELS}
        self.masks = torch.stack(
            [torch.stack([self._disc(number, time) for time in range(NUM_FIRST)]) for number in range(size.objects)]
        )
        self.starts = {
            level: random_weights(size.objects, self.channels[level], 64, generator) for level in TARGET_LEVELS
        }

    def next_features(self) -> list[Tensor]:
        """Of the two target levels, (1, C, h, w)."""
        return [self._made(level, 1) for level in TARGET_LEVELS]

    def soft_masks(self, time: int) -> Tensor:
        """(O, H, W)."""
        return torch.stack([0.9 * self._disc(number, time) for number in range(self.size.objects)])

    def refine_together(self) -> Tensor:
        """All objects in one pass, one copy of the features."""
        return self.refiner(self.features, self._scores(self.size.objects), self.size.frame)

    def refine_alone(self) -> list[Tensor]:
        """Each object by itself."""
        return [self.refiner(self.features, self._scores(1), self.size.frame) for _ in range(self.size.objects)]

    def _scores(self, count: int) -> list[Tensor]:
        return [self.features[LEVELS.index(level)][:, :1].expand(count, -1, -1, -1) for level in TARGET_LEVELS]

    def _made(self, level: str, *counts: int) -> Tensor:
        """Features as a trunk's: not negative, smooth neither in space nor over channels."""
        sides = [math.ceil(side / STRIDES[level]) for side in self.size.frame]
        return torch.randn(*counts, self.channels[level], *sides, generator=self._generator).relu().to(self.device)

    def _disc(self, number: int, time: int) -> Tensor:
        """A mask (H, W), 0 or 1, that covers a twentieth of the frame."""
        height, width = self.size.frame
        y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
        distance = (y - 0.3 - 0.1 * number) ** 2 + (x - 0.2 - 0.2 * number - 0.01 * time) ** 2
        return (distance < 0.016).float().to(self.device)


class _Both:
    """The same objects in both versions."""

    def __init__(self, scene: _Scene) -> None:
        self._scene, self._options = scene, TargetOptions()
        self.ours = self.fit_ours()
        self.plain = self.fit_plainly()

    def fit_ours(self) -> TargetModels:
        """All objects of a level at once."""
        scene, options = self._scene, self._options
        squared = pixel_weights(scene.masks.flatten(0, 1))
        fits = []
        for level in TARGET_LEVELS:
            features, start = scene.first[level], scene.starts[level].to(scene.device)
            flat = condense(scene.masks.flatten(0, 1), squared, features.shape[-2:])
            targets = Targets(*(tensor.unflatten(0, scene.masks.shape[:2]) for tensor in flat))
            fits.append(fit_first(features, targets, start, options))
        return TargetModels(fits, options)

    def fit_plainly(self) -> list[PlainTargetModel]:
        """Object by object, level by level."""
        models = []
        for number in range(self._scene.size.objects):
            for level in TARGET_LEVELS:
                project, taps = _one(self._scene.starts[level].to(self._scene.device), number)
                model = PlainTargetModel(project, taps, self._options)
                model.start(self._scene.first[level][number], self._scene.masks[number])
                models.append(model)
        return models

    def remember(self, time: int) -> None:
        """Score a new frame and memorise it in both versions, refits included."""
        features, masks = self._scene.next_features(), self._scene.soft_masks(time)
        self.ours.score(features)
        self.ours.update(masks)
        for place, model in enumerate(self.plain):
            model.score(features[place % 2])
            model.update(masks[place // 2])

    def refit_ours(self) -> None:
        """All objects."""
        self.ours.refit()

    def refit_plainly(self) -> None:
        """Object by object, level by level."""
        for model in self.plain:
            model.refit()

    def difference(self) -> float:
        """Largest distance of two scores of a new frame, over the largest score."""
        features = self._scene.next_features()
        ours = self.ours.score(features)
        plain = [torch.cat([model.score(features[level]) for model in self.plain[level::2]]) for level in range(2)]
        distances = [
            ((one - other).abs().max() / other.abs().max()).item() for one, other in zip(ours, plain, strict=True)
        ]
        return max(distances)


def _one(weights: Weights, number: int) -> tuple[Tensor, Tensor]:
    assert weights.project is not None
    return weights.project[number][:, :, None, None], weights.filter[number].view(1, -1, 3, 3)
