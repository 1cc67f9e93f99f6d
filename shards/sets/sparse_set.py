"""Shard sets of any size that take no disk: a true index over tars that are holes, whose frames read as zeros.

For measuring what planning and reading cost at full scale. Everything but the pixels is like a built set: sizes,
offsets, checksums (of zeros), objects. Nothing in it decodes, and the tars are not tars.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shards.index.derive import INDEX_FOLDER, SCHEMAS, Batches, write_index
from shards.manifest import MANIFEST, Manifest, ShardFacts
from shards.storage.paths import write_bytes
from shards.tar import BLOCK, padded

SIZE_STEPS = 32
"""Different lengths of images, so that no two neighbours have one."""


@dataclass(frozen=True, slots=True)
class SparseSet:
    """What to make; the defaults are BL30K's numbers (29,989 videos of 160 frames, 700 GB) with its mean sizes.

    image_bytes: mean; lengths go from half to one and a half times that. videos_per_shard: about 1 GB of them.
    """

    num_videos: int = 29_989
    num_frames: int = 160
    image_bytes: int = 142_000
    mask_bytes: int = 4_000
    num_objects: int = 4
    height: int = 512
    width: int = 768
    videos_per_shard: int = 45


def write_sparse_set(out: Path, facts: SparseSet, name: str = "sparse") -> Path:
    """Write the set into out/name, in seconds for millions of frames; returns its folder."""
    root = out / name
    root.mkdir(parents=True)
    counts = [facts.videos_per_shard] * (facts.num_videos // facts.videos_per_shard)
    if left := facts.num_videos % facts.videos_per_shard:
        counts.append(left)
    frames = {count: _frames(facts, count * facts.num_frames) for count in set(counts)}
    write_index(root / INDEX_FOLDER, _batches(facts, counts, frames))
    shards = []
    for number, count in enumerate(counts):
        end = _end(frames[count])
        path = root / f"{name}-{number:06d}.tar"
        with path.open("wb") as file:
            file.truncate(end)
        digest = hashlib.sha256(f"{number} {end} zeros".encode()).hexdigest()
        shards.append(ShardFacts(path.name, end, digest, count, count * facts.num_frames))
    manifest = Manifest(
        name=name,
        kind="sparse",
        resolution=None,
        splits={"train": facts.num_videos},
        mask_codec="lz4",
        shard_size=max(shard.bytes for shard in shards),
        source=hashlib.sha256(repr(facts).encode()).hexdigest(),
        shards=tuple(shards),
        num_videos=facts.num_videos,
        num_frames=facts.num_videos * facts.num_frames,
        refused=0,
        warnings=0,
    )
    write_bytes(root / MANIFEST, manifest.encode())
    return root


def _frames(facts: SparseSet, count: int) -> dict[str, NDArray[np.integer]]:
    """Columns of the frames of one shard of `count` frames."""
    steps = np.linspace(0.5, 1.5, SIZE_STEPS)
    lengths = np.maximum(1, steps * facts.image_bytes).astype(np.int64)
    order = np.arange(count) * 13 % SIZE_STEPS  # 13 and SIZE_STEPS share no factor
    images = lengths[order]
    stored = (images + BLOCK - 1) // BLOCK * BLOCK
    member = BLOCK + stored + BLOCK + padded(facts.mask_bytes)
    return {
        "offset": np.cumsum(member) - member + BLOCK,
        "image_bytes": images,
        "mask_bytes": np.full(count, facts.mask_bytes),
        "image_crc": np.array([zlib.crc32(bytes(int(length))) for length in lengths])[order],
        "mask_crc": np.full(count, zlib.crc32(bytes(facts.mask_bytes))),
        "first_object": np.arange(count) * facts.num_objects,
    }


def _end(frames: dict[str, NDArray[np.integer]]) -> int:
    last = {column: int(values[-1]) for column, values in frames.items()}
    return last["offset"] + padded(last["image_bytes"]) + BLOCK + padded(last["mask_bytes"]) + 2 * BLOCK


def _batches(
    facts: SparseSet, counts: list[int], frames: dict[int, dict[str, NDArray[np.integer]]]
) -> Iterator[Batches]:
    objects = {count: _objects(facts, count * facts.num_frames) for count in frames}
    first = 0
    for count in counts:
        columns = frames[count]
        table = _record_batch("frames", {name: pa.array(values) for name, values in columns.items()})
        yield {"videos": _videos(facts, first, count), "frames": table, "objects": objects[count]}
        first += count


def _videos(facts: SparseSet, first: int, count: int) -> pa.RecordBatch:
    names = pa.array([f"v{number:08d}" for number in range(first, first + count)])
    ids = list(range(1, facts.num_objects + 1))
    constant = {"shard": 0, "num_frames": facts.num_frames, "height": facts.height, "width": facts.width}
    constant |= {"frame_step": 1, "first_number": 0}
    columns = {name: pa.array(np.full(count, value)) for name, value in constant.items()}
    columns |= {"name": names, "original_name": names, "first_frame": pa.array(np.arange(count) * facts.num_frames)}
    columns |= {"object_ids": pa.array([ids] * count), "splits": pa.array([["train"]] * count)}
    empty = {name: pa.nulls(count) for name in SCHEMAS["videos"].names if name not in columns}
    return _record_batch("videos", columns | empty)


def _objects(facts: SparseSet, num_frames: int) -> pa.RecordBatch:
    """Every object is in every frame, a rectangle each, side by side."""
    count, wide = facts.num_objects, facts.width // facts.num_objects
    places = np.tile(np.arange(count), num_frames)
    height = facts.height // 2
    columns = {
        "object_id": places + 1,
        "area": np.full(len(places), height * wide),
        "y0": np.full(len(places), height // 2),
        "x0": places * wide,
        "y1": np.full(len(places), height // 2 + height),
        "x1": (places + 1) * wide,
    }
    return _record_batch("objects", {name: pa.array(values) for name, values in columns.items()})


def _record_batch(table: str, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    schema = SCHEMAS[table]
    return pa.record_batch([columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema)
