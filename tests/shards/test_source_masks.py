"""Reading masks however they are stored: right ids or a refusal, never a guess."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from shards import png
from shards.findings import RefusedError
from shards.masks import MASK_CODECS, decode_label_map, decode_soft_mask
from shards.palettes import voc_palette
from shards.source_masks import read_mask
from tests.shards.small_tree import indexed_png, jpeg, label_maps, saved

IDS = label_maps(1, (1, 2, 3), seed=8)[0]
VOC = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)


def bits_png(labels: np.ndarray, bits: int, colour_type: int) -> bytes:
    """PNG with few bits a pixel, packed by hand; width must be a multiple of 8."""
    steps = 8 // bits
    groups = labels.reshape(labels.shape[0], -1, steps).astype(np.uint16)
    packed = sum(groups[..., step] << (bits * (steps - 1 - step)) for step in range(steps)).astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in packed)
    palette = [(b"PLTE", voc_palette()[: 3 * 2**bits])] if colour_type == png.PALETTE else []
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, colour_type, 0, 0, 0)),
        *palette,
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return png.SIGNATURE + b"".join(parts)


STORED = {
    "palette": indexed_png(IDS),
    "4-bit palette": bits_png(IDS, 4, png.PALETTE),
    "2-bit palette": bits_png(IDS, 2, png.PALETTE),
    "4-bit grey": bits_png(IDS, 4, png.GREY),
    "2-bit grey": bits_png(IDS, 2, png.GREY),
    "grey": saved(Image.fromarray(IDS), "png"),
    "16-bit grey": saved(Image.fromarray(IDS.astype(np.uint16)), "png"),
    "grey with alpha": saved(Image.merge("LA", (Image.fromarray(IDS), Image.new("L", IDS.shape[::-1], 255))), "png"),
    "colours": saved(Image.fromarray(VOC[IDS]), "png"),
    "colours with alpha": saved(Image.fromarray(VOC[IDS]).convert("RGBA"), "png"),
}


@pytest.mark.parametrize("codec", MASK_CODECS)
@pytest.mark.parametrize("way", STORED)
def test_ids_are_read_from_every_sound_way_of_storing_them(way, codec):
    mask = read_mask(STORED[way], codec)
    np.testing.assert_array_equal(decode_label_map(mask.data, codec), IDS)
    assert mask.shape == IDS.shape and mask.objects.ids.tolist() == [1, 2, 3] and not mask.has_void
    assert (mask.palette is not None) == ("palette" in way)


@pytest.mark.parametrize("codec", MASK_CODECS)
def test_all_256_indices_survive_a_palette(codec):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mask = read_mask(indexed_png(labels), codec)
    np.testing.assert_array_equal(decode_label_map(mask.data, codec), labels)
    assert mask.has_void and mask.objects.ids.tolist() == list(range(1, 255))


def test_an_eight_bit_palette_png_becomes_grey_without_touching_its_pixel_data():
    original = indexed_png(IDS)
    patched = read_mask(original, "png").data
    pixel_data = [body for kind, body in png.read_chunks(original) if kind == b"IDAT"]
    assert [body for kind, body in png.read_chunks(patched) if kind == b"IDAT"] == pixel_data


def test_an_adam7_palette_png_is_encoded_anew(shared_data):
    path = shared_data / "broken_mini" / "Annotations" / "480p" / "mask_interlaced" / "00001.png"
    if not path.exists():
        pytest.skip("no broken_mini")
    mask = read_mask(path.read_bytes(), "png")
    with Image.open(path) as image:
        np.testing.assert_array_equal(decode_label_map(mask.data, "png"), np.array(image))


def soft_edges() -> np.ndarray:
    labels = np.where(IDS > 0, 255, 0).astype(np.uint8)
    labels[:, 0] = np.arange(40)
    return labels


def see_through() -> bytes:
    image = Image.fromarray(VOC[IDS]).convert("RGBA")
    image.putalpha(200)
    return saved(image, "png")


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


REFUSED = {
    "empty file": b"",
    "mask is no PNG": jpeg(1),
    "truncated mask": indexed_png(IDS)[:-20],
    "damaged mask": flipped(indexed_png(IDS), len(indexed_png(IDS)) - 20),
    "ids outside the palette": indexed_png(IDS, voc_palette()[:9]),
    "ids above 255": saved(Image.fromarray(IDS.astype(np.uint16) * 300), "png"),
    "unknown colour": saved(Image.fromarray(np.full((8, 8, 3), (17, 200, 33), np.uint8)), "png"),
    "transparent mask": see_through(),
    "0/255 grey mask": saved(Image.fromarray(np.where(IDS > 0, 255, 0).astype(np.uint8)), "png"),
    "soft edges": saved(Image.fromarray(soft_edges()), "png"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_leaves_the_ids_in_doubt_is_refused(reason):
    with pytest.raises(RefusedError) as caught:
        read_mask(REFUSED[reason], "lz4")
    assert caught.value.finding.reason == reason


def test_a_thin_band_of_void_is_no_reason_to_refuse_a_grey_mask():
    labels = IDS.copy()
    labels[0, :5] = 255
    assert read_mask(saved(Image.fromarray(labels), "png"), "lz4").has_void


def test_a_one_bit_mask_is_read_as_id_1_with_a_warning():
    mask = read_mask(saved(Image.fromarray(IDS > 0), "png"), "lz4")
    np.testing.assert_array_equal(decode_label_map(mask.data, "lz4"), IDS > 0)
    assert [finding.reason for finding in mask.findings] == ["1-bit mask"]


@pytest.mark.parametrize("entries", [4, 200, 256])
def test_an_indexed_png_keeps_indices_and_exactly_the_palette_given(entries, tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(png.encode_indexed(IDS, voc_palette()[: 3 * entries]))
    with Image.open(path) as image:
        assert image.mode == "P" and image.palette.palette == voc_palette()[: 3 * entries]
        np.testing.assert_array_equal(np.array(image), IDS)


def test_an_indexed_png_needs_an_entry_for_every_id():
    with pytest.raises(ValueError, match="id 3 in a mask for a palette of 3 entries"):
        png.encode_indexed(IDS, voc_palette()[:9])


def deep_grey_alpha(values: np.ndarray, alpha: int, filter_type: int = 0) -> bytes:
    """PNG of 16-bit grey and alpha; filter 2: each row as its difference from the row above."""
    pixels = np.stack([values, np.full_like(values, alpha)], axis=-1).astype(">u2")
    rows = pixels.reshape(len(pixels), -1).view(np.uint8)
    if filter_type == 2:
        rows = np.concatenate([rows[:1], rows[1:] - rows[:-1]])
    raw = b"".join(bytes([filter_type]) + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, png.GREY_ALPHA, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return png.SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


@pytest.mark.parametrize("filter_type", [0, 2])
def test_deep_grey_with_opaque_alpha_keeps_its_ids(filter_type):
    mask = read_mask(deep_grey_alpha(IDS.astype(np.uint16), 65535, filter_type), "lz4")
    np.testing.assert_array_equal(decode_label_map(mask.data, "lz4"), IDS)


@pytest.mark.parametrize(("value", "alpha", "reason"), [(1, 65534, "transparent mask"), (256, 65535, "ids above 255")])
def test_deep_grey_that_is_transparent_or_too_high_is_refused(value, alpha, reason):
    with pytest.raises(RefusedError) as caught:
        read_mask(deep_grey_alpha(IDS.astype(np.uint16) * value, alpha), "lz4")
    assert caught.value.finding.reason == reason


def test_deep_levels_with_opaque_alpha_are_divided_by_257():
    levels = np.arange(0, 256, dtype=np.uint16).reshape(16, 16)
    mask = read_mask(deep_grey_alpha(levels * 257, 65535), "soft.lz4", "soft")
    np.testing.assert_array_equal(decode_soft_mask(mask.data, "soft.lz4"), levels)


def with_rows(raw: bytes, height: int, width: int) -> list[tuple[bytes, bytes]]:
    """Chunks of an 8-bit grey PNG with these inflated bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, png.GREY, 0, 0, 0)
    return [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]


@pytest.mark.parametrize("filtered", [False, True])
def test_rows_without_filters_are_read_straight_and_others_by_pillow(filtered):
    levels = np.random.default_rng(0).integers(0, 9, (6, 11), np.uint8)
    rows = np.zeros((6, 12), np.uint8)
    rows[:, 1:] = levels
    if filtered:  # the second row as differences to the first
        rows[1, 0] = 2
        rows[1, 1:] = levels[1] - levels[0]
    chunks = with_rows(rows.tobytes(), 6, 11)
    straight = png.decode_unfiltered(chunks, png.read_header(chunks))
    assert (straight is None) == filtered
    found = png.decode_pixels(png.SIGNATURE + b"".join(map(png._encode_chunk, chunks))) if filtered else straight
    np.testing.assert_array_equal(found, levels)
    assert found.flags.c_contiguous and found.flags.writeable
    low = with_rows(b"\0\7\10", 1, 2)
    one_row = png.decode_unfiltered(low, png.read_header(low))
    assert one_row.tolist() == [[7, 8]] and one_row.flags.writeable


def test_data_of_another_length_than_the_header_says_are_never_unpacked_whole():
    for num_bytes in (71, 73, 50_000_000):
        chunks = with_rows(bytes(num_bytes), 6, 11)
        tracemalloc.start()
        assert png.decode_unfiltered(chunks, png.read_header(chunks)) is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()
    cut = with_rows(bytes(72), 6, 11)
    cut[1] = (b"IDAT", cut[1][1][:-2])
    assert png.decode_unfiltered(cut, png.read_header(cut)) is None


@pytest.mark.parametrize("way", ["palette", "4-bit palette", "2-bit grey", "16-bit grey", "grey with alpha", "colours"])
@pytest.mark.parametrize("reading", ["ids", "merged"])
def test_a_mask_whose_last_rows_are_missing_is_refused_although_every_checksum_is_right(way, reading):
    chunks = png.read_chunks(STORED[way])
    raw = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    for num_bytes in (0, 1, len(raw) // 2, len(raw) - 1):
        short = [(kind, body) for kind, body in chunks if kind not in (b"IDAT", b"IEND")]
        short += [(b"IDAT", zlib.compress(raw[:num_bytes])), (b"IEND", b"")]
        with pytest.raises(RefusedError) as caught:
            read_mask(png.SIGNATURE + b"".join(map(png._encode_chunk, short)), "lz4", reading)
        assert caught.value.finding.reason == "damaged mask"
        assert caught.value.finding.found == f"{len(raw) - num_bytes} fewer"


def test_the_size_of_interlaced_pixel_data_is_known(shared_data):
    path = shared_data / "broken_mini" / "Annotations" / "480p" / "mask_interlaced" / "00001.png"
    chunks = png.read_chunks(path.read_bytes())
    raw = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    assert png.read_header(chunks).interlaced and png._pixel_bytes(png.read_header(chunks)) == len(raw)


def test_what_is_said_of_a_damaged_header_is_the_same_in_every_run():
    header = struct.pack(">IIBBBBB", 2, 1, 3, png.GREY, 0, 0, 0)  # there are no 3 bits a pixel
    odd = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(4))), (b"IEND", b"")]
    with pytest.raises(RefusedError) as caught:
        read_mask(png.SIGNATURE + b"".join(map(png._encode_chunk, odd)), "lz4")
    assert caught.value.finding.found == "no valid header"


@pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
def test_a_mask_of_no_pixel_is_refused(shape):
    nothing = with_rows(bytes(shape[0]), *shape)
    with pytest.raises(RefusedError) as caught:
        read_mask(png.SIGNATURE + b"".join(map(png._encode_chunk, nothing)), "lz4")
    assert caught.value.finding.found == f"{shape[1]}x{shape[0]}"
