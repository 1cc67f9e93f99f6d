"""Masks as shard members: label maps (`lz4`, `png`) and soft masks (`soft.lz4`, `soft.png`); the objects in them."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import lz4.block
import numpy as np
from PIL import Image

from shards import png
from shards.findings import RefusedError

# Also the extension of the members: whoever looks for label maps never finds soft masks.
MaskCodec = Literal["lz4", "png", "soft.lz4", "soft.png"]
MASK_CODECS: tuple[MaskCodec, ...] = ("lz4", "png")
SOFT_CODECS: tuple[MaskCodec, ...] = ("soft.lz4", "soft.png")
ALL_CODECS: tuple[MaskCodec, ...] = get_args(MaskCodec)
# Levels from here on are the object, those below are background.
SOFT_THRESHOLD = 128
BACKGROUND = 0
VOID = 255
# Boxes are uint16 in the index.
MAX_SIDE = 65_535

_LZ4_HEADER = struct.Struct("<4sIII")  # magic, height, width, reserved 0; one raw LZ4 block follows
_LZ4_MAGIC, _SOFT_MAGIC = b"VFM1", b"VFS1"
# Of LZ4-HC: 0.9 ms for an 854x480 mask where level 9 takes 7.7 ms to save 9 % (0.2 % of a data set with its images).
# Decoding takes as long for every level. Table: docs/benchmarks.md, `tools/benchmark.py masks`.
LZ4_LEVEL = 3
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_PNG_GREY_8 = b"\x08\x00"


class FrameObjects(NamedTuple):
    """Objects of one label map in ascending order of id; background 0 and void 255 are left out.

    ids (n,) uint8; areas (n,) uint32 pixels; boxes (n, 4) uint16 as y0, x0, y1, x1 with exclusive ends.
    """

    ids: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray


def soft_codec(codec: MaskCodec) -> MaskCodec:
    """The codec that stores soft masks as this one stores label maps; itself if it is one already."""
    return codec if codec in SOFT_CODECS else SOFT_CODECS[MASK_CODECS.index(codec)]


def plain_codec(codec: MaskCodec) -> MaskCodec:
    """The codec for label maps that stores as this one does: inverse of `soft_codec`."""
    return codec if codec in MASK_CODECS else MASK_CODECS[SOFT_CODECS.index(codec)]


def encode_label_map(labels: np.ndarray, codec: MaskCodec) -> bytes:
    """Member bytes of a label map; labels (H, W) uint8. Raises ValueError for any other shape, type or codec.

    `lz4`: b"VFM1", u32le height, u32le width, u32le 0, then one raw LZ4-HC block of H*W bytes (no LZ4 frame: DALI's
    inflate takes raw blocks). `png`: one-channel 8-bit grey PNG whose pixels are the ids.
    """
    _require(codec, MASK_CODECS, "label maps")
    return _encode(labels, codec, _LZ4_MAGIC)


def encode_soft_mask(levels: np.ndarray, codec: MaskCodec) -> bytes:
    """Member bytes of a soft mask; levels (H, W) uint8: 0 background .. 255 object.

    As a label map, but `soft.lz4` begins with b"VFS1".
    """
    _require(codec, SOFT_CODECS, "soft masks")
    return _encode(levels, codec, _SOFT_MAGIC)


def decode_label_map(data: bytes, codec: MaskCodec) -> np.ndarray:
    """Label map (H, W) uint8, writable, ids bit for bit as encoded.

    Raises ValueError for bytes that are not exactly one label map of that codec.
    """
    _require(codec, MASK_CODECS, "label maps")
    return _decode_lz4(data, _LZ4_MAGIC) if codec == "lz4" else _decode_label_png(data)


def decode_soft_mask(data: bytes, codec: MaskCodec) -> np.ndarray:
    """Soft mask (H, W) uint8, writable: 0 background .. 255 object. Raises ValueError as `decode_label_map` does."""
    _require(codec, SOFT_CODECS, "soft masks")
    return _decode_lz4(data, _SOFT_MAGIC) if codec == "soft.lz4" else _decode_png(data)


def decode_object_map(data: bytes, codec: MaskCodec) -> np.ndarray:
    """Ids (H, W) uint8 of any mask member; of a soft mask: 1 where its level is at least 128, else 0."""
    if codec in SOFT_CODECS:
        return (decode_soft_mask(data, codec) >= SOFT_THRESHOLD).astype(np.uint8)
    return decode_label_map(data, codec)


def keep_ids(labels: np.ndarray, object_ids: Iterable[int]) -> np.ndarray:
    """Copy of a label map with only these ids; every other pixel, void included, is background."""
    table = np.zeros(256, np.uint8)
    kept = list(object_ids)
    table[kept] = kept
    return table[labels]


def label_map_size(data: bytes, codec: MaskCodec) -> tuple[int, int]:
    """(height, width) out of a mask member's header, without decoding. Raises ValueError for foreign bytes."""
    _require(codec, ALL_CODECS, "masks")
    if codec.endswith("lz4"):
        return _lz4_size(data, _SOFT_MAGIC if codec in SOFT_CODECS else _LZ4_MAGIC)
    if len(data) < 33 or not data.startswith(_PNG_START) or data[24:26] != _PNG_GREY_8:
        raise ValueError("not an 8-bit grey PNG (a palette PNG would be expanded to colours by fast decoders)")
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def find_objects(labels: np.ndarray) -> FrameObjects:
    """Ids, areas and boxes of the objects of a label map (H, W) uint8."""
    rows = np.flatnonzero(labels.any(axis=1))
    if rows.size == 0:
        return FrameObjects(np.empty(0, np.uint8), np.empty(0, np.uint32), np.empty((0, 4), np.uint16))
    columns = np.flatnonzero(labels[rows[0] : rows[-1] + 1].any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    # Counting is what costs: only where there is anything, which is a third of a usual frame.
    inside = np.ascontiguousarray(labels[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1])
    counts = np.bincount(inside.reshape(-1), minlength=256)
    ids = np.flatnonzero(counts[1:VOID]) + 1
    boxes = np.array([_box(inside == object_id) for object_id in ids], np.int64).reshape(-1, 4)
    boxes += (top, left, top, left)
    return FrameObjects(ids.astype(np.uint8), counts[ids].astype(np.uint32), boxes.astype(np.uint16))


def _box(inside: np.ndarray) -> tuple[int, int, int, int]:
    rows = np.flatnonzero(inside.any(axis=1))
    columns = np.flatnonzero(inside[rows[0] : rows[-1] + 1].any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _require(codec: str, known: tuple[MaskCodec, ...], what: str) -> None:
    if codec not in known:
        raise ValueError(f"unknown mask codec {codec!r}; there are: {', '.join(known)} for {what}")


def _encode(pixels: np.ndarray, codec: MaskCodec, magic: bytes) -> bytes:
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or min(pixels.shape) == 0 or max(pixels.shape) > MAX_SIDE:
        raise ValueError(f"a label map is (H, W) uint8 with sides of 1..{MAX_SIDE}, not {pixels.shape} {pixels.dtype}")
    if codec.endswith("lz4"):
        block = lz4.block.compress(pixels.tobytes(), mode="high_compression", compression=LZ4_LEVEL, store_size=False)
        return _LZ4_HEADER.pack(magic, *pixels.shape, 0) + block
    if codec == "png":
        return png.encode_grey(pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=6)  # with row filters: levels change slowly
    return buffer.getvalue()


def _lz4_size(data: bytes, wanted: bytes) -> tuple[int, int]:
    if len(data) <= _LZ4_HEADER.size:
        raise ValueError(f"an lz4 mask has more than {_LZ4_HEADER.size} bytes, this has {len(data)}")
    magic, height, width, reserved = _LZ4_HEADER.unpack_from(data)
    if magic != wanted or reserved != 0 or not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise ValueError(
            f"not an lz4 mask of {wanted.decode()}: it begins with {bytes(data[: _LZ4_HEADER.size]).hex()}"
        )
    return height, width


def _decode_lz4(data: bytes, magic: bytes) -> np.ndarray:
    height, width = _lz4_size(data, magic)
    block = memoryview(data)[_LZ4_HEADER.size :]
    # A bytearray, because an array over bytes is read-only and torch warns about those.
    try:
        labels = lz4.block.decompress(block, uncompressed_size=height * width, return_bytearray=True)
    except (lz4.block.LZ4BlockError, MemoryError) as error:
        raise ValueError(f"damaged LZ4 block of a {height}x{width} mask: {error}") from None
    if len(labels) != height * width:
        raise ValueError(f"LZ4 block holds {len(labels)} pixels, its header says {height}x{width}")
    return np.frombuffer(labels, np.uint8).reshape(height, width)


def _decode_label_png(data: bytes) -> np.ndarray:
    label_map_size(data, "png")
    try:
        chunks = png.read_chunks(data)
    except RefusedError as error:
        raise ValueError(f"damaged PNG mask: {error}") from None
    straight = png.decode_unfiltered(chunks, png.read_header(chunks))
    return _decode_png(data) if straight is None else straight


def _decode_png(data: bytes) -> np.ndarray:
    label_map_size(data, "png")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.array(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"damaged PNG mask: {error}") from None
