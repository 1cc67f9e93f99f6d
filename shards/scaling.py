"""Smaller copies of large video: what size, which filter, which rounding; stated once for a whole set."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

Rounding = Literal["truncate", "nearest"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """Bring the shorter side of every image and mask to `shorter_side` pixels.

    Images: Pillow's bicubic filter (which averages when it shrinks), stored as JPEG 4:2:0 of `jpeg_quality` 1..100.
    Label maps: nearest. Soft masks: Pillow's bilinear filter. Smaller ones are enlarged only with `enlarge`.
    rounding: of the longer side; `truncate` as the published 480p scripts do (1280x720 -> 853x480), computed exactly.
    """

    shorter_side: int
    enlarge: bool = False
    rounding: Rounding = "truncate"
    jpeg_quality: int = 75

    def __post_init__(self) -> None:
        if self.shorter_side < 8 or not 1 <= self.jpeg_quality <= 100:
            raise ValueError(
                f"shorter side {self.shorter_side} must be at least 8, JPEG quality {self.jpeg_quality} within 1..100"
            )

    def target(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that an image of this (height, width) is stored with."""
        shorter = min(shape)
        if shorter == self.shorter_side or (shorter < self.shorter_side and not self.enlarge):
            return shape
        height, width = (self._rounded(side * self.shorter_side, shorter) for side in shape)
        return height, width

    def _rounded(self, numerator: int, denominator: int) -> int:
        half = denominator // 2 if self.rounding == "nearest" else 0
        return (numerator + half) // denominator


def scale_image(jpeg: bytes, shape: tuple[int, int], quality: int) -> bytes:
    """JPEG of an RGB or grey JPEG at another (height, width)."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        scaled = image.convert("RGB").resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    scaled.save(buffer, "jpeg", quality=quality)
    return buffer.getvalue()


def scale_labels(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Label map (H, W) uint8 at another (height, width); every pixel is a pixel of the original."""
    return np.asarray(Image.fromarray(labels).resize((shape[1], shape[0]), Image.Resampling.NEAREST))


def scale_levels(levels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Soft mask (H, W) uint8 at another (height, width)."""
    return np.asarray(Image.fromarray(levels).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
