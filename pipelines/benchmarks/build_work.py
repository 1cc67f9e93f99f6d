"""What a build is measured on and beside: a source like BL30K's, each of a build's stages alone, a plain script."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from shards import png
from shards.images import read_image
from shards.masks import MaskCodec, encode_label_map, find_objects
from shards.sources import SOURCES
from shards.sources.bl30k import Bl30k
from shards.sources.types import SourceFile, SourceRequest

FOLDERS = ("JPEGImages", "Annotations")


@dataclass(frozen=True, slots=True)
class MadeSource:
    """Videos in BL30K's layout. folder: with the files; tars: the same files in as many tars, in another order."""

    folder: Path
    tars: tuple[Path, ...]
    num_videos: int
    num_frames: int
    num_bytes: int


def make_bl30k(davis: Path, target: Path, num_videos: int, frames_per_video: int, num_tars: int = 2) -> MadeSource:
    """Fill videos with the frames of a DAVIS-layout folder, over and over, as files and as tars.

    Each tar holds the images of its videos before their masks. Raises ValueError if the folder has no frame with a
    mask.
    """
    images = sorted((davis / "JPEGImages" / "480p").glob("*/*.jpg"))
    masks = [davis / "Annotations" / "480p" / path.parent.name / f"{path.stem}.png" for path in images]
    pairs = cycle([pair for pair in zip(images, masks, strict=True) if pair[1].is_file()] or _no_frames(davis))
    folder = target / "files" / "BL30K"
    num_bytes = 0
    for video in range(num_videos):
        for frame, pair in enumerate(islice(pairs, frames_per_video)):
            for kind, path in zip(FOLDERS, pair, strict=True):
                copy = folder / kind / f"kea{video:05d}" / f"{frame:05d}{path.suffix}"
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
                num_bytes += copy.stat().st_size
    tars = tuple(_tar(folder, target / f"{place}.tar", range(place, num_videos, num_tars)) for place in range(num_tars))
    return MadeSource(folder, tars, num_videos, num_videos * frames_per_video, num_bytes)


def _no_frames(davis: Path) -> list[tuple[Path, Path]]:
    raise ValueError(f"{davis}: no JPEGImages/480p/<video>/<frame>.jpg with a mask")


def _tar(folder: Path, tar: Path, videos: Sequence[int]) -> Path:
    names = [f"BL30K/{kind}/kea{video:05d}" for kind in FOLDERS for video in videos]
    tar_files(folder.parent, tar, names)
    return tar


def tar_files(folder: Path, tar: Path, names: Sequence[str] = (".",)) -> None:
    """What `tar cf` does with these names below a folder, and that it is on disk."""
    subprocess.run(["tar", "-C", str(folder), "-cf", str(tar), *names], check=True)
    with tar.open("rb") as file:
        os.fsync(file.fileno())


def plain_webdataset(source: MadeSource, target: Path, codec: MaskCodec) -> None:
    """The script a person would write: files into webdataset's writer, masks through Pillow; checks nothing."""
    from webdataset import TarWriter  # noqa: PLC0415  slow to import, and used by nothing but this

    with target.open("wb") as file:
        with TarWriter(file) as writer:
            for image in sorted(source.folder.glob("JPEGImages/*/*.jpg")):
                mask = source.folder / "Annotations" / image.parent.name / f"{image.stem}.png"
                with Image.open(mask) as opened:
                    labels = np.array(opened)
                key = f"{image.parent.name}/{image.stem}"
                writer.write({"__key__": key, "jpg": image.read_bytes(), codec: _plain_mask(labels, codec)})
        file.flush()
        os.fsync(file.fileno())


def _plain_mask(labels: np.ndarray, codec: MaskCodec) -> bytes:
    if codec != "png":
        return encode_label_map(labels, codec)
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "png")
    return buffer.getvalue()


class BuildStages:
    """Each stage of a build over all frames of a source, its input made before: what is timed is the stage alone."""

    def __init__(self, source: MadeSource, scratch: Path, codec: MaskCodec) -> None:
        self._scratch = scratch
        self._codec = codec
        self._files = list(_files(source, scratch / "stage members"))
        self._images = [image.read() for image, _ in self._files]
        self._masks = [mask.read() for _, mask in self._files]
        self._labels = [png.decode_pixels(mask) for mask in self._masks]
        self._members = [
            part
            for image, labels in zip(self._images, self._labels, strict=True)
            for part in (image, encode_label_map(labels, codec))
        ]

    def read(self) -> None:
        for pair in self._files:
            for file in pair:
                file.read()

    def check_images(self) -> None:
        for image in self._images:
            read_image(image)

    def decode_masks(self) -> None:
        for mask in self._masks:
            chunks = png.read_chunks(mask)
            if png.decode_unfiltered(chunks, png.read_header(chunks)) is None:
                png.decode_pixels(mask)

    def find_objects(self) -> None:
        for labels in self._labels:
            find_objects(labels)

    def encode_masks(self) -> None:
        for mask, labels in zip(self._masks, self._labels, strict=True):
            if self._codec == "png":
                png.as_grey(png.read_chunks(mask))  # the pixel data stay as they are
            else:
                encode_label_map(labels, self._codec)

    def hash(self) -> None:
        sha256 = hashlib.sha256()
        for member in self._members:
            sha256.update(member)
            zlib.crc32(member)

    def write(self) -> None:
        target = self._scratch / "stage.tar"
        with target.open("wb") as file:
            for member in self._members:
                file.write(member)
            file.flush()
            os.fsync(file.fileno())
        target.unlink()


def open_bl30k(source: MadeSource, scratch: Path) -> Bl30k:
    """The source of a build from the tars."""
    opened = SOURCES["bl30k"](SourceRequest(source.tars, None, "480p", scratch=scratch))
    assert isinstance(opened, Bl30k)
    return opened


def _files(source: MadeSource, scratch: Path) -> Iterator[tuple[SourceFile, SourceFile]]:
    opened = open_bl30k(source, scratch)
    for size in opened.sizes():
        for frame in opened.video(size.name).frames:
            assert frame.mask is not None
            yield frame.image, frame.mask
