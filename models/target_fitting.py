"""Least squares of a target model: what its loss needs of full-size labels, and Gauss-Newton over many objects at once.

The loss compares scores, resized to the labels by a fixed linear map U, with labels y under pixel weights v:
|| v (U d - y) ||^2. It is a quadratic form of the scores d at their own size, d' (U' v^2 U) d - 2 d' (U' v^2 y) + ...,
and U' v^2 U couples a position with its eight neighbours only. So nine numbers per position and one more stand for the
labels, exactly, and nothing below works at full size. Source: FRTM, Robinson et al. 2020, and MTMFI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 9
PixelWeighting = Literal["hinge", "none"]
MIN_PIXELS = 10
"""Pixels below which a mask counts as too small to say anything of the object's size."""


class Targets(NamedTuple):
    """Labels and pixel weights as the loss sees them from (h, w): stencil (..., 9, h, w) and pull (..., h, w)."""

    stencil: Tensor
    pull: Tensor


class Weights(NamedTuple):
    """Target models of O objects on one level; project is None where features are projected already.

    project (O, c, C), filter (O, c, 9) with the 3x3 taps row by row.
    """

    project: Tensor | None
    filter: Tensor

    def to(self, device: torch.device) -> Weights:
        """On another device."""
        return Weights(None if self.project is None else self.project.to(device), self.filter.to(device))


class Samples(NamedTuple):
    """K samples for each of O objects: features (O, K, C, h, w), their targets, and sample weights (O, K)."""

    features: Tensor
    targets: Targets
    weights: Tensor


@dataclass(slots=True)
class Carried:
    """What conjugate gradient keeps from one call to the next: direction and residual as Weights, rho (O,)."""

    direction: Weights
    residual: Weights
    rho: Tensor


@dataclass(frozen=True, slots=True)
class Regularisation:
    """Factors on the weights inside the residual (so squared in the loss), which are the preconditioner as well."""

    project: float = 1e-4
    filter: float = 1e-2


def pixel_weights(masks: Tensor, weighting: PixelWeighting = "hinge", influence: float = 0.1) -> Tensor:
    """Squared pixel weights (N, H, W) of hard masks (N, H, W), 0 or 1.

    "hinge" gives an object that covers less than `influence` of the image that much of the loss. Masks below ten
    pixels, and ones that cover everything (where the published formula divides by zero), weigh 1.
    """
    if weighting == "none":
        return torch.ones_like(masks)
    share = masks.mean((1, 2), keepdim=True)
    share = torch.where(masks.sum((1, 2), keepdim=True) < MIN_PIXELS, influence, share)
    wanted = share.clamp(min=influence)
    inside, outside = wanted / share, (1 - wanted) / (1 - share)
    return torch.where(share < influence, torch.where(masks > 0, inside, outside), 1.0)


def condense(labels: Tensor, weights: Tensor, size: Sequence[int]) -> Targets:
    """Targets (N, ...) at `size` = (h, w) of labels (N, H, W) in 0..1 with squared pixel weights (N, H, W).

    U is bilinear, corners not aligned. All float, one dtype.
    """
    height, width = (int(side) for side in size)
    rows = _resizing(height, labels.shape[1], labels)  # (H, h)
    columns = _resizing(width, labels.shape[2], labels)  # (W, w)
    pull = rows.T @ (weights * labels) @ columns
    products = _neighbour_products(rows) @ weights @ _neighbour_products(columns).T  # (N, 3 * h, 3 * w)
    stencil = products.unflatten(2, (3, width)).unflatten(1, (3, height)).permute(0, 1, 3, 2, 4)
    return Targets(stencil.flatten(1, 2).contiguous(), pull)


def scores_of(features: Tensor, weights: Weights) -> Tensor:
    """Scores (O, K, h, w) of features (O, K, C, h, w): the filter over the projected features, zeros outside."""
    return _filter(features, _joined(weights))


def fit(
    start: Weights,
    samples: Samples,
    regularisation: Regularisation,
    iterations: Sequence[int],
    *,
    forgetting: float,
    carried: Carried | None = None,
) -> tuple[Weights, Carried | None]:
    """Gauss-Newton: one outer step for each entry of `iterations`, which is its number of conjugate gradient steps.

    All objects go through the same steps together, each with scalars of its own; no gradient is recorded and nothing
    waits for the device. carried: of the last call on these objects; forgetting: 0.9 ** (forgetting rate), by which the
    old rho is divided. No damping, no line search, no tolerance, as published; 0 / 0 counts as 0, so an object whose
    residual is zero keeps its weights.
    """
    with torch.no_grad(), torch.autocast(start.filter.device.type, enabled=False):
        weights = start
        for count in iterations:
            problem = _Problem(weights, samples, regularisation)
            if carried is not None:
                carried = Carried(carried.direction, carried.residual, carried.rho / forgetting)
            step, carried = _conjugate_gradient(problem, count, carried)
            weights = _combine(weights, step, torch.ones_like(samples.weights[:, 0]))
        return weights, carried


class _Problem:
    """The linearised problem of all objects at one point."""

    def __init__(self, weights: Weights, samples: Samples, regularisation: Regularisation) -> None:
        self.weights = weights
        self.samples = samples
        self.factors = regularisation
        distance = self._weigh(_filter(samples.features, _joined(weights))) - self._each(samples.targets.pull)
        self.right_side = _map(lambda tensor: -tensor, self._back(distance, weights))

    def multiply(self, step: Weights) -> Weights:
        """J' J step."""
        filters = _joined(Weights(self.weights.project, step.filter))
        if step.project is not None:
            filters = filters + _joined(Weights(step.project, self.weights.filter))
        return self._back(self._weigh(_filter(self.samples.features, filters)), step)

    def _weigh(self, scores: Tensor) -> Tensor:
        """The quadratic form's matrix times scores (O, K, h, w), weighed by sample."""
        around = F.unfold(scores.flatten(0, 1)[:, None], 3, padding=1).view(self.samples.targets.stencil.shape)
        return self._each((around * self.samples.targets.stencil).sum(2))

    def _each(self, maps: Tensor) -> Tensor:
        return maps * self.samples.weights[:, :, None, None]

    def _back(self, maps: Tensor, point: Weights) -> Weights:
        """J' of score maps (O, K, h, w), plus the regulariser's part at `point`."""
        features = self.samples.features.flatten(3)  # (O, K, C, n)
        shifted = F.unfold(maps.flatten(0, 1)[:, None], 3, padding=1).flip(1).unflatten(0, maps.shape[:2])
        correlated = (shifted @ features.transpose(2, 3)).sum(1)  # (O, 9, C)
        on_project, on_filter = self.factors.project**2, self.factors.filter**2
        if self.weights.project is None or point.project is None:
            return Weights(None, correlated.transpose(1, 2) + on_filter * point.filter)
        return Weights(
            self.weights.filter @ correlated + on_project * point.project,
            self.weights.project @ correlated.transpose(1, 2) + on_filter * point.filter,
        )


def _conjugate_gradient(problem: _Problem, count: int, carried: Carried | None) -> tuple[Weights, Carried | None]:
    """Exactly `count` preconditioned Polak-Ribiere steps on J' J step = right side, from 0."""
    residual = problem.right_side
    step = _map(torch.zeros_like, residual)
    for number in range(count):
        scaled = _divide(residual, problem.factors)
        rho = _inner(residual, scaled)
        if carried is None:
            direction = scaled
        else:
            growth = _ratio(rho - _inner(carried.residual, scaled), carried.rho).clamp(min=0)
            direction = _combine(scaled, carried.direction, growth)
        product = problem.multiply(direction)
        length = _ratio(rho, _inner(direction, product))
        carried = Carried(direction, residual, rho)
        step = _combine(step, direction, length)
        if number < count - 1:
            residual = _combine(residual, product, -length)
    return step, carried


def _joined(weights: Weights) -> Tensor:
    """(O, 9, C): projection and filter as one filter over unprojected features."""
    taps = weights.filter.transpose(1, 2)
    return taps if weights.project is None else taps @ weights.project


def _filter(features: Tensor, filters: Tensor) -> Tensor:
    """(O, K, h, w): filters (O, 9, C), 3x3 with zeros outside, over features (O, K, C, h, w)."""
    maps = filters[:, None] @ features.flatten(3)  # (O, K, 9, n): every tap at every position, then moved into place
    moved = F.fold(maps.flatten(0, 1).flip(1), features.shape[-2:], 3, padding=1)
    return moved.view(*features.shape[:2], *features.shape[-2:])


def _resizing(source: int, target: int, like: Tensor) -> Tensor:
    """(target, source): bilinear resizing of one side as a matrix."""
    identity = torch.eye(source, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(identity, target, mode="linear", align_corners=False)[0].T


def _neighbour_products(resizing: Tensor) -> Tensor:
    """(3 * h, H): for shifts -1, 0, 1, the products of a source position's column of (H, h) and its neighbour's."""
    own = resizing.T
    padded = F.pad(own, (0, 0, 1, 1))
    return torch.cat([own * padded[shift : shift + len(own)] for shift in range(3)])


def _map(function: Callable[[Tensor], Tensor], weights: Weights) -> Weights:
    return Weights(None if weights.project is None else function(weights.project), function(weights.filter))


def _divide(weights: Weights, factors: Regularisation) -> Weights:
    project = None if weights.project is None else weights.project / factors.project
    return Weights(project, weights.filter / factors.filter)


def _combine(weights: Weights, other: Weights, scale: Tensor) -> Weights:
    """weights + scale * other; scale (O,)."""
    each = scale[:, None, None]
    project = None
    if weights.project is not None and other.project is not None:
        project = weights.project + each * other.project
    return Weights(project, weights.filter + each * other.filter)


def _inner(one: Weights, other: Weights) -> Tensor:
    """(O,): inner products over all tensors."""
    product = (one.filter * other.filter).sum((1, 2))
    if one.project is not None and other.project is not None:
        product = product + (one.project * other.project).sum((1, 2))
    return product


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, 0 where the denominator is 0."""
    return torch.where(denominator == 0, 0.0, numerator / denominator)
