"""Local copies of the indexes of remote sets, which must be mapped into memory: one folder for each fingerprint.

Copies that no process opened for KEPT_DAYS go when another one is made; everything in the folder may be removed by hand
at any time, and is copied again when it is needed.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.index.files import INDEX_FOLDER
from shards.storage.paths import RemotePath, cache_folder, copy_remote_file

logger = logging.getLogger(__name__)

KEPT_DAYS = 30


@dataclass(frozen=True, slots=True)
class IndexCopy:
    """One copy. last_used: when a process opened it last, in seconds since 1970."""

    folder: Path
    num_bytes: int
    last_used: float


def index_copies() -> list[IndexCopy]:
    """All copies there are, the one that was used longest ago first."""
    folders = [folder for folder in copies_folder().glob("*") if folder.is_dir()]
    return sorted((_describe(folder) for folder in folders), key=lambda copy: copy.last_used)


def copies_folder() -> Path:
    """Where they lie; it need not exist."""
    return cache_folder() / INDEX_FOLDER


def copied_index(root: RemotePath, fingerprint: str, names: Sequence[str]) -> Path:
    """Folder with local copies of the index files of a remote set, made now where they are not there yet."""
    folder = copies_folder() / fingerprint
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unused()
        for name in missing:
            copy_remote_file(root / INDEX_FOLDER / name, folder / name)
        size = _describe(folder).num_bytes / 1e6
        logger.info("%s: its index (%.0f MB) was copied to %s; it may be removed at any time", root, size, folder)
    os.utime(folder)
    return folder


def _describe(folder: Path) -> IndexCopy:
    used = folder.stat().st_mtime
    return IndexCopy(folder, sum(path.stat().st_size for path in folder.iterdir() if path.is_file()), used)


def _remove_unused() -> None:
    """A process that has a removed copy open goes on with it: the kernel keeps what is mapped."""
    for copy in index_copies():
        if time.time() - copy.last_used > KEPT_DAYS * 86_400:
            logger.info("removed %s: an index that nobody opened for %d days", copy.folder, KEPT_DAYS)
            shutil.rmtree(copy.folder, ignore_errors=True)
