"""Prove a shard set: every byte of the tars, every image and mask decoded, the index derived again and compared."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from shards.check_shard import CheckedShard, Problem, check_shards, hash_file
from shards.errors import DataError
from shards.findings import REJECTED, read_findings
from shards.index.derive import INDEX_FILES, INDEX_FOLDER, Batches, write_index
from shards.index.scan import scan_shard
from shards.links import LINK_AGAIN, LINKS_FILE, is_canonical, shard_locations
from shards.manifest import MANIFEST, SEAL, Manifest, ShardFacts, read_manifest
from shards.reader import ShardSet
from shards.storage.paths import Location, write_bytes

_REBUILD = "run tools/check.py --rebuild-index on the set"
_COPY = "copy the set again from where it was built, or build it again"


@dataclass(frozen=True, slots=True)
class CheckedSet:
    """Outcome for a set: its manifest and everything that is wrong with it; sound if there is nothing."""

    manifest: Manifest
    problems: tuple[Problem, ...]


def check_set(root: Location, jobs: int, report: Callable[[ShardFacts], None]) -> CheckedSet:
    """Check everything about a finished set on `jobs` cores; `report` is called after each shard.

    Found are: any changed byte of a tar or of the index, pictures that do not decode, masks of another size, a manifest
    whose counts do not fit. Raises DataError if there is no readable manifest.
    """
    manifest = read_manifest(root)
    problems = list(check_folder(root, manifest))
    checked: list[CheckedShard] = []
    with tempfile.TemporaryDirectory(prefix="vosforge-check-") as temporary:
        derived = Path(temporary)
        write_index(derived / INDEX_FOLDER, _rows(check_shards(root, manifest, jobs), checked, report))
        for shard in checked:
            problems += shard.problems
            if shard.changed:
                problems += _changed_frames(root, shard.facts)
        if all(shard.walked for shard in checked):
            # An index made again from changed shards would vouch for the change.
            remedy = _COPY if any(shard.changed for shard in checked) else _REBUILD
            problems += _compare_index(root, derived, remedy)
            problems += _compare_counts(manifest, derived, root)
    return CheckedSet(manifest, tuple(problems))


def rebuild_index(root: Location) -> Manifest:
    """Make the index again from the tars and the manifest alone; a manifest without fingerprint gets its own.

    Raises DataError, and leaves the index as it is, if a tar is not the one that was built: an index made from changed
    bytes would hold their checksums, and every later read would find them sound.
    """
    manifest = read_manifest(root)
    shards = list(zip(shard_locations(root, manifest), manifest.shards, strict=True))
    for path, facts in shards:
        _require_unchanged(path, facts)
    rows = (scan_shard(path, manifest.mask_codec, facts.selected) for path, facts in shards)
    write_index(root / INDEX_FOLDER, rows)
    if (root / MANIFEST).read_bytes() != manifest.encode():
        write_bytes(root / MANIFEST, manifest.encode())
    return manifest


def _require_unchanged(path: Location, facts: ShardFacts) -> None:
    size, digest = hash_file(path)
    if (size, digest) != (facts.bytes, facts.sha256):
        raise DataError(
            path,
            expected=f"the shard as it was built, {facts.bytes} bytes, SHA-256 {facts.sha256}",
            found=f"{size} bytes, SHA-256 {digest}",
            remedy=f"{_COPY}; the index was left as it is",
        )


def _rows(
    shards: Iterable[CheckedShard], checked: list[CheckedShard], report: Callable[[ShardFacts], None]
) -> Iterator[Batches]:
    """Rows of each shard that could be walked; the outcomes, without their rows, go to `checked`."""
    for shard in shards:
        if shard.rows is not None:
            yield shard.rows
        checked.append(dataclasses.replace(shard, rows=None))
        report(shard.facts)


def check_folder(root: Location, manifest: Manifest) -> Iterator[Problem]:
    """Files beside the shards: the manifest's own bytes, rejected.jsonl, tars that do not belong."""
    written = (root / MANIFEST).read_bytes()
    if b'"fingerprint"' not in written:
        yield Problem(str(root / MANIFEST), "holds no fingerprint: an older version wrote it", SEAL)
    elif written != manifest.encode():
        yield Problem(str(root / MANIFEST), "not in canonical form: somebody edited it", _COPY)
    if (root / LINKS_FILE).is_file() and not is_canonical(root):
        yield Problem(str(root / LINKS_FILE), "not in canonical form: somebody edited it", LINK_AGAIN)
    strangers = {path.name for path in root.glob("*.tar")} - {facts.name for facts in manifest.shards}
    for name in sorted(strangers):
        yield Problem(str(root / name), "a tar that the manifest does not list", "remove it")
    try:
        severities = Counter(finding.severity for finding in read_findings(root))
    except (OSError, ValueError, TypeError) as error:
        yield Problem(str(root / REJECTED), f"cannot be read: {error}", _COPY)
        return
    sha256 = hashlib.sha256((root / REJECTED).read_bytes()).hexdigest()
    if manifest.rejected_sha256 not in (None, sha256):
        yield Problem(str(root / REJECTED), f"SHA-256 {sha256}, the manifest says {manifest.rejected_sha256}", _COPY)
    found = severities["refused"], severities["repaired"] + severities["warning"]
    if found != (manifest.refused, manifest.warnings):
        wanted = (manifest.refused, manifest.warnings)
        yield Problem(str(root / REJECTED), f"{found} refusals and others, the manifest says {wanted}", _COPY)


def _changed_frames(root: Location, facts: ShardFacts) -> Iterator[Problem]:
    """Which frames of a changed shard are hit, as far as the stored index can tell."""
    try:
        shard_set = ShardSet.open(root)
    except (DataError, OSError):
        return
    position = shard_set.manifest.shards.index(facts)
    first = sum(earlier.frames for earlier in shard_set.manifest.shards[:position])
    hit = False
    for frame in range(first, first + facts.frames):
        try:
            shard_set.read(frame)
        except DataError as error:
            hit = True
            yield Problem(error.path, f"{error.found}, expected {error.expected}", _COPY)
    if not hit:
        found = (
            "every frame has the checksum the index holds: the change is in headers or padding, or older than the index"
        )
        yield Problem(str(root / facts.name), found, _COPY)


def _compare_index(root: Location, derived: Path, remedy: str) -> Iterator[Problem]:
    for name in INDEX_FILES:
        path = root / INDEX_FOLDER / name
        wanted = (derived / INDEX_FOLDER / name).read_bytes()
        found = path.read_bytes() if path.is_file() else None
        if found is None:
            yield Problem(str(path), "missing", remedy)
        elif found != wanted:
            pairs = zip(found, wanted, strict=False)
            place = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(found), len(wanted)))
            yield Problem(str(path), f"differs from what the tars give, from byte {place} on", remedy)


def _compare_counts(manifest: Manifest, derived: Path, root: Location) -> Iterator[Problem]:
    with pa.ipc.open_file(str(derived / INDEX_FOLDER / "videos.arrow")) as reader:
        videos = reader.read_all()
    splits: Counter[str] = Counter()
    for names in videos.column("splits").to_pylist():
        splits.update(names)
    shards = list(zip(*(_per_shard(videos, manifest, column) for column in (None, "num_frames")), strict=True))
    found = (videos.num_rows, sum(frames for _, frames in shards), dict(splits), shards)
    claimed = [(facts.videos, facts.frames) for facts in manifest.shards]
    wanted = (manifest.num_videos, manifest.num_frames, manifest.splits, claimed)
    for name, there, claim in zip(("videos", "frames", "splits", "shards"), found, wanted, strict=True):
        if there != claim:
            yield Problem(str(root / MANIFEST), f"{name}: {claim}, the tars hold {there}", _COPY)


def _per_shard(videos: pa.Table, manifest: Manifest, column: str | None) -> list[int]:
    """Sum of a column of the video table for each shard; None counts rows."""
    values = [1] * videos.num_rows if column is None else videos.column(column).to_pylist()
    sums = [0] * len(manifest.shards)
    for shard, value in zip(videos.column("shard").to_pylist(), values, strict=True):
        sums[shard] += value
    return sums
