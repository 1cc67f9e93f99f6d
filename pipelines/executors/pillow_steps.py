"""Steps of published recipes in Pillow, as torchvision takes them."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from pipelines.executors.encoded import bad_image, checked_jpeg
from pipelines.types import ColourStep, EncodedClip

ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def open_image(clip: EncodedClip, index: int) -> Image.Image:
    """Frame `index` of the clip in RGB. Raises DataError."""
    try:
        with Image.open(io.BytesIO(checked_jpeg(clip, index)), formats=("JPEG",)) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise bad_image(clip.plan, index, str(error)) from error


def jitter(image: Image.Image, colours: tuple[ColourStep, ...]) -> Image.Image:
    """Apply colour steps in the order given."""
    for name, factor in colours:
        image = shift_hue(image, factor) if name == "hue" else ENHANCE[name](image).enhance(factor)
    return image


def shift_hue(image: Image.Image, turn: float) -> Image.Image:
    """Turn the hues by a part of the circle, in whole steps of 1/255, cut off towards 0, as torchvision does."""
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(int(turn * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def greyscale(image: Image.Image) -> Image.Image:
    """Luma in all three channels."""
    return image.convert("L").convert("RGB")


def mirror(image: Image.Image) -> Image.Image:
    """Left to right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def warp(
    image: Image.Image,
    affine: NDArray[np.float64],
    resampling: Image.Resampling,
    fill: tuple[int, int, int] | int,
) -> Image.Image:
    """Resample by an output -> input matrix (2, 3) onto a canvas of the same size, `fill` outside."""
    # Pillow adds the half pixel itself: its matrices map continuous coordinates, like ours.
    numbers = tuple(affine.reshape(-1).tolist())
    return image.transform(image.size, Image.Transform.AFFINE, numbers, resampling, fillcolor=fill)
