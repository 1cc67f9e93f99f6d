"""Where files lie: local paths, and URLs.

A local file is a `pathlib.Path` and is read with the system's own calls. A URL (`s3://`, `gs://`, `http(s)://`, ...) is
a `RemotePath`, which answers to the part of Path's methods that this package uses; what is asked of stores and web
servers for it goes through `requests`.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from shards.errors import DataError
from shards.storage.requests import ask, fetch_ranges, file_bytes
from shards.storage.systems import system_of

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")
_LOCAL = re.compile(r"(file|local):/{2,}")
# Large enough for the 5 TB an object of 10,000 parts may have, small enough to hold one a worker in memory.
_PART_BYTES = 1 << 24
_SPECIAL = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@dataclass(frozen=True, slots=True, order=True)
class RemotePath:
    """A file or folder of an object store or web server, by its URL without trailing slash."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, child: str | PurePosixPath) -> RemotePath:
        return RemotePath("/".join([self.url, *(part for part in str(child).split("/") if part not in ("", "."))]))

    @property
    def name(self) -> str:
        """Last part."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """Name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """Ending with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """The folder it is in."""
        return RemotePath(self.url.rpartition("/")[0])

    @property
    def store(self) -> str:
        """Protocol and bucket, or server."""
        protocol, _, rest = self.url.partition("://")
        return f"{protocol}://{rest.partition('/')[0]}"

    @property
    def can_list(self) -> bool:
        """Whether the contents of folders can be asked for; those of web servers cannot."""
        return not self.url.startswith(("http://", "https://"))

    def relative_to(self, root: RemotePath) -> PurePosixPath:
        """Path below `root`. Raises ValueError if it is not below it."""
        if self.url != root.url and not self.url.startswith(root.url + "/"):
            raise ValueError(f"{self} is not below {root}")
        return PurePosixPath(self.url[len(root.url) + 1 :])

    def joinpath(self, *children: str) -> RemotePath:
        """The child of a child."""
        return self / "/".join(children)

    def is_file(self) -> bool:
        """Whether there is such a file. Raises OSError if the server is down or refuses to tell."""
        try:
            return file_bytes(self.url) >= 0
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        """Whether anything lies below it: object stores have no empty folders."""
        return ask(self.url, lambda system: bool(system.isdir(self.url)))

    def exists(self) -> bool:
        """Whether it is a file or a folder."""
        return self.is_file() or self.is_dir()

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: object stores make folders with their files."""

    def iterdir(self) -> Iterator[RemotePath]:
        """Files and folders directly below, sorted by name; nothing if there is no such folder."""
        return iter([self / entry.name for entry in _listed(self)])

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Files and folders directly below whose names match; patterns of one part only."""
        return (path for path in self.iterdir() if PurePosixPath(path.name).match(pattern))

    def read_bytes(self) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        return ask(self.url, lambda system: cast(bytes, system.cat_file(self.url)))

    def read_text(self, encoding: str) -> str:
        """The whole file as text."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> BinaryIO:
        """A seekable file that reads ahead."""
        if mode != "rb":
            raise ValueError(f"{self}: written only through replacing()")
        return ask(self.url, lambda system: cast(BinaryIO, system.open(self.url, "rb")))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file."""
        try:
            ask(self.url, lambda system: system.rm_file(self.url))
        except FileNotFoundError:
            if not missing_ok:
                raise


Location = Path | RemotePath


@dataclass(frozen=True, slots=True)
class FolderEntry:
    """A file or folder inside a folder; num_bytes 0 for folders.

    changed: when it was last changed, or what a store tells versions apart by. fault: what it is instead of a regular
    file or folder, `a FIFO`, `a broken link`; it must not be opened, which could wait for ever.
    """

    name: str
    num_bytes: int
    is_folder: bool
    changed: str = field(default="", compare=False)
    fault: str = ""


def locate(text: str | Path | RemotePath) -> Location:
    """The location a person means: URLs become RemotePath, `file://` URLs and everything else a Path."""
    if not isinstance(text, str):
        return text
    if _LOCAL.match(text):
        return Path("/" + _LOCAL.sub("", text))
    return RemotePath(text.rstrip("/")) if _URL.match(text) else Path(text)


def relative_place(root: Location, label: str) -> Location:
    """What a label relative to `root` means. It may begin with `..`, which the keys of stores do not know."""
    while isinstance(root, RemotePath) and label.startswith("../"):
        root, label = root.parent, label.removeprefix("../")
    return root / label


def list_folder(folder: Location) -> list[FolderEntry]:
    """What lies directly inside, sorted by name; [] if there is no such folder. Links count as their target."""
    if isinstance(folder, RemotePath):
        return _listed(folder)
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        found = [_local_entry(entry) for entry in entries]
    return sorted(found, key=lambda entry: entry.name)


def file_size(path: Location) -> int | None:
    """Bytes of a file, None if there is none."""
    if isinstance(path, Path):
        return path.stat().st_size if path.is_file() else None
    try:
        return file_bytes(path.url)
    except FileNotFoundError:
        return None


def read_range(path: RemotePath, start: int, num_bytes: int) -> bytes:
    """Bytes start .. start + num_bytes of a file; fewer at its end. Safe to call from several threads."""
    return read_ranges(path, [(start, num_bytes)])[0]


def read_ranges(path: RemotePath, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Several (start, number of bytes) of one file; see `requests.fetch_ranges`."""
    return fetch_ranges(path.url, ranges)


@contextmanager
def replacing(path: Location) -> Iterator[BinaryIO]:
    """A file for writing that appears under `path` when all of it is there, and not at all on failure.

    Local: `path.<random>.tmp`, flushed, fsynced, renamed; a random part because two machines may be given one shard.
    Remote: a multipart upload that is committed at the end, which object stores show whole or not.
    """
    if isinstance(path, RemotePath):
        yield from _uploading(path)
        return
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.add_note(f"while writing {path}")  # a full disk does not say which
        # Room on a full disk; a killed process leaves its file to `remove_unfinished`.
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Location, data: bytes) -> None:
    """Write a whole file so that it is either there complete or not there."""
    with replacing(path) as file:
        file.write(data)


def copy_remote_file(source: RemotePath, target: Path) -> None:
    """Copy a file so that the copy is there whole or not at all, by ranges: a lost connection costs one of them.

    Raises DataError if the file changes its size meanwhile.
    """
    size = file_bytes(source.url)
    with replacing(target) as copy:
        for start in range(0, size, _PART_BYTES):
            copy.write(read_range(source, start, min(_PART_BYTES, size - start)))
        if copy.tell() != size:
            found = f"{copy.tell()} bytes"
            remedy = "it is being replaced, or was cut short: try again when it is whole"
            raise DataError(source, expected=f"the {size} bytes it had", found=found, remedy=remedy)


def remove_unfinished(folder: Location) -> None:
    """Remove what killed writers left; only while no other writes there."""
    if isinstance(folder, Path):
        for path in folder.glob("*.tmp"):
            path.unlink(missing_ok=True)


def remove_tree(folder: Location) -> None:
    """Remove a folder and everything in it; nothing if it is not there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.is_dir():
        ask(folder.url, lambda system: system.rm(folder.url, recursive=True))


def cache_folder() -> Path:
    """Local folder for copies of what lies elsewhere: $VOSFORGE_CACHE, else vosforge in the user's cache folder."""
    given = os.environ.get("VOSFORGE_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(home) / "vosforge"


def _uploading(path: RemotePath) -> Iterator[BinaryIO]:
    system = system_of(path.url)
    file = system.open(path.url, "wb", autocommit=False, block_size=_PART_BYTES)
    try:
        yield cast(BinaryIO, file)
        # Closing flushes but, without autocommit, shows nothing; leaving `with` after an error would commit a torso.
        file.close()
    except BaseException:
        file.discard()
        file.closed = True
        raise
    file.commit()


def _local_entry(entry: os.DirEntry[str]) -> FolderEntry:
    try:
        facts = entry.stat()
    except OSError as error:
        if not entry.is_symlink():
            raise
        loops = error.errno == errno.ELOOP
        fault = "a link that leads to itself" if loops else f"a link to nothing ({Path(entry.path).readlink()})"
        return FolderEntry(entry.name, 0, is_folder=False, fault=fault)
    if stat.S_ISDIR(facts.st_mode):
        return FolderEntry(entry.name, 0, is_folder=True)
    if stat.S_ISREG(facts.st_mode):
        return FolderEntry(entry.name, facts.st_size, is_folder=False, changed=str(facts.st_mtime_ns))
    kind = _SPECIAL.get(stat.S_IFMT(facts.st_mode), "a special file")
    return FolderEntry(entry.name, 0, is_folder=False, fault=kind)


def _listed(folder: RemotePath) -> list[FolderEntry]:
    try:
        found = ask(folder.url, lambda system: system.ls(folder.url, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return []
    entries = [
        FolderEntry(
            entry["name"].rstrip("/").rpartition("/")[2],
            entry["size"] or 0,
            entry["type"] == "directory",
            str(entry.get("ETag") or entry.get("LastModified") or entry.get("mtime") or ""),
        )
        for entry in found
    ]
    # Some stores list the folder itself, as an object of no bytes.
    return sorted((entry for entry in entries if entry.name != folder.name), key=lambda entry: entry.name)
