"""What building shards costs beside its two walls: moving the bytes, and encoding the masks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import simplejpeg

from pipelines.benchmark import take_turns
from shards.build import build, silent
from shards.masks import MaskCodec
from shards.plan import BuildRequest, make_plan
from shards.source_masks import read_mask


@dataclass(frozen=True, slots=True)
class BuildTiming:
    """CPU seconds on one core for the whole source, page cache warm; medians of `rounds` turns.

    build: the complete shard set. copy: all source bytes read and written to one file. encode_masks: every mask file
    decoded and encoded as a member, nothing written. check_images: every JPEG decoded once, which the build does before
    it trusts one.
    """

    num_frames: int
    source_mb: float
    rounds: int
    build: float
    copy: float
    encode_masks: float
    check_images: float


def time_build(source: Path, scratch: Path, *, mask_codec: MaskCodec = "lz4", rounds: int = 3) -> BuildTiming:
    """Time the build of a DAVIS 2017 folder into `scratch`, a folder that is made and removed again.

    Raises DataError as the build does, FileExistsError if `scratch` is there.
    """
    images = sorted((source / "JPEGImages" / "480p").glob("*/*.jpg"))
    masks = sorted((source / "Annotations" / "480p").glob("*/*.png"))
    work: dict[str, Callable[[], None]] = {
        "build": lambda: _build(source, scratch, mask_codec),
        "copy": lambda: _copy([*images, *masks], scratch),
        "encode_masks": lambda: _encode(masks, mask_codec),
        "check_images": lambda: _decode(images),
    }
    scratch.mkdir()
    try:
        seconds = take_turns(work, rounds)
    finally:
        shutil.rmtree(scratch)
    source_mb = sum(path.stat().st_size for path in (*images, *masks)) / 1e6
    return BuildTiming(len(images), source_mb, rounds, **seconds)


def _build(source: Path, scratch: Path, mask_codec: MaskCodec) -> None:
    request = BuildRequest("davis2017", (source,), scratch / "set", mask_codec=mask_codec)
    build(request, make_plan(request), silent)
    shutil.rmtree(scratch / "set")


def _copy(paths: list[Path], scratch: Path) -> None:
    target = scratch / "copy"
    with target.open("wb") as file:
        for path in paths:
            file.write(path.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    target.unlink()


def _encode(paths: list[Path], mask_codec: MaskCodec) -> None:
    for path in paths:
        read_mask(path.read_bytes(), mask_codec)


def _decode(paths: list[Path]) -> None:
    for path in paths:
        simplejpeg.decode_jpeg(path.read_bytes())
