"""Label maps as the PNG files of results and annotations: ids in, ids out, colours only for the eye."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.errors import DataError
from shards.palettes import voc_palette
from shards.storage.paths import write_bytes

LabelMap = NDArray[np.uint8]


def read_label_map(path: Path) -> LabelMap:
    """Ids (H, W) uint8 of a palette or grey PNG of 1 to 8 bits; of grey with alpha (one is in DAVIS 2016) the grey.

    Raises DataError for a missing or damaged file and for colours, which hold no ids.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            mode, labels = image.mode, np.asarray(image)
    except FileNotFoundError:
        raise DataError(path, expected="a label map", found="no such file", remedy="write this frame") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        remedy = "write this frame again"
        raise DataError(
            path, expected="a PNG label map", found=f"damaged or not PNG ({error})", remedy=remedy
        ) from None
    if mode not in ("P", "L", "1", "LA"):
        raise DataError(
            path,
            expected="an 8-bit palette or grey PNG whose values are object ids",
            found=f"a PNG of mode {mode}",
            remedy="save the ids, not their colours",
        )
    if mode == "LA":
        return labels[..., 0]
    if mode == "L" and (bits := _bit_depth(path)) < 8:
        return labels // (255 // (2**bits - 1))  # Pillow spreads 2 and 4 bits of grey over 0..255
    return labels.astype(np.uint8, copy=False)


def is_whole_png(path: Path) -> bool:
    """Whether there is such a file and it is a PNG to its end, by the checksums of its parts."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def _bit_depth(path: Path) -> int:
    """Bits of each sample, 1 to 8 for one channel, as the header of a PNG says."""
    with path.open("rb") as file:
        return file.read(25)[24]


def write_label_map(path: Path, labels: LabelMap, palette: bytes | None = None) -> None:
    """Write ids (H, W) uint8 as a palette PNG, atomically; palette: RGB bytes, the one of DAVIS if None."""
    image = Image.fromarray(labels)
    image.putpalette(voc_palette() if palette is None else palette)
    _write_png(path, image)


def write_grey(path: Path, levels: LabelMap) -> None:
    """Write levels (H, W) uint8 as an 8-bit grey PNG, atomically."""
    _write_png(path, Image.fromarray(levels))


def _write_png(path: Path, image: Image.Image) -> None:
    data = io.BytesIO()
    image.save(data, "png")
    write_bytes(path, data.getvalue())
