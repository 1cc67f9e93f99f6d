"""Soft masks of still images, however they are stored, as levels 0 (background) to 255 (object)."""

from __future__ import annotations

import numpy as np

from shards import png
from shards.findings import Finding, RefusedError

_REMEDY = "store the mask as 8-bit grey, 0 background to 255 object"


def read_levels(pixels: np.ndarray, header: png.PngHeader) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """Levels (H, W) uint8 of a decoded PNG, and findings without place.

    Grey, opaque, and colour with equal channels: the values. 1 bit: 0 and 255. 16 bits: divided by 257. Palette: its
    colours, which must be grey. Values of only 0 and 1 (the labels of FSS-1000's example) are scaled to 0 and 255.
    Raises RefusedError for real colours and for transparency.
    """
    findings: list[Finding] = []
    levels = _grey(pixels, header)
    if levels.dtype == np.bool_:
        levels = levels.astype(np.uint8) * np.uint8(255)
    elif header.bit_depth == 16 and int(levels.max()) > 255:
        levels = ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        findings.append(_repaired("16-bit mask", "8 bits", "16 bits", "divided by 257"))
    else:
        levels = levels.astype(np.uint8)
    if int(levels.max()) == 1:
        levels = levels * np.uint8(255)
        findings.append(_repaired("0/1 mask", "values up to 255", "only 0 and 1", "multiplied by 255"))
    if int(levels.min()) >= 128:
        remedy = "see that the object really fills the image"
        findings.append(Finding("warning", "mask covers everything", "some background", "none", remedy, "kept"))
    return np.ascontiguousarray(levels), tuple(findings)


def _grey(pixels: np.ndarray, header: png.PngHeader) -> np.ndarray:
    """One channel of the pixels, in whatever depth they have."""
    if header.colour_type == png.PALETTE:
        entries = np.frombuffer((header.palette or b"").ljust(768, b"\0"), np.uint8).reshape(256, 3)
        pixels = entries[pixels]  # (H, W, 3)
    elif header.colour_type in (png.GREY_ALPHA, png.RGB_ALPHA):
        opaque = np.iinfo(pixels.dtype).max
        if int(pixels[..., -1].min()) != opaque:
            raise RefusedError("transparent mask", expected=f"alpha {opaque} everywhere", found="less", remedy=_REMEDY)
        pixels = pixels[..., :-1]
    if pixels.ndim == 2:
        return pixels
    if (pixels != pixels[..., :1]).any():
        raise RefusedError("coloured mask", expected="levels of grey", found="colours", remedy=_REMEDY)
    return pixels[..., 0]


def _repaired(reason: str, expected: str, found: str, done: str) -> Finding:
    return Finding("repaired", reason, expected, found, "nothing, unless other levels were meant", done)
