"""The augmentation of RDE's video stages as published: Pillow, one step after the other, each rounded to 8 bit.

Slow on purpose: it is there to reproduce old numbers and to be measured against. It differs from the other executors in
what composing saves: two bicubic resamplings instead of one linear, corners lost between them, clipping after every
colour step, and contrast about the mean of the picture at that step.
Source: RDE, Li et al. 2022, data of stages 1-3 (flip, resized crop, jitter, grayscale, affine, jitter).
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from pipelines.executors.encoded import bad_image, checked_jpeg, decode_labels, fill_colour
from pipelines.executors.frames import FrameExecutor
from pipelines.types import ClipPixels, ClipSteps, ColourStep, EncodedClip

ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


class PaperExecutor:
    """Executor over Pillow; results are CPU tensors. Needs plans with `steps`."""

    def __init__(self, *, threads: int = 1) -> None:
        self._frames = FrameExecutor(_render, threads)

    def __call__(self, clips: list[EncodedClip]) -> ClipPixels:
        """See Executor. Raises ValueError for plans of a recipe that has no published steps."""
        return self._frames(clips)

    def close(self) -> None:
        """See Executor."""
        self._frames.close()


def _render(clip: EncodedClip, index: int, image_out: NDArray[np.uint8], labels_out: NDArray[np.uint8]) -> None:
    plan = clip.plan
    if not isinstance(plan.steps, ClipSteps):
        raise ValueError(f"clip {plan.number}: its recipe has no published steps; use the cpu or dali executor")
    image = crop(_open_image(clip, index), plan.steps, plan.size, Image.Resampling.BICUBIC)
    image = jitter(image, plan.steps.clip_colours)
    if plan.steps.grayscale:
        image = image.convert("L").convert("RGB")
    image = warp(image, plan.steps.affines[index], Image.Resampling.BICUBIC, fill_colour(plan))
    image_out[:] = np.asarray(jitter(image, plan.steps.frame_colours[index]))

    labels = decode_labels(clip, index)
    if labels is None:
        labels_out[:] = 0
        return
    label_map = crop(Image.fromarray(labels), plan.steps, plan.size, Image.Resampling.NEAREST)
    labels_out[:] = np.asarray(warp(label_map, plan.steps.affines[index], Image.Resampling.NEAREST, 0))


def crop(image: Image.Image, steps: ClipSteps, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    """Flip, cut out steps.crop and resize it to `size` (height, width)."""
    if steps.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    top, left, height, width = steps.crop
    return image.crop((left, top, left + width, top + height)).resize((size[1], size[0]), resampling)


def jitter(image: Image.Image, colours: tuple[ColourStep, ...]) -> Image.Image:
    """Apply brightness, contrast and saturation steps in the order given."""
    for name, factor in colours:
        image = ENHANCE[name](image).enhance(factor)
    return image


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


def _open_image(clip: EncodedClip, index: int) -> Image.Image:
    try:
        with Image.open(io.BytesIO(checked_jpeg(clip, index)), formats=("JPEG",)) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise bad_image(clip.plan, index, str(error)) from error
