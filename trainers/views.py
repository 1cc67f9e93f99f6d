"""How a model sees frames: resized, normalised, padded; and what it found, back in the frame's own size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.masks import Padding, pad_to_multiple, unpad
from pipelines.recipes.stm_cycle import NORMALISATIONS
from trainers.label_files import LabelMap

SMALLEST_SIDE = 32
"""Pixels of a padded frame's sides at least: RDE compresses memory in blocks of 2x2 positions of 16 pixels."""
FULL = 1 - 1e-6
"""Of a pixel that interpolation left untouched by any other label; its weights may not sum to 1 exactly."""


@dataclass(frozen=True, slots=True)
class Sight:
    """The sizes a model works at; the defaults are RDE's.

    shorter_side: pixels of it, None: frames stay as they are. box: (height, width) that frames fill as far as their
    aspect allows, in place of shorter_side; with fill_box, black fills the rest of it. multiple: of the padded sides;
    smallest: multiples that they have at least.
    images, masks, results: how frames, given masks and probabilities are resized; `truncated` masks are interpolated
    linearly and lose every pixel that is not the object's alone (as STM-Cycle's published runs did). normalise: by the
    numbers a model was trained with.
    """

    shorter_side: int | None = None
    box: tuple[int, int] | None = None
    fill_box: bool = False
    multiple: int = 16
    smallest: int = SMALLEST_SIDE
    images: Literal["bicubic", "bilinear"] = "bicubic"
    masks: Literal["nearest", "truncated"] = "nearest"
    results: Literal["bilinear", "nearest"] = "bilinear"
    normalise: Literal["imagenet", "scalar"] = "imagenet"

    def __post_init__(self) -> None:
        """Raise ValueError for a box to fill that is not there, or is not what `multiple` and `smallest` ask for."""
        sides = self.box or (0, 0)
        if self.fill_box and any(side % self.multiple or side < max(1, self.smallest) for side in sides):
            raise ValueError(
                f"fill_box needs a box with sides of {self.smallest} or more, multiples of {self.multiple}; "
                f"box is {self.box}"
            )

    def settings(self) -> dict[str, Any]:
        """What results depend on, as JSON values: the shorter side, and whatever is not the default."""
        values, usual = dataclasses.asdict(self), dataclasses.asdict(Sight())
        changed = {name: value for name, value in values.items() if value != usual[name]}
        return {"shorter_side": self.shorter_side} | (changed if self.box is None else changed | {"box": [*self.box]})

    def seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of frames of `size` after resizing; parts of pixels are cut off."""
        height, width = size
        if self.box is not None:
            return _fitted(size, self.box)
        if self.shorter_side is None:
            return size
        if height <= width:
            return self.shorter_side, int(self.shorter_side * width / height)
        return int(self.shorter_side * height / width), self.shorter_side


def _fitted(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    (height, width), (tallest, widest) = size, box
    if tallest * width <= widest * height:
        return tallest, max(1, tallest * width // height)
    return max(1, widest * height // width), widest


@dataclass(frozen=True, slots=True)
class View:
    """Frames of `size` (height, width), on a device, as a model sees them."""

    size: tuple[int, int]
    device: torch.device
    sight: Sight

    @property
    def seen_size(self) -> tuple[int, int]:
        """Height and width after resizing, before padding."""
        return self.sight.seen_size(self.size)

    def image(self, pixels: Tensor) -> tuple[Tensor, Padding]:
        """(H, W, 3) uint8 -> (1, 3, H', W') float32: normalised first, then resized, then padded.

        With the mean, but a box is filled with black.
        """
        image = self._normalised(pixels)
        if self.seen_size != self.size:
            image = F.interpolate(image, self.seen_size, mode=self.sight.images, align_corners=False)
        if self.sight.fill_box:
            return self._filled(image, self._normalised(torch.zeros(1, 1, 3, device=self.device)))
        return self._padded(image)

    def masks(self, labels: LabelMap, ids: Sequence[int] | NDArray[np.uint8]) -> Tensor:
        """Masks (1, N, H', W') float32, 0 or 1, of N objects of a label map (H, W) uint8."""
        on_device = torch.tensor(labels, device=self.device)
        masks = torch.stack([on_device == int(object_id) for object_id in ids]).float()[None]
        if self.seen_size != self.size:
            if self.sight.masks == "nearest":
                masks = F.interpolate(masks, self.seen_size, mode="nearest")
            else:
                soft = F.interpolate(masks, self.seen_size, mode="bilinear", align_corners=False)
                masks = (soft >= FULL).float()
        return self._filled(masks, masks.new_zeros(()))[0] if self.sight.fill_box else self._padded(masks)[0]

    def positions(self, probabilities: Tensor, padding: Padding) -> Tensor:
        """(H, W) uint8, the most probable of background and objects, from probabilities (1, 1+O, H', W')."""
        probabilities = unpad(probabilities, padding)
        if self.seen_size != self.size:
            corners = False if self.sight.results == "bilinear" else None
            probabilities = F.interpolate(probabilities, self.size, mode=self.sight.results, align_corners=corners)
        return probabilities[0].argmax(0).to(torch.uint8)

    def _filled(self, frames: Tensor, colour: Tensor) -> tuple[Tensor, Padding]:
        """Frames (1, C, h, w) in the middle of the box, the rest of it of one colour, () or (1, C, 1, 1)."""
        assert self.sight.box is not None
        (height, width), (tallest, widest) = frames.shape[2:], self.sight.box
        top, left = (tallest - height) // 2, (widest - width) // 2
        filled = colour.expand(1, frames.shape[1], tallest, widest).clone()
        filled[:, :, top : top + height, left : left + width] = frames
        return filled, Padding(left, widest - width - left, top, tallest - height - top)

    def _padded(self, frames: Tensor) -> tuple[Tensor, Padding]:
        return pad_to_multiple(frames, self.sight.multiple, smallest=self.sight.smallest)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """(H, W, 3) uint8 -> (1, 3, H, W) float32."""
        numbers = NORMALISATIONS[self.sight.normalise]
        mean, deviation = (torch.tensor(row, device=self.device) for row in (numbers.mean, numbers.deviation))
        return ((pixels / 255 - mean) / deviation).permute(2, 0, 1)[None]
