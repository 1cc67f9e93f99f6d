"""Palettes that turn label maps into pictures; ids never depend on them."""

from __future__ import annotations

import functools


@functools.cache
def voc_palette() -> bytes:
    """768 bytes: 256 RGB colours of the Pascal VOC colour map, the one of DAVIS: 0 black, 1 (128,0,0), 2 (0,128,0), ...

    The bits of an id are dealt out in turn to red, green and blue, lowest id bit to highest colour bit.
    """
    colours = bytearray()
    for label in range(256):
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= ((label >> bit) & 1) << (7 - bit // 3)
        colours += bytes(channels)
    return bytes(colours)
