"""Index files in the format of NVIDIA DALI's `wds2idx`, for its own WebDataset reader.

Source of the format: NVIDIA DALI, `tools/wds2idx.py`, version v1.2 of the index.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from shards.links import shard_locations
from shards.manifest import read_manifest
from shards.storage.paths import Location, write_bytes
from shards.tar import members


def write_stock_indexes(root: Location, folder: Path) -> list[Path]:
    """Write `<shard>.idx` for every tar of a set into `folder`; their paths in the order of the manifest.

    A header `v1.2 <samples>`, then for each sample `<extension> <offset of the data> <bytes> <member name>` a member.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in shard_locations(root, read_manifest(root)):
        lines = list(_sample_lines(path))
        index = folder / f"{path.stem}.idx"
        write_bytes(index, "\n".join([f"v1.2 {len(lines)}", *lines, ""]).encode())
        written.append(index)
    return written


def _sample_lines(path: Location) -> Iterator[str]:
    with path.open("rb") as file:
        for _, group in groupby(members(file), key=lambda member: member.name.partition(".")[0]):
            yield " ".join(
                f"{member.name.partition('.')[2]} {member.offset} {member.size} {member.name}" for member in group
            )
