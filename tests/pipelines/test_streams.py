"""Streams give known words, do not touch each other, and are uniform enough to draw clips from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.order.streams import BLOCK, Stream, StreamName, stream_key

MASK = (1 << 64) - 1


def philox_block(key: tuple[int, int], counter: list[int]) -> list[int]:
    """Philox4x64-10 written from the paper (Salmon et al. 2011, section 3.3): one block of four words."""
    a, b, c, d = counter
    first_key, second_key = key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (second >> 64) ^ b ^ first_key, second & MASK, (first >> 64) ^ d ^ second_key, first & MASK
        first_key = (first_key + 0x9E3779B97F4A7C15) & MASK
        second_key = (second_key + 0xBB67AE8584CAA73B) & MASK
    return [a, b, c, d]


def test_words_are_those_of_philox_by_its_paper():
    stream = Stream((3, 5), StreamName.CROP, 7, trial=2)
    expected = [word for block in range(1, 9) for word in philox_block((3, 5), [block, 2, 7, int(StreamName.CROP)])]
    assert [stream.word() for _ in range(32)] == expected


def test_first_words_are_known():
    stream = Stream((0, 0), StreamName.VIDEOS, 0)
    assert [stream.word() for _ in range(2)] == [0x57994A7DB8F816C6, 0x93967384228B3028]


def test_the_oracle_gives_the_published_test_vector():
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox_block((0, 0), [0, 0, 0, 0]) == expected


def test_stream_numbers_never_change():
    names = {name.name: int(name) for name in StreamName}
    expected = {"VIDEOS": 1, "FRAMES": 2, "OBJECTS": 3, "CROP": 4, "AFFINE": 5, "COLOUR": 6, "DAMAGE": 7, "SPLINE": 8,
                "FIRST_FRAME": 20}  # fmt: skip
    assert names == expected


def test_many_words_at_once_are_the_words_one_by_one():
    for before in (0, 1, BLOCK - 1, BLOCK, BLOCK + 3):
        one, many = Stream((1, 2), StreamName.FRAMES, 3), Stream((1, 2), StreamName.FRAMES, 3)
        assert [one.word() for _ in range(before)] == [many.word() for _ in range(before)]
        assert [one.word() for _ in range(21)] == many.words(21).tolist()
        assert one.word() == many.word()


def test_uniforms_equal_single_uniforms_and_lie_in_their_range():
    one, many = Stream((1, 2), StreamName.COLOUR, 3), Stream((1, 2), StreamName.COLOUR, 3)
    assert [one.uniform() for _ in range(50)] == many.uniforms(50).tolist()
    draws = np.array([one.uniform(-3.0, 5.0) for _ in range(4000)])
    assert -3.0 <= draws.min() < -2.95
    assert 4.95 < draws.max() < 5.0
    assert abs(draws.mean() - 1.0) < 4 * (8 / 12**0.5) / 4000**0.5


@pytest.mark.parametrize("count", [1, 2, 3, 7, 26])
def test_integers_are_uniform(count: int):
    stream = Stream((9, 9), StreamName.FRAMES, count)
    draws = Counter(stream.integer(count) for _ in range(400 * count))
    assert set(draws) == set(range(count))
    chi_squared = sum((draws[value] - 400) ** 2 / 400 for value in range(count))
    assert chi_squared < count + 5 * (2 * count) ** 0.5


def test_an_integer_of_nothing_is_refused():
    stream = Stream((0, 0), StreamName.FRAMES, 0)
    with pytest.raises(ValueError, match="count >= 1, got 0"):
        stream.integer(0)
    with pytest.raises(ValueError, match="count >= 1, got 0"):
        stream.choice([])


def test_impossible_never_happens_and_certain_always_does():
    stream = Stream((0, 0), StreamName.CROP, 0)
    assert not any(stream.happens(0.0) for _ in range(500))
    assert all(stream.happens(1.0) for _ in range(500))


@given(st.integers(0, 400), st.integers(0, MASK))
def test_a_permutation_holds_every_position_once(count: int, seed: int):
    order = Stream((seed, 1), StreamName.VIDEOS, 0).permutation(count)
    assert sorted(order.tolist()) == list(range(count))


def test_all_orders_of_three_are_equally_likely():
    orders = Counter(tuple(Stream((4, 4), StreamName.OBJECTS, n).permutation(3).tolist()) for n in range(3000))
    assert len(orders) == 6
    assert max(abs(count - 500) for count in orders.values()) < 5 * 500**0.5


def test_streams_that_differ_in_anything_share_no_word():
    variants = [((k, f), name, number, trial) for k in (0, 1) for f in (0, 1) for name in StreamName
                for number in (0, 1) for trial in (0, 1)]  # fmt: skip
    words = [w for key, name, n, trial in variants for w in Stream(key, name, n, trial=trial).words(64).tolist()]
    assert len(set(words)) == len(words)


def test_the_key_holds_the_seed_and_the_data():
    assert stream_key(5, "a")[0] == 5
    assert stream_key(5, "a") != stream_key(5, "b")
    assert stream_key(0, "abc") == (0, 0xBA7816BF8F01CFEA)  # first half of SHA-256's published test vector "abc"


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_outside_64_bits_is_refused(seed: int):
    with pytest.raises(ValueError, match="below 2\\*\\*64"):
        stream_key(seed, "a")
