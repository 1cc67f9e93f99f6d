"""Where files lie: local paths, and URLs through fsspec. The only module that knows fsspec.

A local file is a `pathlib.Path` and is read with the system's own calls. A URL (`s3://`, `gs://`, `http(s)://`, ...) is
a `RemotePath`, which answers to the part of Path's methods that this package uses.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from shards.errors import DataError

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")
_LOCAL = re.compile(r"(file|local):/{2,}")
# Large enough for the 5 TB an object of 10,000 parts may have, small enough to hold one a worker in memory.
_PART_BYTES = 1 << 24
ATTEMPTS = 3
"""At reading a range."""
_FIRST_PAUSE_SECONDS, _SERVER_ERROR = 0.1, 500
SILENCE_SECONDS = 30.0
"""After which a server that says nothing is asked anew."""
_CONNECTIONS = 64
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
        """Whether there is such a file."""
        return bool(_system(self.url).isfile(self.url))

    def is_dir(self) -> bool:
        """Whether anything lies below it: object stores have no empty folders."""
        return bool(_system(self.url).isdir(self.url))

    def exists(self) -> bool:
        """Whether it is a file or a folder."""
        return bool(_system(self.url).exists(self.url))

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
        return cast(bytes, _system(self.url).cat_file(self.url))

    def read_text(self, encoding: str) -> str:
        """The whole file as text."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> BinaryIO:
        """A seekable file that reads ahead."""
        if mode != "rb":
            raise ValueError(f"{self}: written only through replacing()")
        return cast(BinaryIO, _system(self.url).open(self.url, "rb"))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file."""
        try:
            _system(self.url).rm_file(self.url)
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
    if not path.is_file():
        return None
    return int(_system(path.url).size(path.url)) if isinstance(path, RemotePath) else path.stat().st_size


def read_range(path: RemotePath, start: int, num_bytes: int) -> bytes:
    """Bytes start .. start + num_bytes of a file; fewer at its end. Safe to call from several threads."""
    return read_ranges(path, [(start, num_bytes)])[0]


def read_ranges(path: RemotePath, ranges: list[tuple[int, int]]) -> list[bytes]:
    """Several (start, number of bytes) of one file, fetched at the same time, over connections that stay open.

    What may pass by itself (a lost connection, a server that is busy) is tried ATTEMPTS times. Raises OSError then, and
    DataError for a server that does not know ranges.
    """
    starts = [start for start, _ in ranges]
    ends = [start + num_bytes for start, num_bytes in ranges]
    for attempt in range(1, ATTEMPTS + 1):
        try:
            found = _system(path.url).cat_ranges([path.url] * len(ranges), starts, ends, on_error="raise")
            break
        except Exception as error:
            if attempt == ATTEMPTS or not _may_pass(error):
                raise _as_os_error(error, path) from error
            time.sleep(_FIRST_PAUSE_SECONDS * 4 ** (attempt - 1))
    for (_, num_bytes), data in zip(ranges, found, strict=True):
        if len(data) > num_bytes:
            raise DataError(
                path,
                expected=f"{num_bytes} bytes of it, as asked for",
                found=f"{len(data)} bytes",
                remedy="serve it by a server that answers range requests, such as nginx (python -m http.server cannot)",
            )
    return cast(list[bytes], found)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    status = getattr(error, "status", None)  # of an answer, in aiohttp
    return status >= _SERVER_ERROR if isinstance(status, int) else isinstance(error, OSError) or _is_of_client(error)


def _is_of_client(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in ("aiohttp", "botocore")


def _as_os_error(error: Exception, path: RemotePath) -> Exception:
    """The error as tools expect them: those of web clients are no OSError."""
    if isinstance(error, OSError) and str(error):
        error.add_note(f"while reading {path}")
        return error
    if isinstance(error, OSError) or _is_of_client(error):
        return ConnectionError(f"{path}: cannot be read: {error or type(error).__name__}")
    return error


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


def copy_file(source: Location, target: Location) -> None:
    """Copy a file so that the copy is there whole or not at all."""
    with source.open("rb") as file, replacing(target) as copy:
        shutil.copyfileobj(file, copy, _PART_BYTES)


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
        _system(folder.url).rm(folder.url, recursive=True)


def cache_folder() -> Path:
    """Local folder for copies of what lies elsewhere: $VOSFORGE_CACHE, else vosforge in the user's cache folder."""
    given = os.environ.get("VOSFORGE_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(home) / "vosforge"


def _uploading(path: RemotePath) -> Iterator[BinaryIO]:
    system = _system(path.url)
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
        found = _system(folder.url).ls(folder.url, detail=True)
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


def _system(url: str) -> Any:
    return _system_of(url.partition("://")[0], os.getpid())


@cache
def _system_of(protocol: str, process: int) -> Any:
    """File system of a protocol; of this process alone, because its connections do not survive a fork."""
    try:
        import fsspec  # noqa: PLC0415  slow, and not needed for local sets

        return fsspec.filesystem(protocol, skip_instance_cache=True, **_options(protocol))
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{protocol}://", expected="a protocol that is installed", found=str(error), remedy=_INSTALL
        ) from None


def _options(protocol: str) -> dict[str, Any]:
    """What a file system is made with: as many connections as reading has threads, and an end to silence."""
    if protocol == "memory":
        return {}
    options: dict[str, Any] = {"use_listings_cache": False}  # listings must be true: other machines write there, too
    if protocol in ("http", "https"):
        import aiohttp  # noqa: PLC0415  comes with the protocol

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
        options["client_kwargs"] = {"timeout": timeout}
    if protocol in ("s3", "s3a"):
        limits = {"connect_timeout": SILENCE_SECONDS, "read_timeout": SILENCE_SECONDS}
        options["config_kwargs"] = {"max_pool_connections": _CONNECTIONS, **limits}
    return options


_INSTALL = "pip install 'vosforge[s3]' for s3://, gcsfs for gs://, aiohttp for http(s)://"
