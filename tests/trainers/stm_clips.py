"""Small batches for STM-Cycle: two clips with 3 and 1 objects, of which some leave the picture."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from models.stm import Stm

SIZE = (40, 56)


class Clips(NamedTuple):
    """What an objective takes, in its order."""

    images: Tensor
    masks: Tensor
    num_objects: Tensor
    first_masks: Tensor

    def clip(self, number: int) -> Clips:
        """One of the clips as a batch of its own."""
        return Clips(*(part[number : number + 1] for part in self))


def small_stm(seed: int = 0) -> Stm:
    """ResNet-18 with 4 of 64 channels."""
    logger = logging.getLogger("models.stm")
    before, logger.disabled = logger.disabled, True
    model = Stm(arch="resnet18", width=0.0625, generator=torch.Generator().manual_seed(seed))
    logger.disabled = before
    return model


def make_clips(*, num_frames: int = 3) -> Clips:
    """Clip 0: three objects; the second is missing from the last frame. Clip 1: one object, with void pixels."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, num_frames, 3, *SIZE, generator=generator)
    masks = torch.zeros(2, num_frames, *SIZE, dtype=torch.uint8)
    for time in range(num_frames):
        masks[0, time, 4:20, 4 + time : 20 + time] = 1
        masks[0, time, 22:36, 10 : 30 - 2 * time] = 2
        masks[0, time, 10:30, 40 - time : 50 - time] = 3
        masks[1, time, 8:30, 12 + time : 40] = 1
        masks[1, time, :4] = 255
    masks[0, -1][masks[0, -1] == 2] = 0
    return Clips(images, masks, torch.tensor([3, 1]), first_masks_of(masks, 4))


def first_masks_of(masks: Tensor, num_slots: int) -> Tensor:
    """Masks of frame 0 by slot, (B, K, H, W) float."""
    return torch.stack([(masks[:, 0] == slot).float() for slot in range(1, num_slots + 1)], 1)
