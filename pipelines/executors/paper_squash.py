"""FRTM's and MTMFI's preparation of a training frame as published: one resize, and nothing else.

Source: Robinson et al., FRTM, CVPR 2020. Its images were meant to be resized otherwise, but its call says bilinear.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipelines.executors.encoded import decode_jpeg, decode_labels
from pipelines.types import EncodedClip


def render(clip: EncodedClip, index: int, image_out: NDArray[np.uint8], labels_out: NDArray[np.uint8]) -> None:
    """One frame and its label map; see frames.RenderFrame."""
    height, width = clip.plan.size
    cv2.resize(decode_jpeg(clip, index), (width, height), dst=image_out, interpolation=cv2.INTER_LINEAR)
    labels = decode_labels(clip, index)
    if labels is None:
        labels_out[:] = 0
        return
    resized = F.interpolate(torch.from_numpy(labels)[None, None], (height, width), mode=_mode(clip))
    labels_out[:] = resized[0, 0].numpy()


def _mode(clip: EncodedClip) -> str:
    return "nearest-exact" if clip.plan.label_matrices is None else "nearest"
