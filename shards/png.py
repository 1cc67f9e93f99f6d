"""PNG masks as people store them: strict chunks, palette indices as ids, and the header patch palette -> grey."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from shards.findings import RefusedError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
# First column and row of each pass of an interlaced PNG, and how far its columns and rows are apart.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE_BYTES = 1 << 20
_MEND_FILE = "restore the file from the original package"


@dataclass(frozen=True, slots=True)
class PngHeader:
    """Facts of IHDR and PLTE. palette: bytes RGB, 3 for each entry, None where there is no PLTE."""

    height: int
    width: int
    bit_depth: int
    colour_type: int
    interlaced: bool
    palette: bytes | None


def read_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(type, content) of every chunk up to IEND, each CRC checked. Raises RefusedError for anything but a whole PNG."""
    if not data:
        raise RefusedError("empty file", expected="a PNG", found="0 bytes", remedy=_MEND_FILE)
    if not data.startswith(SIGNATURE):
        what = "a JPEG (it blurs the ids)" if data.startswith(b"\xff\xd8") else f"a file that begins with {data[:8]!r}"
        raise RefusedError("mask is no PNG", expected="a PNG", found=what, remedy="store the ids as an indexed PNG")
    chunks: list[tuple[bytes, bytes]] = []
    position = len(SIGNATURE)
    while not chunks or chunks[-1][0] != b"IEND":
        if position + 12 > len(data):
            raise RefusedError(
                "truncated mask", expected="a PNG up to IEND", found="the end of file", remedy=_MEND_FILE
            )
        (size,) = struct.unpack_from(">I", data, position)
        body = data[position + 4 : position + 8 + size]
        crc = data[position + 8 + size : position + 12 + size]
        if len(crc) < 4:
            raise RefusedError(
                "truncated mask", expected="a PNG up to IEND", found="the end of file", remedy=_MEND_FILE
            )
        if zlib.crc32(body) != int.from_bytes(crc):
            raise RefusedError(
                "damaged mask",
                expected=f"a sound {body[:4].decode('latin-1')} chunk",
                found=f"another CRC-32 at byte {position}",
                remedy=_MEND_FILE,
            )
        chunks.append((body[:4], body[4:]))
        position += 12 + size
    return chunks


def read_header(chunks: list[tuple[bytes, bytes]]) -> PngHeader:
    """Header of a PNG. Raises RefusedError if IHDR or a needed PLTE is missing, or there is no pixel."""
    kind, content = chunks[0]
    palette = next((body for name, body in chunks if name == b"PLTE"), None)
    if kind != b"IHDR" or len(content) != 13:
        raise RefusedError("damaged mask", expected="a PNG with IHDR", found="none", remedy=_MEND_FILE)
    width, height, bit_depth, colour_type, _, _, interlace = struct.unpack(">IIBBBBB", content)
    if not width or not height:
        raise _damaged("at least one pixel", f"{width}x{height}")
    if colour_type == PALETTE and palette is None:
        raise RefusedError("damaged mask", expected="a palette (PLTE)", found="none", remedy=_MEND_FILE)
    return PngHeader(height, width, bit_depth, colour_type, interlace != 0, palette)


def as_grey(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """An 8-bit palette PNG as a grey PNG of its indices: another colour type in IHDR, no PLTE, pixel data untouched."""
    header = chunks[0][1]
    patched = [(b"IHDR", header[:9] + bytes([GREY]) + header[10:])]
    patched += [(kind, content) for kind, content in chunks[1:] if kind in (b"IDAT", b"IEND")]
    return SIGNATURE + b"".join(map(_encode_chunk, patched))


def decode_pixels(data: bytes) -> np.ndarray:
    """Pixels as Pillow has them: indices, levels, bool, uint16 or channels last. Raises RefusedError if damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.array(image)
    except (OSError, SyntaxError, ValueError, zlib.error) as error:
        # Pillow names the object in memory it was given, and findings must be the same bytes in every run.
        found = "no valid header" if isinstance(error, UnidentifiedImageError) else str(error)
        raise _damaged("a PNG that can be decoded", found) from None


def require_all_pixels(chunks: list[tuple[bytes, bytes]], header: PngHeader) -> None:
    """Raise RefusedError if the pixel data end too early, which Pillow takes for background below the last row."""
    missing = _pixel_bytes(header)
    stream = zlib.decompressobj()
    packed = b"".join(body for kind, body in chunks if kind == b"IDAT")
    try:
        while missing > 0 and (piece := stream.decompress(packed, _PIECE_BYTES)):
            missing -= len(piece)
            packed = stream.unconsumed_tail
    except zlib.error as error:
        raise _damaged("pixel data that can be unpacked", str(error)) from None
    if missing > 0:
        raise _damaged(f"pixel data of {_pixel_bytes(header)} bytes", f"{missing} fewer")


def _pixel_bytes(header: PngHeader) -> int:
    """Bytes of the unpacked pixel data: rows with their filters; of interlaced ones those of seven smaller pictures."""
    bits = header.bit_depth * _CHANNELS.get(header.colour_type, 0)
    passes = _ADAM7 if header.interlaced else ((0, 0, 1, 1),)
    total = 0
    for column, row, columns_apart, rows_apart in passes:
        width = -((column - header.width) // columns_apart)
        height = -((row - header.height) // rows_apart)
        if width > 0 and height > 0:
            total += height * (1 + -(-width * bits // 8))
    return total


def _damaged(expected: str, found: str) -> RefusedError:
    return RefusedError("damaged mask", expected=expected, found=found, remedy=_MEND_FILE)


def decode_unfiltered(chunks: list[tuple[bytes, bytes]], header: PngHeader) -> np.ndarray | None:
    """Indices or levels (H, W) uint8, writable, of a PNG of 8 bits without row filters, as encoders write indices.

    None for any other and for a damaged one, which `decode_pixels` reads or refuses. A fifth faster than that: what is
    left is zlib.
    """
    if header.bit_depth != 8 or header.interlaced or header.colour_type not in (GREY, PALETTE):
        return None
    num_bytes = header.height * (header.width + 1)  # a row begins with its filter
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"), num_bytes + 1)
    except zlib.error:
        return None
    if len(data) != num_bytes or not stream.eof:
        return None
    rows = np.frombuffer(data, np.uint8).reshape(header.height, header.width + 1)
    return None if rows[:, 0].any() else rows[:, 1:].copy()


def decode_deep_grey_alpha(chunks: list[tuple[bytes, bytes]]) -> np.ndarray:
    """(H, W, 2) uint16 of a PNG of grey and alpha in 16 bits, of which Pillow would drop the lower halves.

    Read as RGBA in 8 bits, whose pixels and filters have as many bytes. Raises RefusedError if damaged.
    """
    header = chunks[0][1]
    patched = [(b"IHDR", header[:8] + bytes([8, RGB_ALPHA]) + header[10:])]
    patched += [(kind, content) for kind, content in chunks[1:] if kind in (b"IDAT", b"IEND")]
    halves = decode_pixels(SIGNATURE + b"".join(map(_encode_chunk, patched)))  # (H, W, 4)
    return np.ascontiguousarray(halves).view(">u2").astype(np.uint16)


def encode_indexed(labels: np.ndarray, palette: bytes) -> bytes:
    """8-bit palette PNG of a label map (H, W) uint8 whose indices are the ids; palette: RGB bytes, stored as given.

    Raises ValueError if an id has no entry. By hand, because Pillow packs few ids into fewer bits and pads palettes.
    """
    if int(labels.max()) >= len(palette) // 3:
        raise ValueError(f"id {int(labels.max())} in a mask for a palette of {len(palette) // 3} entries")
    return _encode_rows(labels, PALETTE, [(b"PLTE", palette)])


def encode_grey(labels: np.ndarray) -> bytes:
    """8-bit grey PNG of a label map (H, W) uint8, without row filters, which make these larger and slower to read."""
    return _encode_rows(labels, GREY, [])


def _encode_rows(labels: np.ndarray, colour_type: int, between: list[tuple[bytes, bytes]]) -> bytes:
    height, width = labels.shape
    rows = np.zeros((height, width + 1), np.uint8)  # first column: filter type 0
    rows[:, 1:] = labels
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)),
        *between,
        (b"IDAT", zlib.compress(rows.tobytes(), 6)),
        (b"IEND", b""),
    ]
    return SIGNATURE + b"".join(map(_encode_chunk, chunks))


def _encode_chunk(chunk: tuple[bytes, bytes]) -> bytes:
    body = b"".join(chunk)
    return struct.pack(">I", len(chunk[1])) + body + struct.pack(">I", zlib.crc32(body))
