"""Source images: decoded whole and strictly, bytes untouched unless there is a listed reason to change them."""

from __future__ import annotations

import dataclasses
import io
import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from shards.findings import Finding, RefusedError
from shards.masks import MAX_SIDE
from shards.scaling import Scaling, scale_image

NO_JPEG = "image is no JPEG"
MIN_SIDE = 8
# As many as 8192x8192, nearly three times the largest photos of the static sets.
MAX_PIXELS = 1 << 26
# What a file may be. Pillow reads many more forms, PostScript among them, for which it starts another program.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
# Of the few images that have to be encoded anew.
QUALITY = 95

_START, _END = b"\xff\xd8", b"\xff\xd9"
_PROGRESSIVE = 0xC2
# Markers of all kinds of frame headers (C4, C8 and CC are something else).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN = 0xDA
_ORIENTATION = 0x0112
# What turns an image of each EXIF orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Its readers of TIFF and EXIF trust what they read, and stumble over it in any of these ways.
_PILLOW_ERRORS = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)
_MEND_FILE = "restore the file from the original package"


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One sound image.

    data: a JPEG for the shard. shape: its (height, width), upright; source_shape: before scaling.
    findings: without place.
    """

    data: bytes
    shape: tuple[int, int]
    source_shape: tuple[int, int]
    findings: tuple[Finding, ...]


def read_image(data: bytes, scaling: Scaling | None = None) -> SourceImage:
    """Check an image file by decoding all of it. Raises RefusedError if any pixel is missing or it is no image.

    Encoded anew (quality 95, 4:4:4): what is no JPEG, CMYK, and images that EXIF says to turn. A missing end marker is
    put back where the image is one scan. What has another size with `scaling` is stored so. Everything else keeps its
    bytes.
    """
    image = _read_as_it_is(data)
    shape = image.shape if scaling is None else scaling.target(image.shape)
    if scaling is None or shape == image.shape:
        return image
    _require_pixels(shape)  # a strip that is enlarged
    scaled = scale_image(image.data, shape, scaling.jpeg_quality)
    return dataclasses.replace(image, data=scaled, shape=shape)


def _read_as_it_is(data: bytes) -> SourceImage:
    if not data:
        raise RefusedError("empty file", expected="a JPEG", found="0 bytes", remedy=_MEND_FILE)
    if not data.startswith(_START):
        return _encoded_anew(data, NO_JPEG, f"a file that begins with {data[:8]!r}")
    segments = _segments(data)
    _require_pixels(_declared_size(segments))
    if _orientation(data, segments) != 1:
        return _encoded_anew(data, "EXIF orientation", f"orientation {_orientation(data, segments)}")
    data, shape, colours, findings = _decoded_strictly(data, in_one_scan=_in_one_scan(segments))
    if colours in ("CMYK", "YCCK"):
        return _encoded_anew(data, "CMYK image", f"a {colours} JPEG")
    if colours == "Gray":
        findings.append(_kept("grey image", "three colour channels", "one"))
    if _PROGRESSIVE in segments:
        findings.append(_kept("progressive JPEG", "a baseline JPEG", "progressive: hardware decoders may refuse it"))
    if not data.endswith(_END):
        findings.append(_kept("trailing bytes", "the end of the file after the end marker", "more bytes"))
    _require_size(shape)
    return SourceImage(data, shape, shape, tuple(findings))


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """JPEG of pixels (H, W, 3) uint8 RGB at quality 95 without chroma subsampling."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, "RGB", "444")


def _decoded_strictly(data: bytes, *, in_one_scan: bool) -> tuple[bytes, tuple[int, int], str, list[Finding]]:
    """(bytes to store, shape, colour space, findings) of a JPEG all of whose pixels can be decoded.

    in_one_scan: with several, nothing but the end marker tells whether the last of them are missing.
    """
    try:
        decode_strictly(data)
    except ValueError as error:
        mended = data + _END
        if _END in data[-2:] or not in_one_scan or not _decodes(mended):
            raise RefusedError(
                "damaged image", expected="a JPEG with every pixel", found=str(error), remedy=_MEND_FILE
            ) from None
        data = mended
        finding = Finding(
            "repaired",
            "no end marker",
            "a JPEG that ends with its end marker",
            "all pixels, no end marker",
            "nothing; the two bytes were appended",
            "end marker appended",
        )
        findings = [finding]
    else:
        findings = []
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    return data, (height, width), colours, findings


def decode_strictly(data: bytes) -> None:
    """Decode a whole JPEG and throw the pixels away. Raises ValueError for any fault, even one libjpeg would hide."""
    # Luma alone goes through the same entropy decoder for all channels, but saves the colour conversion.
    _, _, colours, _ = simplejpeg.decode_jpeg_header(data)
    # An eighth of the size: every bit is still read, which is where faults show, but 35 % of the time is saved.
    eighth = {"min_height": 1, "min_width": 1, "min_factor": 8}
    simplejpeg.decode_jpeg(data, "CMYK" if colours in ("CMYK", "YCCK") else "GRAY", strict=True, **eighth)


def _decodes(data: bytes) -> bool:
    try:
        decode_strictly(data)
    except ValueError:
        return False
    return True


def _encoded_anew(data: bytes, reason: str, found: str) -> SourceImage:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _require_pixels((image.height, image.width))
            _require_eight_bits(image.mode)
            pixels = np.asarray(_upright(image).convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _absurd(f"{found} and claims more than {Image.MAX_IMAGE_PIXELS}") from None
    except _PILLOW_ERRORS as error:
        raise RefusedError(
            "no image", expected="a JPEG", found=f"{found} ({type(error).__name__})", remedy=_MEND_FILE
        ) from None
    shape = pixels.shape[0], pixels.shape[1]
    _require_size(shape)
    finding = Finding(
        "repaired", reason, "an upright RGB JPEG", found, "nothing, unless other bytes matter to you", "re-encoded"
    )
    return SourceImage(encode_jpeg(pixels), shape, shape, (finding,))


def _upright(image: Image.Image) -> Image.Image:
    """The image as EXIF says it is to be seen.

    Not by Pillow's `exif_transpose`, which writes all of EXIF anew and fails over tags that have nothing to do with it.
    """
    image.load()  # turns a TIFF, and takes the tag away
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _segments(data: bytes) -> dict[int, bytes]:
    """Segments of a JPEG up to the first scan: marker -> content of the first of its kind."""
    segments: dict[int, bytes] = {}
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        (size,) = struct.unpack_from(">H", data, position + 2)
        segments.setdefault(marker, data[position + 4 : position + 2 + size])
        if marker == _SCAN:
            break
        position += 2 + size
    return segments


def _in_one_scan(segments: dict[int, bytes]) -> bool:
    """Whether the first scan of a JPEG holds every component at full precision, as in all but progressive ones."""
    frame = next((content for marker, content in segments.items() if marker in _FRAMES and len(content) >= 6), b"")
    scan = segments.get(_SCAN, b"")
    return _PROGRESSIVE not in segments and bool(frame and scan) and frame[5] == scan[0]


def _orientation(data: bytes, segments: dict[int, bytes]) -> int:
    """EXIF orientation 1..8; 1 where there is none."""
    if not segments.get(0xE1, b"").startswith(b"Exif\0"):
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
    except _PILLOW_ERRORS:
        return 1  # unreadable EXIF turns nothing; whether the image itself is sound is found by decoding it
    return orientation if orientation in range(1, 9) else 1


def _declared_size(segments: dict[int, bytes]) -> tuple[int, int]:
    """(height, width) out of a JPEG's frame header, (0, 0) where there is none."""
    header = next((content for marker, content in segments.items() if marker in _FRAMES and len(content) >= 5), None)
    return struct.unpack_from(">HH", header, 1) if header else (0, 0)


def _require_pixels(shape: tuple[int, int]) -> None:
    """Before anything is decoded: a few kilobytes can claim gigabytes of pixels."""
    if shape[0] * shape[1] > MAX_PIXELS or max(shape) > MAX_SIDE:
        raise _absurd(f"{shape[1]}x{shape[0]}")


def _absurd(found: str) -> RefusedError:
    return RefusedError(
        "absurd size",
        expected=f"at most {MAX_PIXELS} pixels and {MAX_SIDE} a side",
        found=found,
        remedy=_MEND_FILE,
    )


def _require_eight_bits(mode: str) -> None:
    """Of one channel with more bits Pillow would cut off everything above 255."""
    if mode.startswith(("I", "F")):
        raise RefusedError(
            "deep image",
            expected="8 bits a channel",
            found=f"one channel of more (Pillow's mode {mode})",
            remedy="scale its levels to 8 bits; what they mean nobody here can know",
        )


def _require_size(shape: tuple[int, int]) -> None:
    if min(shape) < MIN_SIDE:
        raise RefusedError(
            "tiny image",
            expected=f"at least {MIN_SIDE} pixels a side",
            found=f"{shape[1]}x{shape[0]}",
            remedy="leave the video out of the split",
        )


def _kept(reason: str, expected: str, found: str) -> Finding:
    return Finding("warning", reason, expected, found, "nothing, unless your decoder refuses it", "kept")
