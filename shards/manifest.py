"""manifest.json: what a finished shard set holds. Written last; its hash is the fingerprint of the data set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shards.errors import DataError
from shards.masks import ALL_CODECS, MaskCodec
from shards.storage import Location

FORMAT_VERSION = 1
# Changes when the writer changes the bytes it makes, not with every release: it is part of the fingerprint.
CREATED_BY = "vosforge shards 1"
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """One tar: file name, size in bytes, SHA-256 in hexadecimal, how many videos and frames of it are in the set.

    selected: which of its videos are in the set, by their places in the tar (`0-3,7`); None for all.
    """

    name: str
    bytes: int
    sha256: str
    videos: int
    frames: int
    selected: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about a finished set that its bytes depend on; no times, no paths of the machine that built it.

    resolution: folder between JPEGImages and the videos, None for layouts without. splits: how many videos each split
    has. source: SHA-256 over the input's names and sizes and the arguments of the build (`Plan.digest`); "" for a set
    made of others, whose fingerprints are in parents.
    options: what was asked of the source beside the default, such as scaling (`SourceOptions.record`).
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
    parents: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    created_by: str = CREATED_BY

    def encode(self) -> bytes:
        """Canonical JSON: sorted keys, UTF-8, one line feed at the end."""
        return encode_json(dataclasses.asdict(self))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical manifest, 64 hexadecimal digits."""
        return hashlib.sha256(self.encode()).hexdigest()


def parse_places(text: str) -> tuple[int, ...]:
    """Ascending places of `0-3,7`. Raises ValueError for anything else."""
    places: list[int] = []
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        places += range(int(first), int(last or first) + 1)
    if places != sorted(set(places)):
        raise ValueError(f"places {text!r} do not ascend")
    return tuple(places)


def format_places(places: Sequence[int]) -> str:
    """Inverse of `parse_places`."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1][1:] = [place]
        else:
            runs.append([place])
    return ",".join("-".join(map(str, run)) for run in runs)


def encode_json(value: Any) -> bytes:
    """The one spelling of a value in JSON: sorted keys, one space of indent, UTF-8, a line feed at the end."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def read_manifest(root: Location) -> Manifest:
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
    if fields["mask_codec"] not in ALL_CODECS:
        raise ValueError(f"mask codec {fields['mask_codec']!r}")
    shards = tuple(ShardFacts(**facts) for facts in fields.pop("shards"))
    parents = tuple(fields.pop("parents"))
    return Manifest(shards=shards, parents=parents, **fields)
