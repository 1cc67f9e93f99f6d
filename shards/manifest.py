"""manifest.json: what a finished shard set holds. Written last; its hash is the fingerprint of the data set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shards.errors import DataError
from shards.masks import MASK_CODECS, MaskCodec

FORMAT_VERSION = 1
# Changes when the writer changes the bytes it makes, not with every release: it is part of the fingerprint.
CREATED_BY = "vosforge shards 1"
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """One tar: file name, size in bytes, SHA-256 in hexadecimal, how many videos and frames."""

    name: str
    bytes: int
    sha256: str
    videos: int
    frames: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about a finished set that its bytes depend on; no times, no paths of the machine that built it.

    resolution: folder between JPEGImages and the videos, None for layouts without. splits: how many videos each split
    has. source: SHA-256 over the input's names and sizes and the arguments of the build (`Plan.digest`).
    refused / warnings: how many lines of rejected.jsonl are refusals, and how many are not.
    """

    name: str
    kind: str
    resolution: str | None
    splits: dict[str, int]
    mask_codec: MaskCodec
    shard_size: int
    source: str
    shards: tuple[ShardFacts, ...]
    num_videos: int
    num_frames: int
    refused: int
    warnings: int
    format_version: int = FORMAT_VERSION
    created_by: str = CREATED_BY

    def encode(self) -> bytes:
        """Canonical JSON: sorted keys, UTF-8, one line feed at the end."""
        return encode_json(dataclasses.asdict(self))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical manifest, 64 hexadecimal digits."""
        return hashlib.sha256(self.encode()).hexdigest()


def encode_json(value: Any) -> bytes:
    """The one spelling of a value in JSON: sorted keys, one space of indent, UTF-8, a line feed at the end."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open `path.tmp` for writing; on success flush, fsync and rename to `path`, on failure leave `path` alone."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file so that it is either there complete or not there."""
    with replacing(path) as file:
        file.write(data)


def read_manifest(root: Path) -> Manifest:
    """Manifest of a finished set. Raises DataError if there is none or it is not one of ours."""
    path = root / MANIFEST
    if not path.is_file():
        raise DataError(
            path,
            expected="the manifest of a finished shard set",
            found="none" if root.is_dir() else "no such folder",
            remedy="give the folder that tools/shard.py made, or run it again to finish an interrupted build",
        )
    try:
        return _parse(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            path, expected=f"a manifest of format {FORMAT_VERSION}", found=f"{error}", remedy="build the set again"
        ) from None


def _parse(fields: Any) -> Manifest:
    version = fields["format_version"]
    if version != FORMAT_VERSION:
        raise ValueError(f"format {version!r}")
    if fields["mask_codec"] not in MASK_CODECS:
        raise ValueError(f"mask codec {fields['mask_codec']!r}")
    shards = tuple(ShardFacts(**facts) for facts in fields.pop("shards"))
    return Manifest(shards=shards, **fields)
