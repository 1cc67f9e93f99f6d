"""What label maps cost: LZ4-HC by level beside PNG, and ways to read the palette PNGs they come as."""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import lz4.block
import numpy as np

from shards import png
from shards.masks import decode_label_map, encode_label_map

LEVELS = (1, 3, 4, 6, 9, 12)


@dataclass(frozen=True, slots=True)
class MaskCost:
    """Of one label map: mean bytes, and median over rounds of the mean CPU milliseconds."""

    bytes: float
    encode_ms: float
    decode_ms: float


@dataclass(frozen=True, slots=True)
class MaskTiming:
    """codecs: by name; those of a level are raw LZ4-HC blocks. png_readers: CPU ms to read a palette PNG's ids."""

    num_maps: int
    source_bytes: float
    codecs: dict[str, MaskCost]
    png_readers: dict[str, float]


def time_masks(davis: Path, num_maps: int = 120, rounds: int = 5) -> MaskTiming:
    """Measure on masks spread over a DAVIS-layout folder. Raises ValueError for a folder without palette PNGs."""
    paths = sorted((davis / "Annotations" / "480p").glob("*/*.png"))
    files = [path.read_bytes() for path in paths[:: max(1, len(paths) // num_maps)]]
    files = [data for data in files if _is_plain(data)]
    if not files:
        raise ValueError(f"{davis}: no 8-bit palette PNG at Annotations/480p/<video>/<frame>.png")
    maps = [png.decode_pixels(data) for data in files]
    codecs = {f"lz4 level {level}": _cost(partial(_compress, level), _decompress, maps, rounds) for level in LEVELS}
    codecs["png"] = _cost(partial(encode_label_map, codec="png"), _decode_png, maps, rounds)
    readers = {name: _median_ms(read, files, rounds) for name, read in PNG_READERS.items()}
    return MaskTiming(len(maps), statistics.mean(map(len, files)), codecs, readers)


def _is_plain(data: bytes) -> bool:
    header = png.read_header(png.read_chunks(data))
    return header.colour_type == png.PALETTE and header.bit_depth == 8 and not header.interlaced


def _cost(
    encode: Callable[[np.ndarray], bytes],
    decode: Callable[[tuple[bytes, int]], Any],
    maps: Sequence[np.ndarray],
    rounds: int,
) -> MaskCost:
    encoded = [(encode(labels), labels.size) for labels in maps]
    size = statistics.mean(len(data) for data, _ in encoded)
    return MaskCost(size, _median_ms(encode, maps, rounds), _median_ms(decode, encoded, rounds))


def _median_ms(work: Callable[[Any], Any], items: Sequence[Any], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        begun = time.process_time()
        for item in items:
            work(item)
        found.append((time.process_time() - begun) / len(items) * 1e3)
    return statistics.median(found)


def _compress(level: int, labels: np.ndarray) -> bytes:
    block = lz4.block.compress(labels.tobytes(), mode="high_compression", compression=level, store_size=False)
    return bytes(block)


def _decompress(encoded: tuple[bytes, int]) -> object:
    return lz4.block.decompress(encoded[0], uncompressed_size=encoded[1], return_bytearray=True)


def _decode_png(encoded: tuple[bytes, int]) -> object:
    return decode_label_map(encoded[0], "png")


def read_by_hand(data: bytes) -> np.ndarray | None:
    """Ids (H, W) uint8 as a build reads them; None for a PNG that it leaves to Pillow."""
    chunks = png.read_chunks(data)
    return png.decode_unfiltered(chunks, png.read_header(chunks))


def read_patched(data: bytes) -> np.ndarray:
    """Ids (H, W) uint8 of an 8-bit palette PNG by OpenCV, which would give colours but for another header."""
    grey = np.frombuffer(png.as_grey(png.read_chunks(data)), np.uint8)
    return np.asarray(cv2.imdecode(grey, cv2.IMREAD_UNCHANGED))


def _inflate(data: bytes) -> object:
    return zlib.decompress(b"".join(body for kind, body in png.read_chunks(data) if kind == b"IDAT"))


PNG_READERS: dict[str, Callable[[bytes], object]] = {
    "Pillow": png.decode_pixels,
    "patched header, OpenCV": read_patched,
    "zlib by hand": read_by_hand,
    "zlib alone": _inflate,
}
