"""Check one tar: its hash, its layout, every picture in it; and all tars of a set, in processes and threads."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice

from shards.building.work import begin_reader, frame_threads, without_interrupts
from shards.images import decode_strictly
from shards.index.derive import Batches
from shards.index.scan import Sample, ShardRows, image_size, mask_objects, of_selected, samples
from shards.links import shard_locations
from shards.manifest import Manifest, ShardFacts
from shards.masks import FrameObjects, MaskCodec
from shards.storage.paths import Location

_READ_BYTES = 1 << 22
# Frames decoded at a time: enough for all threads, little enough to hold.
_CHUNK = 64
_COPY = "copy the set again from where it was built, or build it again"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. place: file, and inside a shard video and frame; remedy: what to do about it."""

    place: str
    found: str
    remedy: str


@dataclass(frozen=True, slots=True)
class CheckedShard:
    """Outcome for one tar. changed: other bytes than were built. walked: to its end. rows: None where not walked."""

    facts: ShardFacts
    problems: tuple[Problem, ...]
    changed: bool
    walked: bool
    rows: Batches | None


@dataclass(frozen=True, slots=True)
class _DecodedFrame:
    sample: Sample
    shape: tuple[int, int]
    objects: FrameObjects | None
    fault: str


def check_shards(root: Location, manifest: Manifest, jobs: int) -> Iterator[CheckedShard]:
    """Check the tars of a set, in its order."""
    processes = min(jobs, len(manifest.shards))
    check = partial(check_shard, manifest.mask_codec, jobs // processes if processes else 1)
    paths = shard_locations(root, manifest)
    if processes <= 1:
        yield from map(check, paths, manifest.shards)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=begin_reader, initargs=(os.getpid(),)) as executor:
        try:
            with without_interrupts():
                outcomes = executor.map(check, paths, manifest.shards)
            yield from outcomes
        except BrokenProcessPool:
            raise OSError("a worker process was killed (out of memory?); check again with fewer --jobs") from None
        finally:
            executor.shutdown(cancel_futures=True)


def check_shard(codec: MaskCodec, threads: int, path: Location, facts: ShardFacts) -> CheckedShard:
    """Check one tar against its facts; decodes every image and mask of its selected videos."""
    if not path.is_file():
        return CheckedShard(facts, (Problem(str(path), "missing", _COPY),), changed=False, walked=False, rows=None)
    problems: list[Problem] = []
    size, digest = hash_file(path)
    changed = (size, digest) != (facts.bytes, facts.sha256)
    if changed:
        found = f"{size} bytes, SHA-256 {digest}, the manifest says {facts.bytes} and {facts.sha256}"
        problems.append(Problem(str(path), found, _COPY))
    rows: Batches | None
    try:
        rows = _walk(path, facts.selected, codec, threads, problems)
    except ValueError as error:
        problems.append(Problem(str(path), str(error), _COPY))
        rows = None
    return CheckedShard(facts, tuple(problems), changed, rows is not None, rows)


def _walk(path: Location, selected: str | None, codec: MaskCodec, threads: int, problems: list[Problem]) -> Batches:
    """Rows of the shard; frames that do not decode go to `problems`. Raises ValueError where the layout is broken."""
    rows = ShardRows()
    shape: tuple[int, int] | None = None
    with path.open("rb") as file, frame_threads(threads) as map_frames:
        frames = of_selected(samples(file, codec), selected)
        while chunk := list(islice(frames, _CHUNK)):
            for frame in map_frames(partial(_decode, codec), chunk):
                if frame.sample.facts is not None or shape is None:
                    shape = frame.shape
                fault = frame.fault
                if frame.shape != shape:
                    fault = f"image is {frame.shape}, the first of its video {shape}; {fault}"
                if fault:
                    place = f"{path}: video {frame.sample.video}, frame {frame.sample.stem}"
                    problems.append(Problem(place, fault, _COPY))
                rows.add(frame.sample, shape, frame.objects)
    return rows.batches()


def _decode(codec: MaskCodec, sample: Sample) -> _DecodedFrame:
    """Decode both parts of a frame; what fails is told, not raised, so that all faults of a shard are found."""
    shape, objects, faults = (0, 0), None, []
    try:
        shape = image_size(sample.image)
        decode_strictly(sample.image)
    except ValueError as error:
        faults.append(str(error))
    try:
        objects = mask_objects(sample.mask, codec, shape)
    except ValueError as error:
        faults.append(str(error))
    return _DecodedFrame(sample, shape, objects, "; ".join(faults))


def hash_file(path: Location) -> tuple[int, str]:
    """(size, SHA-256 in hexadecimal) of a file."""
    sha256 = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            sha256.update(data)
            size += len(data)
    return size, sha256.hexdigest()
