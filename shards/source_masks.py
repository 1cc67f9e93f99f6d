"""From any mask file to ids: what each way of storing them means; refused where the ids would be a guess."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from shards import png
from shards.findings import Finding, RefusedError
from shards.images import MAX_PIXELS
from shards.masks import (
    MAX_SIDE,
    SOFT_THRESHOLD,
    VOID,
    FrameObjects,
    MaskCodec,
    encode_label_map,
    encode_soft_mask,
    find_objects,
)
from shards.palettes import voc_palette
from shards.scaling import Scaling, scale_labels, scale_levels
from shards.soft_masks import read_levels
from shards.sources.options import MaskReading

# More ids than this in a mask without a palette are grey levels, not objects.
MAX_GREY_IDS = 64


Reading = MaskReading | Literal["soft"]


@dataclass(frozen=True, slots=True)
class SourceMask:
    """One mask read from the source.

    data: the shard member. shape: its (height, width); source_shape: that of the file. objects: what is in it.
    has_void: whether 255 occurs as void. palette: its PNG palette (RGB bytes), None if it had none or ids were changed.
    findings: without place.
    """

    data: bytes
    shape: tuple[int, int]
    source_shape: tuple[int, int]
    objects: FrameObjects
    has_void: bool
    palette: bytes | None
    findings: tuple[Finding, ...]


def read_mask(data: bytes, codec: MaskCodec, reading: Reading = "ids", scaling: Scaling | None = None) -> SourceMask:
    """Ids of a PNG file, or its levels with `soft`. Raises RefusedError where they cannot be told for certain.

    ids: palette: the indices, whatever the colours; grey: the values; RGB(A): looked up in the DAVIS palette, in which
    all colours must be. binary: 0 and 255 (or 1), the object gets id 1. merged: as ids or binary, and every value above
    0, void too, becomes id 1. soft: 0..255 (`shards.soft_masks`). Source: the tables of docs/data-format.md.
    """
    chunks = png.read_chunks(data)
    header = png.read_header(chunks)
    _require_size(header)
    pixels = png.decode_unfiltered(chunks, header)
    if pixels is None:
        png.require_all_pixels(chunks, header)
        deep = header.colour_type == png.GREY_ALPHA and header.bit_depth == 16
        pixels = png.decode_deep_grey_alpha(chunks) if deep else png.decode_pixels(data)
    if reading == "soft":
        return _soft(pixels, header, codec, scaling)
    findings: list[Finding] = []
    labels = _labels(pixels, header, reading, findings)
    palette = header.palette if header.colour_type == png.PALETTE and reading == "ids" else None
    source_shape = header.height, header.width
    shape = source_shape if scaling is None else scaling.target(source_shape)
    if shape != source_shape:
        labels = scale_labels(labels, shape)
    as_stored = codec == "png" and palette is not None and header.bit_depth == 8 and not header.interlaced
    return SourceMask(
        png.as_grey(chunks) if as_stored and shape == source_shape else encode_label_map(labels, codec),
        shape,
        source_shape,
        find_objects(labels),
        bool((labels == VOID).any()),
        palette,
        tuple(findings),
    )


def _soft(pixels: np.ndarray, header: png.PngHeader, codec: MaskCodec, scaling: Scaling | None) -> SourceMask:
    levels, findings = read_levels(pixels, header)
    source_shape = header.height, header.width
    shape = source_shape if scaling is None else scaling.target(source_shape)
    if shape != source_shape:
        levels = scale_levels(levels, shape)
    objects = find_objects((levels >= SOFT_THRESHOLD).astype(np.uint8))
    return SourceMask(encode_soft_mask(levels, codec), shape, source_shape, objects, False, None, findings)


def _labels(pixels: np.ndarray, header: png.PngHeader, reading: MaskReading, findings: list[Finding]) -> np.ndarray:
    """Label map (H, W) uint8 of the pixels, as the reading says."""
    if reading != "ids":
        single = _single(pixels, header)
        if single is not None:
            return single
        if reading == "binary":
            raise RefusedError(
                "not a 0/255 mask",
                expected="only the values 0 and 255, the object",
                found="others",
                remedy="for masks of object ids use the kind davis2017, or --masks ids",
            )
    if header.colour_type == png.PALETTE:
        labels = _palette_ids(pixels, header)
    elif header.colour_type in (png.RGB, png.RGB_ALPHA):
        labels = _coloured_ids(pixels, header)
        findings.append(_warning("ids stored as colours", "a palette PNG", "RGB colours of the DAVIS palette"))
    else:
        labels = _grey_ids(pixels, header)
        if header.bit_depth == 1:
            findings.append(_warning("1-bit mask", "ids", "a 1-bit PNG: every object of it became id 1"))
    return (labels > 0).astype(np.uint8) if reading == "merged" else labels


def _single(pixels: np.ndarray, header: png.PngHeader) -> np.ndarray | None:
    """Label map with id 1 of pixels that are only background and 255 (or 1) in every channel; None for others."""
    if pixels.ndim == 3:
        num_colours = 1 if header.colour_type == png.GREY_ALPHA else 3
        _require_opaque(pixels[..., num_colours:])
        if num_colours == 3 and (pixels[..., :3] != pixels[..., :1]).any():
            return None
        pixels = pixels[..., 0]
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8)
    highest = int(pixels.max())
    if highest not in (0, 1, 255) or ((pixels != 0) & (pixels != highest)).any():
        return None
    return (pixels > 0).astype(np.uint8)


def _require_size(header: png.PngHeader) -> None:
    if header.height * header.width > MAX_PIXELS or max(header.height, header.width) > MAX_SIDE:
        raise RefusedError(
            "absurd size",
            expected=f"at most {MAX_PIXELS} pixels and {MAX_SIDE} a side",
            found=f"{header.width}x{header.height}",
            remedy="restore the file from the original package",
        )


def _palette_ids(pixels: np.ndarray, header: png.PngHeader) -> np.ndarray:
    entries = len(header.palette or b"") // 3
    highest = int(pixels.max())
    if highest >= entries:
        raise RefusedError(
            "ids outside the palette",
            expected=f"ids below {entries}, the number of palette entries",
            found=f"id {highest}",
            remedy="write the mask again with a palette of 256 entries",
        )
    return pixels.astype(np.uint8, copy=False)


def _coloured_ids(pixels: np.ndarray, header: png.PngHeader) -> np.ndarray:
    if header.bit_depth != 8 or pixels.ndim != 3:
        raise RefusedError(
            "16-bit colour mask",
            expected="8 bits a channel",
            found=f"{header.bit_depth}",
            remedy="store the ids as an indexed PNG",
        )
    _require_opaque(pixels[..., 3:])
    palette = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)
    codes = _packed(palette)
    order = np.argsort(codes)
    wanted = _packed(pixels[..., :3])  # (H, W)
    positions = np.searchsorted(codes, wanted, sorter=order).clip(max=255)
    labels = order[positions].astype(np.uint8)
    unknown = np.argwhere(codes[labels] != wanted)
    if len(unknown):
        row, column = unknown[0]
        raise RefusedError(
            "unknown colour",
            expected="only colours of the DAVIS palette",
            found=f"{tuple(pixels[row, column, :3].tolist())} at row {row}, column {column}",
            remedy="store the ids as an indexed PNG",
        )
    return labels


def _grey_ids(pixels: np.ndarray, header: png.PngHeader) -> np.ndarray:
    if pixels.ndim == 3:
        _require_opaque(pixels[..., 1:])
        pixels = pixels[..., 0]
    highest = int(pixels.max())
    if highest > VOID:
        raise RefusedError(
            "ids above 255",
            expected="ids of 0..255",
            found=f"a 16-bit mask with id {highest}",
            remedy="number the objects 1..254 and store them in 8 bits",
        )
    if header.bit_depth in (2, 4):
        # Pillow stretches these to 0..255.
        pixels = pixels // (255 // (2**header.bit_depth - 1))
    labels = pixels.astype(np.uint8)
    if header.bit_depth >= 8:
        _require_ids(labels)
    return labels


def _require_ids(labels: np.ndarray) -> None:
    """Refuse grey masks in which 255 is the object, or whose values are levels of grey."""
    counts = np.bincount(labels.reshape(-1), minlength=256)
    num_ids = int(np.count_nonzero(counts[1:VOID]))
    if num_ids > MAX_GREY_IDS or (num_ids and counts[VOID] > counts[1:VOID].sum()):
        raise RefusedError(
            "soft edges",
            expected="object ids",
            found=f"a grey mask with {num_ids} values between 0 and 255",
            remedy="store the ids as an indexed PNG, without anti-aliasing",
        )
    if not num_ids and counts[VOID]:
        raise RefusedError(
            "0/255 grey mask",
            expected="object ids",
            found="only the values 0 and 255; 255 is the object in DAVIS 2016 and void in DAVIS 2017",
            remedy="use the kind davis2016 for such a tree, or write 255 as id 1",
        )


def _require_opaque(alpha: np.ndarray) -> None:
    opaque = np.iinfo(alpha.dtype).max if alpha.size else 0
    if alpha.size and int(alpha.min()) != opaque:
        raise RefusedError(
            "transparent mask",
            expected=f"alpha {opaque} everywhere",
            found=f"alpha {int(alpha.min())}",
            remedy="store the ids as an indexed PNG",
        )


def _packed(colours: np.ndarray) -> np.ndarray:
    wide = colours.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _warning(reason: str, expected: str, found: str) -> Finding:
    return Finding("warning", reason, expected, found, "compare the ids with the video's other masks", "kept")
