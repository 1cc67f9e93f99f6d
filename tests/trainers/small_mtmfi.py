"""A small MTMFI network and frames to go with it."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from models.mtmfi import Mtmfi
from pipelines.order.streams import Stream, StreamName
from pipelines.types import Batch, ClipPlan
from trainers.targets.fits import normalise

SIZE = (48, 64)


def small_network(variant: str = "bise", *, train_trunk: bool = False) -> Mtmfi:
    """ResNet-18 with 8 channels in its stem, random but always the same."""
    logger = logging.getLogger("models.frozen_trunk")
    logger.disabled = True
    generator = torch.Generator().manual_seed(5)
    model = Mtmfi(variant, "resnet18", 8, train_trunk=train_trunk, generator=generator)
    logger.disabled = False
    return model


def moving_square(time: int, *, top: int = 10) -> tuple[Tensor, Tensor]:
    """Frame `time` (3, 48, 64), normalised: a bright square of 14 pixels moves right; and its mask (48, 64)."""
    y, x = np.mgrid[:48, :64]
    image = np.stack([90 + 40 * np.sin(x / 5), 80 + 30 * np.cos(y / 4), 70 + 20 * np.sin((x + y) / 6)])
    mask = np.zeros(SIZE, np.float32)
    mask[top : top + 14, 8 + 2 * time : 22 + 2 * time] = 1
    image[:, mask > 0] = np.array([230, 60, 200])[:, None]
    return normalise(torch.from_numpy(image.astype(np.uint8))), torch.from_numpy(mask)


def small_batch(numbers: tuple[int, ...] = (0, 3), *, object_ids: tuple[int, ...] = (1,)) -> Batch:
    """Clips of three frames whose reference is frame `number` of one video."""
    clips = [[moving_square(time, top=10 + number) for time in (number, 2, 5)] for number in numbers]
    images = torch.stack([torch.stack([image for image, _ in clip]) for clip in clips])
    masks = torch.stack([torch.stack([mask for _, mask in clip]) for clip in clips])
    return Batch(
        step=0,
        images=images,
        masks=masks.to(torch.uint8),
        num_objects=torch.ones(len(clips), dtype=torch.int64),
        first_masks=masks[:, :1],
        annotated=torch.ones(masks.shape[:2], dtype=torch.bool),
        plans=tuple(small_plan(number, object_ids) for number in numbers),
    )


def small_plan(number: int, object_ids: tuple[int, ...] = (1,)) -> ClipPlan:
    """The plan of a clip whose frame 0 is row `number`."""
    return ClipPlan(
        number=number,
        dataset=0,
        video=0,
        frames=(number, 2, 5),
        object_ids=object_ids,
        size=SIZE,
        matrices=np.tile(np.eye(2, 3, dtype=np.float32), (3, 1, 1)),
        colours=np.tile(np.eye(3, 4, dtype=np.float32), (3, 1, 1)),
        fill=(0.0, 0.0, 0.0),
        damage_key=Stream((0, 0), StreamName.DAMAGE, number).key(),
        damage_iou=None,
        trial=0,
    )
