"""manifest.json: what a finished shard set holds. Written last; its hash is the fingerprint of the data set.

The file holds that hash itself, so a manifest that was changed is noticed by whoever reads it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.masks import ALL_CODECS, MaskCodec
from shards.storage.paths import Location, RemotePath

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
# Changes when the writer changes the bytes it makes, not with every release: it is part of the fingerprint.
CREATED_BY = "vosforge shards 2"
MANIFEST = "manifest.json"
_FINGERPRINT = "fingerprint"
SEAL = "tools/check.py --rebuild-index proves the shards and puts it in"


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
    refused / warnings: how many lines of rejected.jsonl are refusals, and how many are not. rejected_sha256: of that
    file; None in manifests written before there was this sum.
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
    rejected_sha256: str | None = None

    def encode(self) -> bytes:
        """Canonical JSON with the fingerprint: sorted keys, UTF-8, one line feed at the end."""
        return encode_json(self._fields() | {_FINGERPRINT: self.fingerprint})

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical manifest without its key `fingerprint`, 64 hexadecimal digits."""
        return _hash(self._fields())

    def _fields(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        if self.rejected_sha256 is None:
            del fields["rejected_sha256"]  # so that older sets keep their fingerprints
        return fields


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
    """Manifest of a finished set. Raises DataError if there is none, it is not one of ours, or it was changed."""
    path = root / MANIFEST
    if not path.is_file():
        raise _no_set(root)
    try:
        fields = json.loads(path.read_bytes())
        claimed = _require_version(fields).pop(_FINGERPRINT, None)
        found = _hash(fields)
        manifest = _parse(fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            path,
            expected=f"a manifest of format {FORMAT_VERSION}",
            found=f"{error}",
            remedy="copy it again from where the set was built, or build the set again",
        ) from None
    if claimed is None:
        logger.warning(
            "%s holds no fingerprint (an older version wrote it), so a change is not noticed; %s", path, SEAL
        )
    elif claimed != found:
        raise DataError(
            path,
            expected=f"contents of the fingerprint it holds, {claimed}",
            found=f"those of {found}: it was edited or damaged",
            remedy="copy it again from where the set was built, or build the set again",
        )
    return manifest


def _no_set(root: Location) -> DataError:
    found, remedy = "none", "give the folder that tools/shard.py made, or run it again to finish an interrupted build"
    sets = sorted(str(path.parent) for path in root.glob(f"*/{MANIFEST}")) if isinstance(root, Path) else []
    if sets:
        remedy = f"give the folder of a set: {', '.join(sets[:4])}{', ...' * (len(sets) > 4)}"
    elif isinstance(root, RemotePath) and not root.can_list:
        remedy = "give the URL of the folder that tools/shard.py made"
    elif root.is_file():
        found, remedy = "a file", f"give the folder of the set it belongs to, {root.parent}"
    elif not root.is_dir():
        found, remedy = "no such folder", "give the folder that tools/shard.py made"
    return DataError(root / MANIFEST, expected="the manifest of a finished shard set", found=found, remedy=remedy)


def _hash(fields: dict[str, Any]) -> str:
    return hashlib.sha256(encode_json(fields)).hexdigest()


def _require_version(fields: dict[str, Any]) -> dict[str, Any]:
    if fields["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format {fields['format_version']!r}")
    return fields


def _parse(fields: dict[str, Any]) -> Manifest:
    if fields["mask_codec"] not in ALL_CODECS:
        raise ValueError(f"mask codec {fields['mask_codec']!r}")
    shards = tuple(ShardFacts(**facts) for facts in fields.pop("shards"))
    parents = tuple(fields.pop("parents"))
    return Manifest(shards=shards, parents=parents, **fields)
