"""Pictures for people: masks over images, and sheets of many of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipelines.types import VOID, Batch, ClipPlan
from shards.palettes import voc_palette
from shards.storage.paths import write_bytes
from shards.wording import counted

_CAPTION_PX = 14


def overlay(image: NDArray[np.uint8], labels: NDArray[np.uint8], opacity: float = 0.45) -> NDArray[np.uint8]:
    """Draw a label map over an image: (H, W, 3) and (H, W) uint8 -> (H, W, 3) uint8.

    Objects take the colour of their id in the DAVIS palette, with a solid outline; void is white, background untouched.
    """
    colours = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3).copy()
    colours[VOID] = 255
    painted = cv2.addWeighted(image, 1 - opacity, colours[labels], opacity, 0)
    result = np.where((labels != 0)[..., None], painted, image)
    interior = cv2.erode(labels, np.ones((3, 3), np.uint8)) == cv2.dilate(labels, np.ones((3, 3), np.uint8))
    outline = ~interior & (labels != 0)
    result[outline] = np.minimum(colours[labels[outline]].astype(np.int32) + 96, 255)
    return np.asarray(result, np.uint8)


def sheet(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    captions: Sequence[str],
    cell_height_px: int,
    *,
    headings: Sequence[str] = (),
) -> Image.Image:
    """A contact sheet: each row is a caption over its pictures ((H, W, 3) uint8), all scaled to `cell_height_px`.

    Rows may differ in length. headings: one per picture of the first row, drawn once above all.
    ValueError if rows and captions do not match in number.
    """
    if len(rows) != len(captions) or not rows:
        raise ValueError(f"a sheet needs one caption per row, got {len(rows)} rows and {len(captions)} captions")
    gap = 4
    cells = [[_scale(picture, cell_height_px) for picture in row] for row in rows]
    width = max(sum(cell.shape[1] + gap for cell in row) for row in cells) + gap
    row_height = cell_height_px + _CAPTION_PX + gap
    top = gap + (_CAPTION_PX if headings else 0)
    canvas = Image.new("RGB", (width, top + row_height * len(rows)), (24, 24, 28))
    draw = ImageDraw.Draw(canvas)
    x = gap
    for heading, cell in zip(headings, cells[0], strict=False):
        draw.text((x, gap), heading, fill=(255, 214, 120))
        x += cell.shape[1] + gap
    for number, (row, caption) in enumerate(zip(cells, captions, strict=True)):
        x, y = gap, top + number * row_height
        draw.text((x, y), caption, fill=(225, 225, 225))
        for cell in row:
            canvas.paste(Image.fromarray(cell), (x, y + _CAPTION_PX))
            x += cell.shape[1] + gap
    return canvas


def clip_headings(num_frames: int) -> list[str]:
    """What `clip_rows` shows in each column."""
    return ["mask it is given", *(f"frame {frame}, truth" for frame in range(num_frames))]


def clip_rows(batch: Batch, describe: Callable[[ClipPlan], str]) -> tuple[list[list[NDArray[np.uint8]]], list[str]]:
    """Rows and captions of `sheet` for the clips of a batch, as the trainer sees them: slots over augmented images.

    The first picture of a row shows the damaged first masks the model starts from (`clip_headings`). describe: where a
    clip comes from (`ClipSource.describe`).
    """
    mean, deviation = np.array(batch.normalisation.mean), np.array(batch.normalisation.deviation)
    rows, captions = [], []
    for position, plan in enumerate(batch.plans):
        images = batch.images[position].permute(0, 2, 3, 1).cpu().numpy()
        pixels = np.clip(np.rint((images * deviation + mean) * 255), 0, 255).astype(np.uint8)  # (T, H, W, 3)
        masks = batch.masks[position].cpu().numpy()
        slots = np.arange(1, batch.first_masks.shape[1] + 1, dtype=np.uint8)[:, None, None]
        damaged = (batch.first_masks[position].cpu().numpy() > 0.5) * slots  # (K, H, W)
        row = [overlay(pixels[0], damaged.max(axis=0))]
        row += [overlay(image, mask) for image, mask in zip(pixels, masks, strict=True)]
        rows.append(row)
        captions.append(f"{describe(plan)}; {_facts(plan, int(batch.num_objects[position]))}")
    return rows, captions


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG, and the folders it needs, so that it is either there complete or not there."""
    data = BytesIO()
    picture.save(data, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data.getvalue())


def _facts(plan: ClipPlan, num_objects: int) -> str:
    """How many objects survived the warp, and what was done to their first masks."""
    damage = "undamaged" if plan.damage_iou is None else f"damaged to IoU {plan.damage_iou:.2f}"
    return f"{counted(num_objects, 'object')}, first masks {damage}"


def _scale(picture: NDArray[np.uint8], height_px: int) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    size = (max(1, round(width * height_px / height)), height_px)
    shrinking = height_px < height
    return np.asarray(
        cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR), np.uint8
    )
