"""Target models as MTMFI published them: one object and one level at a time, at full size, through double backward.

What the fast version is measured beside and tested against; nothing else uses it. Written from the method's
description: the loss compares resized scores with labels pixel by pixel, and J and its transpose come from autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from models.target_fitting import pixel_weights
from models.target_memory import SlotWeights
from models.target_models import TargetOptions

Tensors = list[Tensor]


@dataclass
class PlainFit:
    """Gauss-Newton on one object and level, and what its conjugate gradient carries over."""

    factors: Sequence[float]
    forgetting: float
    direction: Tensors | None = None
    rho: Tensor = field(default_factory=lambda: torch.ones(()))
    before: Tensors = field(default_factory=list)

    def run(self, weights: Tensors, samples: PlainSamples, iterations: Sequence[int]) -> Tensors:
        """The weights after one outer step for each number of conjugate gradient steps."""
        for count in iterations:
            leaves = [weight.detach().requires_grad_() for weight in weights]
            with torch.enable_grad():
                residual = samples.residual(leaves, self.factors)
                probe = torch.zeros_like(residual).requires_grad_()
                pulled = torch.autograd.grad(residual, leaves, probe, create_graph=True)
            right = [-each for each in torch.autograd.grad(residual, leaves, residual.detach(), retain_graph=True)]
            step = self._solve(right, count, (residual, leaves, probe, pulled))
            weights = [weight + each for weight, each in zip(weights, step, strict=True)]
        return weights

    def _solve(self, right: Tensors, count: int, graph: tuple[Tensor, Tensors, Tensor, Sequence[Tensor]]) -> Tensors:
        residual, leaves, probe, pulled = graph
        if self.direction is not None:
            self.rho = self.rho / self.forgetting
        left, step = right, [torch.zeros_like(each) for each in right]
        for number in range(count):
            scaled = [each / factor for each, factor in zip(left, self.factors, strict=True)]
            rho_before, self.rho = self.rho, _dot(left, scaled)
            if self.direction is None:
                self.direction = scaled
            else:
                beta = ((self.rho - _dot(self.before, scaled)) / rho_before).clamp(min=0)
                self.direction = [new + beta * old for new, old in zip(scaled, self.direction, strict=True)]
            (forward,) = torch.autograd.grad(pulled, probe, self.direction, retain_graph=True)
            product = torch.autograd.grad(residual, leaves, forward, retain_graph=True)
            length = self.rho / _dot(self.direction, product)
            self.before = left
            step = [each + length * part for each, part in zip(step, self.direction, strict=True)]
            if number < count - 1:
                left = [each - length * part for each, part in zip(left, product, strict=True)]
        return step


@dataclass
class PlainSamples:
    """K samples: features (K, C, h, w), labels (K, 1, H, W), squared pixel weights likewise, sample weights (K,)."""

    features: Tensor
    labels: Tensor
    squared: Tensor
    weights: Tensor

    def residual(self, weights: Tensors, factors: Sequence[float]) -> Tensor:
        """Flat: every pixel of every sample, and the weights themselves times their factors."""
        scores = self.features
        for weight in weights:
            scores = F.conv2d(scores, weight, padding=weight.shape[-1] // 2)
        resized = F.interpolate(scores, self.labels.shape[-2:], mode="bilinear", align_corners=False)
        data = (self.squared * self.weights[:, None, None, None]).sqrt() * (resized - self.labels)
        regularised = [(factor * weight).flatten() for factor, weight in zip(factors, weights, strict=True)]
        return torch.cat([data.flatten(), *regularised])


class PlainTargetModel:
    """One object on one level, with its own copy of labels and pixel weights at full size."""

    def __init__(self, project: Tensor, taps: Tensor, options: TargetOptions) -> None:
        """project (c, C, 1, 1), taps (1, c, 3, 3): the start."""
        self.project, self.filter, self._options = project, taps, options
        factors = (options.regularisation.project, options.regularisation.filter)
        self._first = PlainFit(factors, options.forgetting)
        self._online = PlainFit(factors[1:], options.forgetting)
        self._num_scored = 0

    def start(self, features: Tensor, masks: Tensor) -> None:
        """Fit on the first frame: features (K, C, h, w), masks (K, H, W) 0 or 1."""
        options, count, device = self._options, len(features), features.device
        slots = SlotWeights(1, count, options.capacity, options.growth).to(device, features.dtype)
        self._slots = slots
        squared = pixel_weights(masks, options.weighting, options.influence)[:, None]
        first = PlainSamples(features, masks[:, None], squared, slots.weights[0, :count])
        self.project, self.filter = self._first.run([self.project, self.filter], first, options.init_iterations)
        shape = (options.capacity, *masks.shape[1:])
        self._samples = features.new_zeros(options.capacity, len(self.project), *features.shape[2:])
        self._labels, self._squared = (features.new_zeros(shape)[:, None] for _ in range(2))
        self._samples[:count] = F.conv2d(features, self.project)
        self._labels[:count], self._squared[:count] = masks[:, None], squared
        self.refit()

    @property
    def num_bytes(self) -> int:
        """Bytes of the memory."""
        return self._samples.nbytes + self._labels.nbytes + self._squared.nbytes

    def score(self, features: Tensor) -> Tensor:
        """Scores (1, 1, h, w) of features (1, C, h, w)."""
        self._projected = F.conv2d(features, self.project)
        self._num_scored += 1
        return F.conv2d(self._projected, self.filter, padding=1)

    def update(self, mask: Tensor) -> None:
        """Memorise the scored frame with its soft mask (H, W), and refit if one is due."""
        hard = (mask > 0.5).to(mask.dtype)[None]
        if hard.sum() < 10:
            return
        slot = int(self._slots.insert(torch.ones(1, dtype=torch.bool, device=mask.device)).item())
        self._samples[slot], self._labels[slot, 0] = self._projected[0], mask
        self._squared[slot] = pixel_weights(hard, self._options.weighting, self._options.influence)
        if self._num_scored % self._options.refit_every == 0:
            self.refit()

    def refit(self) -> None:
        """The filter alone, on all samples that weigh anything."""
        used = self._slots.weights[0] > 0
        samples = PlainSamples(
            self._samples[used], self._labels[used], self._squared[used], self._slots.weights[0, used]
        )
        (self.filter,) = self._online.run([self.filter], samples, self._options.update_iterations)


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
