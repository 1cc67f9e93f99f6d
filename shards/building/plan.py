"""Which video goes into which shard, decided from names and sizes before any byte is written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.building.convert import Target
from shards.errors import DataError
from shards.findings import Finding, OnBad
from shards.manifest import CREATED_BY, FORMAT_VERSION, MANIFEST, encode_json
from shards.masks import MaskCodec, soft_codec
from shards.naming import escape_video
from shards.sources import SOURCES
from shards.sources.options import SourceOptions
from shards.sources.types import Source, SourceRequest, VideoSize
from shards.storage.paths import Location, cache_folder

# Holds what a killed build needs to go on; gone when the set is complete.
WORK_FOLDER = "building"
# Kinds that take every folder of the source for a video or a set of images.
_EVERY_FOLDER_COUNTS = ("folder", "static")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """Arguments of a build. out: the folder that gets a folder `name`. shard_size in bytes. jobs: CPU cores to use."""

    kind: str
    sources: tuple[Location, ...]
    out: Location
    name: str | None = None
    splits: tuple[str, ...] | None = None
    resolution: str = "480p"
    mask_codec: MaskCodec = "lz4"
    shard_size: int = 10**9
    on_bad: OnBad = "stop"
    jobs: int = 1
    options: SourceOptions = field(default_factory=SourceOptions)

    @property
    def data_set(self) -> str:
        """Name of the set: of its folder and the beginning of its shards' names."""
        return self.name or self.kind

    @property
    def root(self) -> Location:
        """Folder of the set."""
        return self.out / self.data_set

    def target(self, source: Source) -> Target:
        """How videos of this source are stored."""
        codec = soft_codec(self.mask_codec) if source.soft_masks else self.mask_codec
        return Target(source.kind, codec, self.options.scaling)


@dataclass(frozen=True, slots=True)
class Plan:
    """Names of the videos of each shard, in order; a shard's number is its place. sizes: of every video, by name.

    arguments: those the bytes depend on. digest: over them and the sizes.
    """

    source: Source
    shards: tuple[tuple[str, ...], ...]
    sizes: dict[str, VideoSize]
    arguments: dict[str, Any]
    digest: str

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Findings of the source that belong to no video."""
        return self.source.findings

    def encode(self) -> bytes:
        """For other machines, which need not list the source again: `make_plan` takes it."""
        record = {"arguments": self.arguments, "digest": self.digest, "videos": list(self.sizes.values())}
        return encode_json(record | {"created_by": CREATED_BY})


def make_plan(request: BuildRequest, listed: bytes | None = None, scratch: Path | None = None) -> Plan:
    """Open the source, list it and fill shards in the order of names.

    listed: the plan of another machine (`Plan.encode`), which saves listing the source if it is of the same arguments.
    scratch: local folder for the index of the members of tars, for plans that nothing will be built from; by default it
    lies with the unfinished build, where later runs find it.
    Raises ValueError for arguments that cannot be, DataError for a source that is not of its kind.
    """
    _check(request)
    new = scratch is None and not (request.root / MANIFEST).is_file()
    source = SOURCES[request.kind](
        SourceRequest(
            request.sources,
            request.splits,
            request.resolution,
            request.options,
            scratch or members_folder(request.root),
            request.jobs,
            new,
        )
    )
    arguments = _arguments(request)
    known = None if listed is None else _listed_sizes(listed, arguments)
    sizes = {size.name: size for size in (source.sizes() if known is None else known)}
    _require_distinct(source.root, sizes)
    shards = tuple(fill_shards(sizes.values(), request.shard_size))
    digest = hashlib.sha256(encode_json(arguments | {"videos": list(sizes.values())})).hexdigest()
    return Plan(source, shards, sizes, arguments, digest)


def members_folder(root: Location) -> Path:
    """Where the members of tars are listed: in the folder of the unfinished build, or in the cache for a remote one."""
    if isinstance(root, Path):
        return root / WORK_FOLDER / "members"
    return cache_folder() / "members" / hashlib.sha256(str(root).encode()).hexdigest()[:16]


def fill_shards(sizes: Iterable[VideoSize], shard_size: int) -> Iterable[tuple[str, ...]]:
    """Groups of whole videos in the given order; a group closes before the video that would make it too large."""
    names: list[str] = []
    filled = 0
    for size in sizes:
        # Two headers and, on average, two half blocks of padding a frame.
        num_bytes = size.num_bytes + 1536 * size.num_frames
        if names and filled + num_bytes > shard_size:
            yield tuple(names)
            names, filled = [], 0
        names.append(size.name)
        filled += num_bytes
    if names:
        yield tuple(names)


def shard_name(data_set: str, number: int) -> str:
    """File name of a shard."""
    return f"{data_set}-{number:06d}.tar"


def parse_size(text: str) -> int:
    """Bytes of `1GB`, `500MB`, `1.5G` (powers of ten) or a plain number. Raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)B?", text.strip().upper())
    size = int(float(match.group(1)) * _UNITS[match.group(2)]) if match else 0
    if size < 1:
        raise ValueError(f"{text!r} is no size; write 1GB, 500MB or a number of bytes")
    return size


def _check(request: BuildRequest) -> None:
    if request.kind not in SOURCES:
        raise ValueError(f"unknown kind {request.kind!r}; there are: {', '.join(SOURCES)}")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", request.data_set):
        raise ValueError(f"name {request.data_set!r} may hold letters, digits, - and _ only, at most 64")
    if request.jobs < 1 or request.shard_size < 1:
        raise ValueError(f"jobs and shard size must be at least 1, not {request.jobs} and {request.shard_size}")
    for source in request.sources if request.kind in _EVERY_FOLDER_COUNTS else ():
        if _lies_in(request.root, source):
            raise ValueError(f"{request.root} would lie among the images of {source}; give an OUT beside them")


def _lies_in(root: Location, folder: Location) -> bool:
    if not isinstance(root, Path) or not isinstance(folder, Path):
        return False
    return root.resolve().is_relative_to(folder.resolve())


def _require_distinct(root: Location, sizes: dict[str, VideoSize]) -> None:
    taken: dict[str, str] = {}
    for name in sizes:
        other = taken.setdefault(escape_video(name), name)
        if other != name:
            raise DataError(
                root,
                expected="videos whose names in a shard differ",
                found=f"{other!r} and {name!r}",
                remedy="rename one of them",
            )


def _arguments(request: BuildRequest) -> dict[str, Any]:
    """Everything the bytes depend on beside the source; not --jobs, --on-bad or any path."""
    fields = dataclasses.asdict(request)
    used = {name: fields[name] for name in ("kind", "resolution", "mask_codec", "shard_size")}
    return used | {
        "format": FORMAT_VERSION,
        "name": request.data_set,
        "splits": request.splits and sorted(set(request.splits)),
        "lists": sorted(path.stem for path in request.options.lists),
        "options": request.options.record(),
    }


def _listed_sizes(listed: bytes, arguments: dict[str, Any]) -> list[VideoSize] | None:
    """Sizes of an encoded plan; None if it is of other arguments."""
    plan = json.loads(listed)
    if plan["arguments"] != arguments:
        return None
    return [VideoSize(name, tuple(splits), *numbers) for name, splits, *numbers in plan["videos"]]
