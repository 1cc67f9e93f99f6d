"""Random numbers as a function of (key, stream name, number): nothing here has state that a resume would have to save.

The words come raw from Philox 4x64 (ten rounds, Salmon et al. 2011), a counter-based generator. Only raw words are
used: NumPy may change what the methods of its Generator return for a seed, but not the words of a bit generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

WORD = 1 << 64
BLOCK = 16
"""Words fetched at a time: four Philox rounds of output, enough for most streams of a clip in one call."""


class StreamName(IntEnum):
    """What a stream is for. The numbers are part of every clip of every run: add new ones, never renumber."""

    VIDEOS = 1
    FRAMES = 2
    OBJECTS = 3
    CROP = 4
    AFFINE = 5
    COLOUR = 6
    DAMAGE = 7
    SPLINE = 8
    FIRST_FRAME = 20


class Stream:
    """Reads on through the words of one stream; two streams that differ in any argument share no word.

    key: two words, 0 <= word < 2**64. number: which clip, pass or slot. trial: which sub-stream of it, so that a second
    try draws new numbers without moving anybody else's.
    """

    def __init__(self, key: tuple[int, int], stream: StreamName, number: int, *, trial: int = 0) -> None:
        # The generator counts up in the first counter word; 2**64 blocks never carry into the other three.
        counter = np.array([0, trial, number, int(stream)], dtype=np.uint64)
        self._generator = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=counter)
        self._block: list[int] = []

    def word(self) -> int:
        """Next word, uniform over 0 .. 2**64 - 1."""
        if not self._block:
            self._block = self._generator.random_raw(BLOCK).tolist()[::-1]
        return self._block.pop()

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words, the same as `count` calls of `word`."""
        held = [self._block.pop() for _ in range(min(count, len(self._block)))]
        drawn = self._generator.random_raw(count - len(held))
        return np.concatenate([np.array(held, dtype=np.uint64), drawn])

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number in [low, high), from the top 53 bits of a word."""
        return low + (high - low) * ((self.word() >> 11) * 2.0**-53)

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """(count,) numbers in [0, 1), the same as `count` calls of `uniform`."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integer(self, count: int) -> int:
        """One of 0 .. count - 1. Not exactly uniform: each has a probability within 2**-64 of 1 / count."""
        if count < 1:
            raise ValueError(f"integer(count) needs count >= 1, got {count}")
        return (self.word() * count) // WORD

    def happens(self, probability: float) -> bool:
        """True with the given probability: never for 0, always for 1."""
        return self.uniform() < probability

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`; ValueError if there is none."""
        return items[self.integer(len(items))]

    def permutation(self, count: int) -> NDArray[np.int64]:
        """0 .. count - 1 in random order: the ranks of `count` words, equal words in order of position."""
        return np.argsort(self.words(count), kind="stable").astype(np.int64)

    def key(self) -> tuple[int, int]:
        """Two words as the key of further streams that depend on nothing but this one."""
        return self.word(), self.word()


def stream_key(seed: int, fingerprint: str) -> tuple[int, int]:
    """Key of all streams of a run: the seed, and 64 bits of what is sampled. ValueError unless 0 <= seed < 2**64.

    fingerprint: any text that names the data, hashed here, so that other data means other numbers throughout.
    """
    if not 0 <= seed < WORD:
        raise ValueError(f"seed must be at least 0 and below 2**64, got {seed}")
    return seed, int.from_bytes(hashlib.sha256(fingerprint.encode()).digest()[:8], "big")
