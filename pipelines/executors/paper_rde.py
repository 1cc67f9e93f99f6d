"""RDE's video stages as published: two bicubic resamplings, clipping after every colour step.

It differs from the other executors in what composing saves: one linear resampling more, corners lost between the two,
and contrast about the mean of the picture at that step instead of a constant.
Source: RDE, Li et al. 2022, data of stages 1-3 (flip, resized crop, jitter, grayscale, affine, jitter).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.executors.encoded import decode_labels, fill_colour
from pipelines.executors.pillow_steps import greyscale, jitter, mirror, open_image, warp
from pipelines.types import ClipSteps, EncodedClip


def render(clip: EncodedClip, index: int, image_out: NDArray[np.uint8], labels_out: NDArray[np.uint8]) -> None:
    """One frame and its label map; see frames.RenderFrame."""
    plan, steps = clip.plan, clip.plan.steps
    assert isinstance(steps, ClipSteps)
    image = crop(open_image(clip, index), steps, plan.size, Image.Resampling.BICUBIC)
    image = jitter(image, steps.clip_colours)
    if steps.grayscale:
        image = greyscale(image)
    image = warp(image, steps.affines[index], Image.Resampling.BICUBIC, fill_colour(plan))
    image_out[:] = np.asarray(jitter(image, steps.frame_colours[index]))

    labels = decode_labels(clip, index)
    if labels is None:
        labels_out[:] = 0
        return
    label_map = crop(Image.fromarray(labels), steps, plan.size, Image.Resampling.NEAREST)
    labels_out[:] = np.asarray(warp(label_map, steps.affines[index], Image.Resampling.NEAREST, 0))


def crop(image: Image.Image, steps: ClipSteps, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    """Flip, cut out steps.crop and resize it to `size` (height, width)."""
    image = mirror(image) if steps.flip else image
    top, left, height, width = steps.crop
    return image.crop((left, top, left + width, top + height)).resize((size[1], size[0]), resampling)
