"""Target models of first frames: augment, look, fit. Training and segmenting do it in the same way.

Source: FRTM, Robinson et al. 2020, and MTMFI.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.mtmfi import Mtmfi
from models.target_fitting import Targets, condense, pixel_weights
from models.target_models import LevelFit, TargetOptions, fit_first, join_weights, random_weights
from pipelines.assembly import IMAGE_DEVIATION, IMAGE_MEAN
from pipelines.first_frame.pixels import augment_first_frame
from pipelines.first_frame.plans import FirstFrameOptions, FirstFramePlan

IMAGES_AT_ONCE = 5
"""Samples that go through the trunk together."""


def fit_targets(
    model: Mtmfi,
    images: Tensor,
    masks: Tensor,
    plans: Sequence[FirstFramePlan],
    *,
    augmentation: FirstFrameOptions,
    options: TargetOptions,
) -> list[LevelFit]:
    """The target models of O objects on each of the network's levels, all objects fitted together.

    images (O, 3, H, W) normalised float, or (1, 3, H, W) that shows all of them; masks (O, H, W), 0 or 1; one plan per
    object. In float32 and without gradient, whatever surrounds it.
    """
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        pixels = denormalise(images).expand(len(masks), -1, -1, -1)
        samples = [
            augment_first_frame(image, mask, plan, augmentation)
            for image, mask, plan in zip(pixels, masks.to(torch.uint8), plans, strict=True)
        ]
        labels = torch.stack([each.float() for _, each in samples])  # (O, K, H, W)
        squared = pixel_weights(labels.flatten(0, 1), options.weighting, options.influence)
        by_level = zip(*(_look(model, augmented) for augmented, _ in samples), strict=True)
        return [_fit_level(torch.stack(features), labels, squared, plans, options) for features in by_level]


def _fit_level(
    features: Tensor, labels: Tensor, squared: Tensor, plans: Sequence[FirstFramePlan], options: TargetOptions
) -> LevelFit:
    """One level of O objects: features (O, K, C, h, w), labels (O, K, H, W), squared pixel weights (O * K, H, W)."""
    flat = condense(labels.flatten(0, 1), squared, features.shape[-2:])
    targets = Targets(*(tensor.unflatten(0, labels.shape[:2]) for tensor in flat))
    starts = [
        random_weights(1, features.shape[2], options.num_channels, torch.Generator().manual_seed(plan.seed))
        for plan in plans
    ]
    return fit_first(features, targets, join_weights(starts).to(features.device), options)


def _look(model: Mtmfi, images: Tensor) -> list[Tensor]:
    """Features (K, C, h, w) of each target level, of images (K, 3, H, W) uint8."""
    parts = [
        model.target_features(model.look(normalise(part), with_layer5=False)) for part in images.split(IMAGES_AT_ONCE)
    ]
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def normalise(images: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 -> float32 with ImageNet's mean and deviation."""
    mean, deviation = _constants(images.device)
    return (images / 255 - mean) / deviation


def denormalise(images: Tensor) -> Tensor:
    """(..., 3, H, W) float with ImageNet's mean and deviation -> uint8."""
    mean, deviation = _constants(images.device)
    return ((images.float() * deviation + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, deviation = (torch.tensor(values, device=device) for values in (IMAGE_MEAN, IMAGE_DEVIATION))
    return mean[:, None, None], deviation[:, None, None]
