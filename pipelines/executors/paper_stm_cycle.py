"""STM-Cycle's two published backends, step by step: PIL with imgaug, and the operators of its DALI graph.

Both end in 8 bit here, where the published code keeps floats: up to half a level, and what lies outside 0..255.
Source: STM-Cycle, Li et al., NeurIPS 2020, and its released code.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.executors.encoded import decode_jpeg, decode_labels
from pipelines.executors.geometry import nearest_affine
from pipelines.recipes.stm_cycle import affine_matrix, corner_shear_matrix
from pipelines.types import VOID, Content, EncodedClip, StmCycleSteps

Pixels = NDArray[np.uint8]


def render(clip: EncodedClip, index: int, image_out: Pixels, labels_out: Pixels) -> None:
    """One frame and its label map; see frames.RenderFrame. Outside the plan's content both are 0."""
    steps, content = clip.plan.steps, clip.plan.content
    assert isinstance(steps, StmCycleSteps) and content is not None
    image, labels = decode_jpeg(clip, index), decode_labels(clip, index)
    known = np.zeros(image.shape[:2], np.uint8) if labels is None else labels
    if steps.backend == "dali":
        image, known = (_dali(pixels, steps, index, content) for pixels in (image, known))
    else:
        image, known = _imgaug(image, known, steps, content, eroded=clip.plan.labels.unanimous)
    image_out[:], labels_out[:] = 0, 0
    place = np.s_[content.top : content.top + content.height, content.left : content.left + content.width]
    image_out[place] = image
    if labels is not None:
        labels_out[place] = known


def _imgaug(
    image: Pixels, labels: Pixels, steps: StmCycleSteps, content: Content, *, eroded: bool
) -> tuple[Pixels, Pixels]:
    """Axes, crop and affine of imgaug, contrast, brightness, mirror, resize."""
    from pipelines.executors.paper_imgaug import crop_and_turn  # noqa: PLC0415 - only this backend needs imgaug

    if steps.transpose:
        image, labels = (np.ascontiguousarray(pixels.swapaxes(0, 1)) for pixels in (image, labels))
    image, labels = crop_and_turn(image, labels, steps)
    floats = image.astype(np.float32) * np.float32(steps.contrast) + np.float32(steps.brightness)
    if steps.flip:
        floats, labels = floats[:, ::-1], labels[:, ::-1]
    size = (content.width, content.height)
    resized = cv2.resize(np.ascontiguousarray(floats), size, interpolation=cv2.INTER_LINEAR)
    pixels = np.clip(np.rint(resized), 0, 255).astype(np.uint8)
    return pixels, resize_labels(np.ascontiguousarray(labels), size, eroded=eroded)


def resize_labels(labels: Pixels, size: tuple[int, int], *, eroded: bool) -> Pixels:
    """A label map (h, w) at `size` (width, height).

    eroded: every label's mask is resized linearly and cut off to 0 and 1, as published; pixels that keep no label are
    void.
    """
    if not eroded:
        return np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    result = np.full(size[::-1], VOID, np.uint8)
    for label in np.unique(labels).tolist():
        mask = cv2.resize((labels == label).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        result[mask.astype(np.uint8) == 1] = label
    return result


def _dali(pixels: Pixels, steps: StmCycleSteps, index: int, content: Content) -> Pixels:
    """Shear, rotation, resize and flip of an image or a label map, each by the nearest pixel."""
    size = pixels.shape[0], pixels.shape[1]
    pixels = nearest_affine(pixels, corner_shear_matrix(*steps.corner_shear), size)
    rotation = np.linalg.inv(affine_matrix(1.0, steps.rotations[index], 0.0, size)).astype(np.float64)
    pixels = nearest_affine(pixels, rotation, size)
    size = content.height, content.width
    scale = np.diag([pixels.shape[1] / size[1], pixels.shape[0] / size[0], 1.0])
    pixels = nearest_affine(pixels, scale, size)
    return pixels[:, ::-1] if steps.flip else pixels
