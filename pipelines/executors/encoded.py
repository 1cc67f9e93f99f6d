"""Encoded frames on their way into an executor: checked, opened, and named in every complaint."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipelines.types import VOID, ClipPlan, EncodedClip
from shards.errors import DataError
from shards.masks import SOFT_CODECS, decode_label_map, decode_soft_mask, label_map_size

LZ4_CODECS = ("lz4", "soft.lz4")
LZ4_HEADER_BYTES = 16
"""Before the block: magic, height, width and a reserved word; see docs/data-format.md."""
IMAGE_START = b"\xff\xd8"
IMAGE_END = b"\xff\xd9"


def decode_jpeg(clip: EncodedClip, index: int) -> NDArray[np.uint8]:
    """Frame `index` of the clip as (H, W, 3) uint8 RGB, pixels as stored (an EXIF orientation is not applied).

    Anything libjpeg merely warns of (data that ends early, garbage between blocks) is an error here. Raises DataError.
    """
    return _decode(clip, index, "RGB", None)


def decode_jpeg_padded(clip: EncodedClip, index: int, buffer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`decode_jpeg` as (H, W, 4), the fourth channel without meaning, in the first H * W * 4 bytes of flat `buffer`."""
    height, width = jpeg_size(clip, index)
    return _decode(clip, index, "RGBX", buffer[: height * width * 4])


def whole_jpeg(clip: EncodedClip, index: int) -> bytes:
    """Bytes of a frame's JPEG, with the end marker that a few writers forget. Raises DataError unless it is a JPEG."""
    data = clip.frames[index].image
    if not data.startswith(IMAGE_START):
        raise bad_image(clip.plan, index, f"{len(data)} bytes that begin with {data[:4].hex() or 'nothing'}")
    return data if data.endswith(IMAGE_END) else data + IMAGE_END


def checked_jpeg(clip: EncodedClip, index: int) -> bytes:
    """`whole_jpeg` for decoders that fill up what is missing: proven complete if its end marker had to be added."""
    if not clip.frames[index].image.endswith(IMAGE_END):
        decode_jpeg(clip, index)
    return whole_jpeg(clip, index)


def jpeg_size(clip: EncodedClip, index: int) -> tuple[int, int]:
    """(height, width) from the JPEG's header. Raises DataError."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(clip.frames[index].image)
    except ValueError as error:
        raise bad_image(clip.plan, index, str(error)) from error
    return height, width


def has_soft_masks(clip: EncodedClip) -> bool:
    """Whether the masks are levels to be warped linearly, and no label maps."""
    return clip.mask_codec in SOFT_CODECS


def decode_labels(clip: EncodedClip, index: int) -> NDArray[np.uint8] | None:
    """Label map or soft mask of frame `index`, (H, W) uint8 of the image's size, None without annotation.

    Void is background where the plan says so. Raises DataError.
    """
    data = clip.frames[index].mask
    if data is None:
        return None
    try:
        decode = decode_soft_mask if has_soft_masks(clip) else decode_label_map
        labels = decode(data, clip.mask_codec)
    except ValueError as error:
        expected = f"a {'soft mask' if has_soft_masks(clip) else 'label map'} in codec {clip.mask_codec}"
        raise _bad_frame(clip.plan, index, expected=expected, found=str(error)) from error
    size = jpeg_size(clip, index)
    if labels.shape != size:
        raise _bad_frame(clip.plan, index, expected=f"a label map of {size}", found=f"one of {labels.shape}")
    if clip.plan.labels.void_is_background and not has_soft_masks(clip):
        labels = np.where(labels == VOID, 0, labels)
    return labels


def label_block(clip: EncodedClip, index: int) -> tuple[memoryview, tuple[int, int]] | None:
    """The raw LZ4 block of frame `index`'s label map or soft mask and its (height, width), None without annotation.

    For decoders elsewhere: nothing is unpacked here, so only the header is checked. Raises DataError, ValueError for
    masks in another codec.
    """
    if clip.mask_codec not in LZ4_CODECS:
        raise ValueError(f"masks of codec {clip.mask_codec} are no LZ4 blocks")
    data = clip.frames[index].mask
    if data is None:
        return None
    try:
        size = label_map_size(data, clip.mask_codec)
    except ValueError as error:
        expected = f"a mask in codec {clip.mask_codec}"
        raise _bad_frame(clip.plan, index, expected=expected, found=str(error)) from error
    if size != jpeg_size(clip, index):
        raise _bad_frame(clip.plan, index, expected=f"a label map of {jpeg_size(clip, index)}", found=f"one of {size}")
    return memoryview(data)[LZ4_HEADER_BYTES:], size


def fill_colour(plan: ClipPlan) -> tuple[int, int, int]:
    """The plan's fill in whole levels: images are 8 bit when they are warped."""
    red, green, blue = (min(max(round(level), 0), 255) for level in plan.fill)
    return red, green, blue


def frame_place(plan: ClipPlan, index: int) -> str:
    """Where a frame of a plan comes from, as far as a plan knows, for messages."""
    return f"clip {plan.number}, data set {plan.dataset}, video row {plan.video}, frame row {plan.frames[index]}"


def bad_image(plan: ClipPlan, index: int, found: str) -> DataError:
    """The DataError for a frame whose image does not decode."""
    return _bad_frame(plan, index, expected="a JPEG that decodes completely", found=found)


def _decode(clip: EncodedClip, index: int, channels: str, buffer: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(whole_jpeg(clip, index), channels, buffer=buffer)
    except ValueError as error:
        raise bad_image(clip.plan, index, str(error)) from error
    return pixels


def _bad_frame(plan: ClipPlan, index: int, *, expected: str, found: str) -> DataError:
    remedy = "run tools/check.py on the data set"
    return DataError(frame_place(plan, index), expected=expected, found=found, remedy=remedy)
