"""Executor of first-frame plans: torch on the frame's device, but for Telea's inpainting, which OpenCV does on the CPU.

Source: FRTM, Robinson et al. 2020, and MTMFI. Theirs is a CUDA extension; bicubic kernels and coordinates are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.first_frame.plans import (
    MAX_RADIUS,
    Box,
    FirstFrameOptions,
    FirstFramePlan,
    Hole,
    Variant,
    background_matrix,
    blur_kernel,
    object_matrix,
)

GREY = 128.0


def augment_first_frame(
    image: Tensor, mask: Tensor, plan: FirstFramePlan, options: FirstFrameOptions
) -> tuple[Tensor, Tensor]:
    """Samples (K, 3, H, W) uint8 and their masks (K, H, W) uint8, 0 or 1; sample 0 is the frame as it is.

    image (3, H, W) uint8, mask (H, W) uint8, 0 or 1. Waits for the device once per try: which candidates show the
    object decides which are taken. Of an object that no candidate shows, an empty one too, the frame itself is
    repeated (the published code would try forever).
    """
    samples = options.num_samples
    box = _box(mask)
    chosen, warped = _choose(mask, plan.variants, box, samples - 1)
    if not chosen:
        return image.repeat(samples, 1, 1, 1), mask.repeat(samples, 1, 1)
    made = _compose(image, mask, chosen, box, options.hole)
    missing = samples - 1 - len(chosen)
    images = torch.cat([image[None], made, image.repeat(missing, 1, 1, 1)])
    return images, torch.cat([mask[None], warped, mask.repeat(missing, 1, 1)])


def _box(mask: Tensor) -> Box | None:
    rows, columns = mask.any(1), mask.any(0)
    ends = [
        rows.float().argmax(),
        rows.flip(0).float().argmax(),
        columns.float().argmax(),
        columns.flip(0).float().argmax(),
    ]
    top, below, left, right, present = torch.stack([*ends, rows.any().long()]).tolist()
    if not present:
        return None
    return Box(left, top, mask.shape[1] - right - left, mask.shape[0] - below - top)


def _choose(mask: Tensor, variants: Sequence[Variant], box: Box | None, count: int) -> tuple[list[Variant], Tensor]:
    """The first `count` candidates that show some of the object and not only it, and their masks (count, H, W)."""
    kept: list[Variant] = []
    masks = [mask.new_empty(0, *mask.shape)]
    place = 0
    while box is not None and len(kept) < count and place < len(variants):
        tried = variants[place : place + count - len(kept)]
        place += len(tried)
        warped = warp_nearest(mask, [object_matrix(variant, box, (mask.shape[0], mask.shape[1])) for variant in tried])
        areas = warped.flatten(1).sum(1, dtype=torch.int64)
        shown = ((areas >= 1) & (areas < mask.numel() - 1)).tolist()
        kept += [variant for variant, fits in zip(tried, shown, strict=True) if fits]
        masks.append(warped[torch.tensor(shown, device=mask.device)])
    return kept, torch.cat(masks)


def _compose(image: Tensor, mask: Tensor, variants: Sequence[Variant], box: Box | None, hole: Hole) -> Tensor:
    """(N, 3, H, W) uint8: the moved object over the moved background."""
    assert box is not None
    height, width = mask.shape
    cut_out = torch.cat([image * mask, 255 * mask[None]]).float()
    object_matrices = [object_matrix(variant, box, (height, width)) for variant in variants]
    moved = _blur(warp_bicubic(cut_out, object_matrices), [(each.blur, each.blur_angle) for each in variants])
    background_matrices = [background_matrix(variant, (height, width)) for variant in variants]
    behind = warp_bicubic(fill_hole(image, mask, hole), background_matrices)
    behind = _blur(behind, [(each.background_blur, each.background_blur_angle) for each in variants])
    opacity = moved[:, 3:] / 255
    return (moved[:, :3] * opacity + behind * (1 - opacity)).clamp(0, 255).to(torch.uint8)


def warp_nearest(mask: Tensor, matrices: Sequence[np.ndarray]) -> Tensor:
    """(N, H, W) of mask's type: `mask` (H, W) moved by each matrix, 0 where nothing comes from."""
    positions = _positions(matrices, mask.shape, mask.device)
    x, y = (positions + 0.5).floor().long().unbind(3)
    height, width = mask.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return mask.flatten()[y.clamp(0, height - 1) * width + x.clamp(0, width - 1)] * inside


def warp_bicubic(planes: Tensor, matrices: Sequence[np.ndarray]) -> Tensor:
    """(N, C, H, W) float32 in 0..255: planes (C, H, W) float32 moved by each matrix, black outside."""
    height, width = planes.shape[1:]
    sides = torch.tensor([width - 1, height - 1], device=planes.device).clamp(min=1)
    grid = 2 * _positions(matrices, planes.shape[1:], planes.device) / sides - 1
    repeated = planes.expand(len(matrices), -1, -1, -1)
    moved = F.grid_sample(repeated, grid, mode="bicubic", padding_mode="zeros", align_corners=True)
    return moved.clamp(0, 255)


def _positions(matrices: Sequence[np.ndarray], size: Sequence[int], device: torch.device) -> Tensor:
    """(N, H, W, 2) float32: the (x, y) that each pixel comes from."""
    inverse = torch.from_numpy(np.linalg.inv(np.stack(matrices))[:, :2].astype(np.float32)).to(device)
    y, x = (torch.arange(side, dtype=torch.float32, device=device) for side in size)
    along_x = inverse[:, None, None, :, 0] * x[:, None]  # (N, 1, W, 2)
    along_y = inverse[:, None, None, :, 1] * y[:, None, None]  # (N, H, 1, 2)
    return along_x + along_y + inverse[:, None, None, :, 2]


def _blur(planes: Tensor, blurs: Sequence[tuple[int, float]]) -> Tensor:
    """planes (N, C, H, W), each of the N blurred by its own kernel, black outside."""
    if all(variance == 0 for variance, _ in blurs):
        return planes
    kernels = torch.from_numpy(np.stack([blur_kernel(*blur) for blur in blurs]).astype(np.float32)).to(planes.device)
    count, channels = planes.shape[:2]
    filters = kernels[:, None].repeat_interleave(channels, 0)  # (N * C, 1, 7, 7)
    blurred = F.conv2d(planes.flatten(0, 1)[None], filters, padding=MAX_RADIUS, groups=count * channels)
    return blurred[0].unflatten(0, (count, channels))


def fill_hole(image: Tensor, mask: Tensor, hole: Hole) -> Tensor:
    """(3, H, W) float32: `image` (3, H, W) uint8 without the object of `mask` (H, W), which grows by a pixel first."""
    grown = mask.clone()
    grown[1:] |= mask[:-1]
    grown[:, 1:] |= mask[:, :-1]
    if hole == "grey":
        return torch.where(grown > 0, GREY, image.float())
    if hole == "smooth":
        return _fill_smoothly(image.float(), grown > 0)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    filled = cv2.inpaint(pixels, grown.cpu().numpy(), 1, cv2.INPAINT_TELEA)
    return torch.from_numpy(filled).to(image.device).permute(2, 0, 1).float()


def _fill_smoothly(image: Tensor, hole: Tensor) -> Tensor:
    """Means of ever larger blocks of what is known, laid under it from coarse to fine."""
    values, known = (image * ~hole)[None], (~hole).float()[None, None]
    pyramid = [(values, known)]
    while max(values.shape[-2:]) > 1:
        even = (0, values.shape[3] % 2, 0, values.shape[2] % 2)
        summed, share = (F.avg_pool2d(F.pad(each, even), 2) for each in (values * known, known))
        values, known = summed / share.clamp(min=1e-6), (share > 0).float()
        pyramid.append((values, known))
    filled = values
    for finer, weight in reversed(pyramid[:-1]):
        below = F.interpolate(filled, finer.shape[-2:], mode="bilinear", align_corners=False)
        filled = torch.where(weight > 0, finer, below)
    return filled[0]
