"""Sets made of finished sets without touching a pixel: views of some of their videos, unions, growth."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from shards.building.plan import shard_name
from shards.errors import DataError
from shards.findings import REJECTED, Finding, read_findings, write_findings
from shards.index.derive import INDEX_FOLDER, Batches, IndexTables, take_videos, write_index
from shards.links import LINKS_FILE, check_sizes, encode_links, shard_locations
from shards.manifest import MANIFEST, Manifest, ShardFacts, format_places, parse_places, read_manifest
from shards.masks import SOFT_CODECS
from shards.storage.paths import Location, list_folder, write_bytes

# reference: links.json says where the tars are. hardlink: second names for them, which outlive the parents' folders.
Link = Literal["reference", "hardlink"]
LINKS: tuple[Link, ...] = get_args(Link)


@dataclass(frozen=True, slots=True)
class Piece:
    """A shard of a parent as part of another set. rows: of its videos in the parent's batch; name: in the new set."""

    parent: Parent
    position: int
    rows: np.ndarray
    name: str

    @property
    def facts(self) -> ShardFacts:
        """Facts of the shard in the new set."""
        old = self.parent.manifest.shards[self.position]
        places = range(old.videos) if old.selected is None else parse_places(old.selected)
        kept = [places[row] for row in self.rows.tolist()]
        selected = old.selected if len(kept) == old.videos else format_places(kept)
        frames = int(self.parent.columns(self.position, "num_frames")[self.rows].sum())
        return ShardFacts(self.name, old.bytes, old.sha256, len(kept), frames, selected)

    def batches(self) -> Batches:
        """Its rows of the index, counted from 0."""
        return take_videos(self.parent.tables, self.position, self.rows)


class Parent:
    """A finished set others are made of."""

    def __init__(self, root: Location) -> None:
        self.root = root
        self.manifest = read_manifest(root)
        check_sizes(root, self.manifest)
        self.tables = IndexTables(root, self.manifest.fingerprint)
        self.locations = shard_locations(root, self.manifest)

    def columns(self, position: int, name: str) -> np.ndarray:
        """A column (videos,) of numbers of one shard's videos."""
        return self.tables.batch("videos", position).column(name).to_numpy()

    def texts(self, name: str) -> list[list[str]]:
        """A column of texts of all videos, a list a shard."""
        shards = range(len(self.manifest.shards))
        return [self.tables.batch("videos", position).column(name).to_pylist() for position in shards]

    def findings(self) -> list[Finding]:
        """Its findings; not those that a killed append left behind them."""
        return read_findings(self.root)[: self.manifest.refused + self.manifest.warnings]

    def whole(self, names: Iterable[str]) -> Iterator[Piece]:
        """All its shards under new names."""
        for position, name in enumerate(names):
            yield Piece(self, position, np.arange(self.manifest.shards[position].videos), name)


def write_subset(root: Location, out: Location, chosen: Sequence[str], link: Link = "reference") -> Manifest:
    """Make a view of the videos of these original names in the new folder `out`, whose name it gets.

    Its tars are the parent's, whole; index and manifest count the chosen videos only, in the parent's order.
    Raises DataError for a name that is not there and a folder in use, ValueError for no video.
    """
    parent = Parent(root)
    wanted = set(chosen)
    pieces = []
    for position, names in enumerate(parent.texts("original_name")):
        rows = np.flatnonzero([name in wanted for name in names])
        wanted.difference_update(names)
        if rows.size:
            pieces.append(Piece(parent, position, rows, parent.manifest.shards[position].name))
    if wanted:
        raise DataError(
            root, expected="the videos to choose", found=f"no video {min(wanted)!r}", remedy="see unshard's lists"
        )
    if not pieces:
        raise ValueError(f"{root}: a subset of no videos")
    kept = set(chosen)
    findings = [finding for finding in parent.findings() if not finding.video or finding.video in kept]
    manifest = dataclasses.replace(parent.manifest, name=out.name, parents=(parent.manifest.fingerprint,), source="")
    return _write(out, manifest, pieces, findings, link)


def merge_sets(roots: Sequence[Location], out: Location, link: Link = "reference") -> Manifest:
    """Make one set of several in the new folder `out`, whose name it gets; splits of one name become one.

    Raises DataError if two of them hold a video of one name or differ in mask codec, and for a folder in use.
    """
    parents = [Parent(root) for root in roots]
    _require_alike(parents)
    _require_distinct(parents)
    pieces: list[Piece] = []
    for parent in parents:
        numbers = range(len(pieces), len(pieces) + len(parent.manifest.shards))
        pieces += parent.whole(shard_name(out.name, number) for number in numbers)
    manifests = [parent.manifest for parent in parents]
    first = manifests[0]
    manifest = dataclasses.replace(
        first,
        name=out.name,
        kind=_common([each.kind for each in manifests]) or "mixed",
        resolution=_common([each.resolution for each in manifests]),
        options=first.options if all(each.options == first.options for each in manifests) else {},
        shard_size=max(each.shard_size for each in manifests),
        source="",
        parents=tuple(each.fingerprint for each in manifests),
    )
    return _write(out, manifest, pieces, [finding for parent in parents for finding in parent.findings()], link)


def append_set(root: Location, added: Location) -> Manifest:
    """Put the videos of the set `added` behind those of the set `root`, as new shards; `added` may go afterwards.

    Killed on the way, it is called again with the same folders. Raises DataError as `merge_sets`.
    """
    if not isinstance(root, Path) or not isinstance(added, Path):
        raise ValueError(f"{root}: only local sets grow; merge makes a set of several anywhere")
    old, new = Parent(root), Parent(added)
    if new.manifest.fingerprint in old.manifest.parents:
        return old.manifest
    _require_alike([old, new])
    _require_distinct([old, new])
    first = 1 + max(int(Path(facts.name).stem.rpartition("-")[2]) for facts in old.manifest.shards)
    names = [shard_name(old.manifest.name, first + place) for place in range(len(new.manifest.shards))]
    pieces = [*old.whole(facts.name for facts in old.manifest.shards), *new.whole(names)]
    _hardlink(root, dict(zip(names, new.locations, strict=True)))
    manifest = dataclasses.replace(
        old.manifest,
        kind=_common([old.manifest.kind, new.manifest.kind]) or "mixed",
        parents=(*old.manifest.parents, new.manifest.fingerprint),
    )
    return _complete(root, manifest, pieces, [*old.findings(), *new.findings()])


def choose_fraction(names: Sequence[str], fraction: float, seed: int) -> list[str]:
    """A share of the names, at least one: those whose hash with the seed is smallest, in the order given.

    So a smaller fraction is part of a larger one, and who is chosen does not depend on the order of the names.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction is above 0 and at most 1, not {fraction}")
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    chosen = set(ranked[: max(1, round(fraction * len(names)))])
    return [name for name in names if name in chosen]


def _write(
    out: Location, manifest: Manifest, pieces: Sequence[Piece], findings: Sequence[Finding], link: Link
) -> Manifest:
    """Write a new set of pieces, the manifest last."""
    allowed = {LINKS_FILE, INDEX_FOLDER, REJECTED, *(piece.name for piece in pieces if link == "hardlink")}
    strangers = [
        entry.name for entry in list_folder(out) if not entry.name.endswith(".tmp") and entry.name not in allowed
    ]
    if strangers:
        raise DataError(out, expected="a new folder", found=strangers[0], remedy="give another one, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    targets = {piece.name: piece.parent.locations[piece.position] for piece in pieces}
    if link == "hardlink":
        _hardlink(out, targets)
    else:
        write_bytes(out / LINKS_FILE, encode_links(out, targets))
    return _complete(out, manifest, pieces, findings)


def _complete(out: Location, base: Manifest, pieces: Sequence[Piece], findings: Sequence[Finding]) -> Manifest:
    """Index, rejected.jsonl and manifest over pieces whose tars are in place. base: what does not follow from them."""
    write_index(out / INDEX_FOLDER, (piece.batches() for piece in pieces))
    rejected = write_findings(out, findings)
    shards = tuple(piece.facts for piece in pieces)
    refused = sum(finding.severity == "refused" for finding in findings)
    manifest = dataclasses.replace(
        base,
        splits=_count_splits(pieces),
        shards=shards,
        num_videos=sum(facts.videos for facts in shards),
        num_frames=sum(facts.frames for facts in shards),
        refused=refused,
        warnings=len(findings) - refused,
        rejected_sha256=rejected,
    )
    write_bytes(out / MANIFEST, manifest.encode())
    return manifest


def _count_splits(pieces: Iterable[Piece]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for piece in pieces:
        splits = piece.parent.tables.batch("videos", piece.position).column("splits").take(piece.rows)
        counts.update(splits.flatten().to_pylist())
    return dict(counts)


def _hardlink(root: Location, targets: Mapping[str, Location]) -> None:
    for name, target in targets.items():
        path = root / name
        if not isinstance(path, Path) or not isinstance(target, Path):
            raise ValueError(f"{target}: hard links are for local files; leave out --link")
        if path.is_file() and path.samefile(target):
            continue
        try:
            os.link(target, path)
        except OSError as error:
            error.add_note("without --link hardlink the set refers to the tars where they are")
            raise


def _require_alike(parents: Sequence[Parent]) -> None:
    first = parents[0].manifest.mask_codec
    for parent in parents[1:]:
        codec = parent.manifest.mask_codec
        if codec != first:
            soft = (codec in SOFT_CODECS) != (first in SOFT_CODECS)
            raise DataError(
                parent.root,
                expected=f"masks stored as {first}, as in {parents[0].root}",
                found=f"{codec}: {'levels of grey and object ids are no one set' if soft else 'another codec'}",
                remedy="keep them apart; a training recipe mixes sets"
                if soft
                else "build one of them again with the other's --mask-codec",
            )


def _require_distinct(parents: Sequence[Parent]) -> None:
    taken: dict[str, Location] = {}
    for parent in parents:
        names = {name for column in ("name", "original_name") for shard in parent.texts(column) for name in shard}
        twice = sorted(names & taken.keys())
        if twice:
            raise DataError(
                parent.root,
                expected="videos of other names",
                found=f"{twice[0]!r}{and_more(len(twice) - 1)}, also in {taken[twice[0]]}",
                remedy="take a subset without them first (tools/datasets.py subset --list)",
            )
        taken |= dict.fromkeys(names, parent.root)


def and_more(count: int) -> str:
    """` (and 3 more)`; nothing for none."""
    return f" (and {count} more)" if count else ""


def _common(values: Sequence[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None
