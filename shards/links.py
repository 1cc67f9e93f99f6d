"""Sets that hold no tars of their own: where the tars of a view or a merged set lie (`links.json`).

Kept out of the manifest, so that a set is the same set, with the same fingerprint, wherever its parents lie.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from shards.errors import DataError
from shards.manifest import Manifest, encode_json
from shards.storage.paths import Location, RemotePath, list_folder, locate

LINKS_FILE = "links.json"
LINK_AGAIN = "make the view or union again with tools/datasets.py"


def shard_locations(root: Location, manifest: Manifest) -> list[Location]:
    """Where each shard of the manifest lies: in the set's own folder unless links.json names another place."""
    linked = bool(manifest.parents) and (root / LINKS_FILE).is_file()
    links = _read_links(root) if linked else {}
    return [_resolve(root, links.get(facts.name, facts.name)) for facts in manifest.shards]


def _read_links(root: Location) -> dict[str, str]:
    try:
        return dict(json.loads((root / LINKS_FILE).read_bytes()))
    except (ValueError, TypeError) as error:
        raise DataError(
            root / LINKS_FILE,
            expected="the place of each shard, as JSON",
            found=f"something else ({error})",
            remedy=LINK_AGAIN,
        ) from None


def is_canonical(root: Location) -> bool:
    """Whether links.json, which must be there, is spelled as it was written. Raises DataError if it is damaged."""
    return (root / LINKS_FILE).read_bytes() == encode_json(_read_links(root))


def encode_links(root: Location, targets: Mapping[str, Location]) -> bytes:
    """links.json: shard name -> its place. Relative to `root` between local folders, so that a tree can be moved.

    Raises ValueError for a local shard of a remote set, which nobody else could read.
    """
    return encode_json({name: _relative(root, target) for name, target in targets.items()})


def check_sizes(root: Location, manifest: Manifest) -> None:
    """Raise DataError if a shard is missing or of another size; one listing a folder, nothing on web servers."""
    paths = shard_locations(root, manifest)
    listed = {folder: _sizes(folder) for folder in {path.parent for path in paths}}
    for path, facts in zip(paths, manifest.shards, strict=True):
        sizes = listed[path.parent]
        if sizes is not None and sizes.get(path.name) != facts.bytes:
            found = f"{sizes[path.name]} bytes" if path.name in sizes else "no file"
            moved = f"put the set it belongs to back, or correct {root / LINKS_FILE}, or {LINK_AGAIN}"
            copy = "copy it again from where the set was built, or build the set again"
            raise DataError(
                path,
                expected=f"a shard of {facts.bytes} bytes",
                found=found,
                remedy=moved if path.parent != root and path.name not in sizes else copy,
            )


def _sizes(folder: Location) -> dict[str, int] | None:
    if isinstance(folder, RemotePath) and not folder.can_list:
        return None
    return {entry.name: entry.num_bytes for entry in list_folder(folder) if not entry.is_folder}


def _resolve(root: Location, link: str) -> Location:
    target = locate(link)
    if isinstance(target, RemotePath) or target.is_absolute():
        return target
    return root / link if isinstance(root, RemotePath) else Path(os.path.normpath(root / link))


def _relative(root: Location, target: Location) -> str:
    if isinstance(target, RemotePath):
        return target.url
    if isinstance(root, RemotePath):
        raise ValueError(f"{root} cannot refer to {target}: a set in a store refers to sets in stores")
    return Path(os.path.relpath(target.resolve(), root.resolve())).as_posix()
