"""Source images: untouched, mended for a listed reason, or refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from shards.findings import RefusedError
from shards.images import encode_jpeg, read_image
from tests.shards.small_tree import HEIGHT, WIDTH, jpeg, saved

PLAIN = jpeg(3)


def picture() -> Image.Image:
    with Image.open(io.BytesIO(PLAIN)) as image:
        return image.copy()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(picture(), "jpeg", exif=exif, quality=95)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PLAIN, None),
        (turned(1), None),
        (jpeg(3, progressive=True), "progressive JPEG"),
        (saved(picture().convert("L"), "jpeg"), "grey image"),
        (PLAIN + b"more", "trailing bytes"),
    ],
)
def test_sound_jpegs_keep_their_bytes(data, reason):
    image = read_image(data)
    assert image.data == data and image.shape == (HEIGHT, WIDTH)
    assert [finding.reason for finding in image.findings] == ([] if reason is None else [reason])


def test_a_missing_end_marker_is_put_back_where_every_pixel_is_there():
    image = read_image(PLAIN[:-2])
    assert image.data == PLAIN
    assert [(finding.severity, finding.reason) for finding in image.findings] == [("repaired", "no end marker")]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"])
def test_a_truncated_jpeg_is_refused_with_and_without_an_end_marker(share, ending):
    with pytest.raises(RefusedError, match="damaged image"):
        read_image(PLAIN[: int(share * len(PLAIN))] + ending)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty file"), (b"<!DOCTYPE html>", "no image"), (b"\xff\xd8", "damaged image")]
)
def test_what_is_no_image_is_refused(data, reason):
    with pytest.raises(RefusedError) as caught:
        read_image(data)
    assert caught.value.finding.reason == reason


def test_an_image_of_16_bits_is_refused_for_its_levels_would_be_cut_off():
    deep = Image.fromarray(np.arange(40 * 56, dtype=np.uint16).reshape(40, 56) * 20)
    for form in ("png", "tiff"):
        with pytest.raises(RefusedError) as caught:
            read_image(saved(deep, form))
        assert caught.value.finding.reason == "deep image"


def test_a_photo_is_turned_although_its_exif_holds_text_where_a_number_belongs():
    positioning = struct.pack("<HHII", 0x0213, 2, 1, ord("a"))
    tags = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + positioning
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + tags + bytes(4)
    data = PLAIN[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + PLAIN[2:]
    assert read_image(data).data == read_image(turned_bytes(6)).data


@pytest.mark.parametrize("orientation", range(2, 9))
def test_each_orientation_is_turned_as_pillow_turns_it(orientation):
    data = turned_bytes(orientation)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert read_image(data).data == encode_jpeg(upright)


def turned_bytes(orientation: int) -> bytes:
    """PLAIN itself, with EXIF."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    block = exif.tobytes()
    return PLAIN[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + PLAIN[2:]


def claiming(data: bytes, marker: bytes, place: int, size: bytes) -> bytes:
    """A file whose header claims another size: these bytes, so far behind a marker."""
    at = data.index(marker) + place
    return data[:at] + size + data[at + len(size) :]


@pytest.mark.parametrize("side", [9000, 12000, 30000])
def test_a_small_file_that_claims_a_huge_picture_is_refused_whatever_its_form(side):
    short = side.to_bytes(2) * 2
    png = claiming(saved(picture(), "png"), b"IHDR", 4, side.to_bytes(4) * 2)
    png = claiming(png, b"IHDR", 17, zlib.crc32(png[12:29]).to_bytes(4))
    gif = claiming(saved(picture(), "gif"), b"GIF", 6, side.to_bytes(2, "little") * 2)
    for data in (claiming(PLAIN, b"\xff\xc0", 5, short), claiming(turned(6), b"\xff\xc0", 5, short), png, gif):
        with pytest.raises(RefusedError) as caught:
            read_image(data)
        assert caught.value.finding.reason == "absurd size"


def test_forms_that_pillow_would_read_by_other_programs_are_never_tried():
    with pytest.raises(RefusedError) as caught:
        read_image(saved(picture(), "eps"))
    assert "UnidentifiedImageError" in caught.value.finding.found


def test_a_tiny_image_is_refused():
    with pytest.raises(RefusedError, match="tiny image"):
        read_image(jpeg(1, 1, 1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(picture(), "png"), "image is no JPEG"),
        (saved(picture().convert("CMYK"), "jpeg", quality=95), "CMYK image"),
        (turned(3), "EXIF orientation"),
        (turned(6), "EXIF orientation"),
    ],
)
def test_odd_images_become_upright_rgb_jpegs(data, reason):
    image = read_image(data)
    assert [(finding.reason, finding.what_was_done) for finding in image.findings] == [(reason, "re-encoded")]
    with Image.open(io.BytesIO(image.data)) as stored:
        assert stored.format == "JPEG" and stored.mode == "RGB"
        pixels = np.asarray(stored, np.int16)
    expected = np.asarray(picture(), np.int16)
    expected = {b"3": np.rot90(expected, 2), b"6": np.rot90(expected, -1)}.get(orientation_of(data), expected)
    assert image.shape == expected.shape[:2]
    assert np.abs(pixels - expected).mean() < 3


def orientation_of(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return str(image.getexif().get(0x0112, 1)).encode()


def test_encoding_is_the_same_bytes_each_time():
    pixels = np.asarray(picture())
    assert encode_jpeg(pixels) == encode_jpeg(pixels.copy())


def scan_starts(data: bytes) -> list[int]:
    """Where scans of a JPEG begin, with the tables before them."""
    places = [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xda"]
    tables = [data.rfind(b"\xff\xc4", 0, place) for place in places]
    return [
        table if table > before else place
        for before, place, table in zip([0, *places], places[1:], tables[1:], strict=False)
    ]


def test_a_progressive_jpeg_cut_between_scans_is_refused():
    """Every pixel decodes, only coarsely: nothing but the end marker tells."""
    data = jpeg(3, progressive=True, quality=95)
    cuts = scan_starts(data)
    assert len(cuts) > 3
    for cut in [*cuts, len(data) - 2]:
        with pytest.raises(RefusedError) as caught:
            read_image(data[:cut])
        assert caught.value.finding.reason == "damaged image"


def test_a_baseline_jpeg_whose_last_scan_is_missing_is_refused():
    """One scan for each component, as some cameras write them."""
    data = one_scan_each()
    assert read_image(data).findings == ()
    for cut in (len(data) - 2, data.rfind(b"\xff\xda")):
        with pytest.raises(RefusedError):
            read_image(data[:cut])


def one_scan_each() -> bytes:
    """A JPEG of three flat channels, 16x16, whose components come in scans of their own."""
    grey = saved(Image.new("L", (16, 16), 90), "jpeg")
    head, scan = grey[: grey.index(b"\xff\xc0")], grey[grey.index(b"\xff\xda") :]
    tables = grey[grey.index(b"\xff\xc4") : grey.index(b"\xff\xda")]
    frame = b"\xff\xc0\x00\x11\x08\x00\x10\x00\x10\x03" + b"".join(bytes([n, 0x11, 0]) for n in (1, 2, 3))
    body = scan[10:-2]
    scans = b"".join(b"\xff\xda\x00\x08\x01" + bytes([n, 0, 0, 63, 0]) + body for n in (1, 2, 3))
    return head + frame + tables + scans + b"\xff\xd9"
