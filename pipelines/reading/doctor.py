"""What storage can give: reads of several sizes and parallelisms, the plan to read by, clips per second of recipes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import simplejpeg

from pipelines.order.sampling import MixEntry
from pipelines.reading.clip_reader import READ_PLANS, PlanName
from pipelines.reading.cost import ENOUGH_CLIPS_PER_SECOND, Demand, choose_reading
from pipelines.recipes import RECIPES, make_recipe
from pipelines.source import ClipSource
from shards.errors import DataError
from shards.reader import ShardSet
from shards.speed import (
    LARGE,
    SMALL,
    Measured,
    StorageSpeed,
    Target,
    measure_reads,
    storage_speed,
    targets_of_folder,
    targets_of_set,
)
from shards.storage.paths import Location
from shards.storage_limits import Limit, storage_limits
from shards.wording import counted

FRAME = 146_000
"""Mean bytes of a BL30K frame with its mask, where there is no set to ask."""
COLD = 0.9
"""Share of reads that were not in memory from which on a measurement is one of the storage."""
BL30K_CLIP = Demand(requests=4.6, bytes_read=740_000, bytes_used=730_000)
PARALLEL = (1, 4, 16)
STEPS, BATCH = 100_000, 8
"""Of the stage that predictions are made for."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What to look at. split: of a set. threads: requests at a time that reading would use. seconds: at most, for each
    cell of the table. pool_bytes: memory for resident videos. on_cell: called after each cell.
    """

    split: str = "train"
    threads: int = 16
    seconds: float = 0.7
    pool_bytes: int = 10**9
    on_cell: Callable[[], object] = lambda: None


@dataclass(frozen=True, slots=True)
class RecipePrediction:
    """One recipe on this storage. clips_per_second: what reading can give, by plan; decoding: what `cores` can decode.

    num_frames: of a clip. megabytes: used by a clip.
    """

    recipe: str
    num_frames: int
    megabytes: float
    plan: PlanName
    clips_per_second: dict[PlanName, float]
    decoding: float | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that was found. reads: by size and parallelism, of bytes that were not in memory as far as is known.

    again: the same places once more, which local storage then has in memory. not_predicted: recipe -> reason.
    """

    place: str
    reads: tuple[Measured, ...]
    again: Measured
    speed: StorageSpeed
    limits: tuple[Limit, ...]
    threads: int
    cores: int
    recipes: tuple[RecipePrediction, ...]
    not_predicted: dict[str, str]


def diagnose_set(shard_set: ShardSet, wanted: Examination) -> Diagnosis:
    """Measure a set's storage and predict every recipe it suits."""
    reads, again = _measure(targets_of_set(shard_set), _mean_frame(shard_set), wanted)
    decode = _decode_seconds(shard_set)
    found, reasons = [], {}
    for name in RECIPES:
        try:
            found.append(_predict(name, shard_set, speed_of(reads), decode, wanted))
        except DataError as error:
            reasons[name] = f"expected {error.expected}, found {error.found}"
        except ValueError as error:
            reasons[name] = str(error)
    return Diagnosis(
        place=str(shard_set.path),
        reads=reads,
        again=again,
        speed=speed_of(reads),
        limits=tuple(storage_limits(shard_set.path)),
        threads=wanted.threads,
        cores=len(os.sched_getaffinity(0)),
        recipes=tuple(found),
        not_predicted=reasons,
    )


def diagnose_folder(folder: Location, wanted: Examination) -> Diagnosis:
    """Measure a folder of large files; what is predicted is a clip like BL30K's."""
    reads, again = _measure(targets_of_folder(folder), FRAME, wanted)
    rate = 1 / BL30K_CLIP.seconds(speed_of(reads), wanted.threads)
    one = RecipePrediction("clips as of BL30K", 5, BL30K_CLIP.bytes_used / 1e6, "frame", {"frame": rate}, None)
    return Diagnosis(
        place=str(folder),
        reads=reads,
        again=again,
        speed=speed_of(reads),
        limits=tuple(storage_limits(folder)),
        threads=wanted.threads,
        cores=len(os.sched_getaffinity(0)),
        recipes=(one,),
        not_predicted={},
    )


def verdict(found: Diagnosis) -> list[str]:
    """What it means, in sentences."""
    speed = f"{1e3 * found.speed.latency:.2f} ms to answer a small read, {found.speed.bandwidth / 1e6:.0f} MB/s at best"
    speed += f", {1e3 * found.speed.request_cpu:.2f} ms of CPU a request"
    lines = [f"{found.place}: {speed} ({_state(found)})."]
    limits: dict[str, dict[str, float]] = {}
    for one in found.recipes:
        storage = one.clips_per_second[one.plan]
        limit, rate = "What storage can feed to one process", storage
        if one.decoding is not None:
            slower = "Decoding" if one.decoding < storage else "Storage"
            limit, rate = f"{slower} is the limit on {counted(found.cores, 'core')}", min(one.decoding, storage)
        limits.setdefault(limit, {})[one.recipe] = rate
    lines += [f"{limit}, {_span(rates.values())} clips/s: {', '.join(rates)}." for limit, rates in limits.items()]
    lines += _advised_though_slower(found.recipes)
    best = max(_of_storage(found.reads), key=lambda read: read.bandwidth)
    if best.parallel > 1:
        at_once = f"It takes {best.parallel} requests at a time to get its bandwidth"
        lines.append(f"{at_once}: let reading.threads be at least as many.")
    return lines


def _advised_though_slower(recipes: Sequence[RecipePrediction]) -> list[str]:
    """Why a plan is advised where another one is predicted to be faster; nothing where none is."""
    slower = [one for one in recipes if one.clips_per_second[one.plan] < max(one.clips_per_second.values())]
    plans = " and ".join(dict.fromkeys(one.plan for one in slower))
    if not slower:
        return []
    whose = "" if len(slower) == len(recipes) else f" for {', '.join(one.recipe for one in slower)}"
    rule = f"of {', '.join(READ_PLANS)} the first that gives {ENOUGH_CLIPS_PER_SECOND:.0f} clips/s is taken"
    return [f"By {plans} although another way is predicted to be faster{whose}: {rule}."]


def _span(rates: Collection[float]) -> str:
    low, high = f"{min(rates):.0f}", f"{max(rates):.0f}"
    return low if low == high else f"{low} to {high}"


def _state(found: Diagnosis) -> str:
    cold = [read.cold for read in found.reads if read.cold is not None]
    if not cold and "://" in found.place:
        return "over the network; the server may hold it in its memory"
    if not cold:
        return "cold or warm: of files that belong to others the kernel does not tell"
    caches = "not in this machine's memory when asked for; a disk or its host may have a cache of its own"
    if min(cold) >= COLD:
        return f"cold: {caches}"
    left_out = len(found.reads) - len(_of_storage(found.reads))
    if left_out:
        return (
            f"cold: {caches}; {left_out} of {len(cold)} measurements are left out, their bytes came from memory: the "
            "kernel kept them, or reads overlap because there is little data"
        )
    if max(cold) < 0.1:
        return "WARM: the kernel would not forget these files, so this is memory and not the disk"
    return (
        f"partly WARM: {100 * statistics.mean(cold):.0f} % of the reads were not in memory, too few to tell bandwidth"
    )


def speed_of(reads: Sequence[Measured]) -> StorageSpeed:
    """Latency by the smallest reads one at a time, bandwidth by the best cell that counts."""
    alone = min((read for read in reads if read.parallel == 1), key=lambda read: read.size)
    return storage_speed(alone, max(_of_storage(reads), key=lambda read: read.bandwidth))


def _of_storage(reads: Sequence[Measured]) -> Sequence[Measured]:
    """The cells that say something of the storage rather than of memory, if they do so of its bandwidth; else all."""
    counted = [read for read in reads if read.cold is None or read.cold >= COLD]
    return counted if any(read.size > SMALL for read in counted) else reads


def num_cells() -> int:
    """How often on_cell is called."""
    return 4 * len(PARALLEL) + 1


def _measure(targets: Sequence[Target], frame: int, wanted: Examination) -> tuple[tuple[Measured, ...], Measured]:
    found, offset = [], 0
    for size in sorted({SMALL, frame, LARGE, 8 * LARGE}):
        for parallel in PARALLEL:
            num_reads = max(4 * parallel, 24)
            found.append(
                measure_reads(targets, size, parallel, num_reads=num_reads, offset=offset, seconds=wanted.seconds)
            )
            offset += num_reads
            wanted.on_cell()
    for _ in range(2):  # the second time, the kernel has what it keeps
        again = measure_reads(targets, frame, 1, num_reads=24, seconds=wanted.seconds, forget=False)
    wanted.on_cell()
    return tuple(found), again


def _mean_frame(shard_set: ShardSet) -> int:
    """Mean bytes of image and mask over 64 frames spread over the set."""
    rows = {shard_set.num_frames * number // 64 for number in range(64)}
    return int(statistics.mean(shard_set.extent(row).num_bytes for row in rows))


def _decode_seconds(shard_set: ShardSet) -> float | None:
    """CPU time of bare JPEG decoding per frame; None where frames do not decode."""
    rows = [shard_set.num_frames * number // 8 for number in range(8)]
    images = [shard_set.read(row).image for row in rows]
    times = []
    for image in images:
        begun = time.process_time()
        try:
            simplejpeg.decode_jpeg(image)
        except ValueError:
            return None
        times.append(time.process_time() - begun)
    return statistics.median(times)


def _predict(
    name: str, shard_set: ShardSet, speed: StorageSpeed, decode: float | None, wanted: Examination
) -> RecipePrediction:
    recipe = make_recipe(name, {})
    source = ClipSource([MixEntry(shard_set, wanted.split)], recipe, seed=0, steps=STEPS, batch_size=BATCH)
    choice = choose_reading(source, speed, range(BATCH), threads=wanted.threads, pool_bytes=wanted.pool_bytes)
    frames = statistics.mean(len(set(source.plan(number).frames)) for number in range(16))
    return RecipePrediction(
        recipe=name,
        num_frames=recipe.num_frames,
        megabytes=choice.demands["frame"].bytes_used / 1e6,
        plan=choice.reading.name,
        clips_per_second=choice.clips_per_second,
        decoding=None if not decode else len(os.sched_getaffinity(0)) / (decode * frames),
    )
