"""Label maps as shard members: every id survives, foreign bytes are refused."""

from __future__ import annotations

import struct

import lz4.block
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from shards.masks import MASK_CODECS, decode_label_map, encode_label_map, find_objects, label_map_size
from tests.shards.small_tree import indexed_png, saved

ALL_IDS = np.arange(256, dtype=np.uint8).reshape(8, 32)


@pytest.mark.parametrize("codec", MASK_CODECS)
@given(labels=arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 255)))
def test_a_label_map_survives_encoding(codec, labels):
    decoded = decode_label_map(encode_label_map(labels, codec), codec)
    assert decoded.dtype == np.uint8 and decoded.flags.writeable
    np.testing.assert_array_equal(decoded, labels)


@pytest.mark.parametrize("codec", MASK_CODECS)
def test_all_256_ids_survive(codec):
    np.testing.assert_array_equal(decode_label_map(encode_label_map(ALL_IDS, codec), codec), ALL_IDS)


@pytest.mark.parametrize("codec", MASK_CODECS)
def test_the_size_is_read_without_decoding(codec):
    assert label_map_size(encode_label_map(ALL_IDS, codec), codec) == (8, 32)


def test_an_lz4_member_is_a_header_and_one_raw_block():
    data = encode_label_map(ALL_IDS, "lz4")
    assert data[:16] == b"VFM1" + struct.pack("<III", 8, 32, 0)
    assert lz4.block.decompress(data[16:], uncompressed_size=256) == ALL_IDS.tobytes()


@pytest.mark.parametrize(
    "damage", [lambda d: d[:20], lambda d: b"VFM2" + d[4:], lambda d: d[:4] + rb"\9" + d[5:], lambda d: b""]
)
def test_damaged_lz4_members_are_refused(damage):
    with pytest.raises(ValueError, match=r"LZ4|lz4"):
        decode_label_map(damage(encode_label_map(ALL_IDS, "lz4")), "lz4")


@pytest.mark.parametrize("data", [indexed_png(ALL_IDS), saved(Image.fromarray(ALL_IDS > 4), "png"), b"\x89PNG", b""])
def test_a_png_that_fast_decoders_would_expand_is_refused(data):
    with pytest.raises(ValueError, match="not an 8-bit grey PNG"):
        decode_label_map(data, "png")


def test_a_truncated_grey_png_is_refused():
    with pytest.raises(ValueError, match="damaged PNG"):
        decode_label_map(encode_label_map(ALL_IDS, "png")[:-30], "png")


@pytest.mark.parametrize(
    "labels", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 1), np.uint8), np.zeros((0, 2), np.uint8)]
)
def test_only_label_maps_are_encoded(labels):
    with pytest.raises(ValueError, match="a label map is"):
        encode_label_map(labels, "lz4")


def test_an_unknown_codec_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="'zip'; there are: lz4, png"):
        encode_label_map(ALL_IDS, "zip")


@given(
    labels=arrays(
        np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 7, 254, 255])
    )
)
def test_objects_are_those_a_plain_loop_finds(labels):
    found = find_objects(labels)
    wanted = {}
    for (row, column), label in np.ndenumerate(labels):
        if label in (0, 255):
            continue
        area, y0, x0, y1, x1 = wanted.get(int(label), (0, 99, 99, 0, 0))
        wanted[int(label)] = (area + 1, min(y0, row), min(x0, column), max(y1, row + 1), max(x1, column + 1))
    assert found.ids.tolist() == sorted(wanted)
    for object_id, area, box in zip(found.ids, found.areas, found.boxes, strict=True):
        assert (int(area), *box.tolist()) == wanted[int(object_id)]
    assert (found.ids.dtype, found.areas.dtype, found.boxes.dtype) == (np.uint8, np.uint32, np.uint16)
    assert found.boxes.shape == (len(wanted), 4)
