"""Pictures of the cyclic effective receptive field: which places of a frame lead back to the first frame's objects.

Source: Li et al. 2020, section 3.4; the picture as the released code draws heat maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from models.masks import unpad
from models.stm import Stm
from pipelines.pictures import save_png
from shards.wording import counted
from trainers.prediction.files import OutputForm, read_frame
from trainers.prediction.plan import VideoPlan
from trainers.prediction.videos import VideoSource
from trainers.segmenters.stm import make_reference
from trainers.segmenters.stm_correction import Correction, CorrectionOptions, cycle_erf
from trainers.views import View

HEAT = 0.5
"""Share of the heat map in a picture; the rest is the frame."""
HOTTEST_SHARE = 0.001
"""Share of the pixels that may be hotter than the colours reach."""
LEGEND_PX = 34
"""Height of the strip below it."""
_BAR_PX, _MARGIN_PX, _BACKGROUND, _TEXT = 10, 4, (24, 24, 28), (225, 225, 225)


def write_cycle_erf(
    model: Stm,
    source: VideoSource,
    plan: VideoPlan,
    folder: Path,
    form: OutputForm,
    *,
    options: CorrectionOptions,
    every: int,
) -> Iterator[Path]:
    """Draw the frames of `drawn_frames` into <folder>/<video>/<frame>.png; the path of each as it is written.

    The objects are those of the first masks; options say how the empty masks are corrected.
    """
    first = plan.script.first
    labels = plan.read_labels(source, first)
    ids = plan.script.begins[first]
    view = View((labels.shape[0], labels.shape[1]), form.device, form.sight)
    with torch.no_grad():
        masks = view.masks(labels, ids)
        shown = torch.cat([1 - masks.amax(1, keepdim=True), masks], 1)
        image, _ = view.image(_pixels(source, plan, first, form.device))
        reference = make_reference(model, image, shown)
    legend = f"masks that began empty, after {counted(options.iterations, 'step')} of rate {options.rate:g}"
    for frame in drawn_frames(plan, every):
        pixels = _pixels(source, plan, frame, form.device)
        image, padding = view.image(pixels)
        with torch.no_grad():
            stem = model.look(image)
        heat = unpad(cycle_erf(Correction(model, reference, stem, options), len(ids))[None, None], padding)[0, 0]
        picture = with_legend(draw_heat(pixels, heat), heat, legend)
        path = folder / plan.video / f"{plan.names[frame]}.png"
        save_png(picture, path)
        yield path


def drawn_frames(plan: VideoPlan, every: int) -> range:
    """Numbers of the frames that `write_cycle_erf` draws: every `every`-th one after the video's first masks."""
    return range(plan.script.first + every, len(plan.names), every)


def heat_range(heat: Tensor) -> tuple[float, float]:
    """What the ends of the colours stand for in a heat map (h, w) >= 0: its lowest heat, and nearly its highest.

    One pixel in a thousand may be hotter: corrections lead single pixels far beyond all others, which would turn the
    rest of the picture blue. Where no more pixels than that are hot it is the highest itself.
    """
    low, high = heat.amin().item(), heat.amax().item()
    num_below = math.ceil((1 - HOTTEST_SHARE) * heat.numel())
    usual = heat.flatten().kthvalue(num_below).values.item()
    return low, usual if usual > low else high


def draw_heat(pixels: Tensor, heat: Tensor) -> NDArray[np.uint8]:
    """Frame (H, W, 3) uint8 RGB under a heat map (h, w) >= 0 of any scale -> picture (H, W, 3) uint8 RGB.

    From blue to red over `heat_range`; heat that is the same everywhere is blue.
    """
    low, high = heat_range(heat)
    scaled = ((heat - low) / max(high - low, torch.finfo(heat.dtype).tiny)).clamp(max=1)
    size = (pixels.shape[0], pixels.shape[1])
    whole = F.interpolate(scaled[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    levels = (255 * whole).round().to(torch.uint8).cpu().numpy()
    mixed = HEAT * _jet(levels).astype(np.float32) + (1 - HEAT) * pixels.cpu().numpy()
    return np.rint(mixed).astype(np.uint8)


def with_legend(picture: NDArray[np.uint8], heat: Tensor, caption: str) -> Image.Image:
    """A picture (H, W, 3) uint8 above its colours, pure, the heat they stand for, and a caption.

    Heat is in units of a mask: 0 is empty, 1 an object for certain; corrections may lead beyond it. Every picture has
    colours of its own, so the numbers tell how two frames compare. The caption also says how hot the hottest pixels
    are, where these lie beyond the bar.
    """
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width, height + LEGEND_PX), _BACKGROUND)
    canvas.paste(Image.fromarray(picture))
    draw, top = ImageDraw.Draw(canvas), height + _MARGIN_PX
    ends, highest = heat_range(heat), heat.amax().item()
    low, high = (f"{end:.3g}" for end in ends)
    if highest > ends[1]:
        caption = f"red: {high} to {highest:.3g}; {caption}"
    left = round(2 * _MARGIN_PX + draw.textlength(low))
    right = round(width - 2 * _MARGIN_PX - draw.textlength(high))
    draw.text((_MARGIN_PX, top), low, fill=_TEXT)
    draw.text((right + _MARGIN_PX, top), high, fill=_TEXT)
    if right > left:
        levels = np.tile(np.linspace(0, 255, right - left).astype(np.uint8), (_BAR_PX, 1))
        canvas.paste(Image.fromarray(_jet(levels)), (left, top))
    draw.text((_MARGIN_PX, top + _BAR_PX + _MARGIN_PX), caption, fill=_TEXT)
    return canvas


def _jet(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours (h, w, 3) uint8 RGB of levels (h, w): 0 is blue, 255 red."""
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_JET)[:, :, ::-1])  # OpenCV's order is BGR


def _pixels(source: VideoSource, plan: VideoPlan, frame: int, device: torch.device) -> Tensor:
    return torch.from_numpy(read_frame(source, plan, frame)).to(device)
