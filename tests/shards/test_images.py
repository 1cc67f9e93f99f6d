"""Source images: untouched, mended for a listed reason, or refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

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
