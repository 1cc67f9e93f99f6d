"""From measured numbers to words: is data or compute the limit, which part of it, and what would change that."""

from __future__ import annotations

from dataclasses import replace

from trainers.throughput.types import Limit, Measurement, Verdict, WhatIf

LARGE_WAIT = 0.1
"""Share of a step above which waiting for data is called the limit."""
CLEAR_GAIN = 0.1
"""Share of a batch's time that taking a part away must save to be called the wall."""
MUCH_UNREST = 0.3
"""Difference of two equal runs from which on small differences between others mean nothing."""
FULL_CORE = 0.7
"""CPU time by wall time that training on a CPU has at least where nobody else takes the cores."""
MOST_THREADS = 1024


def judge(found: Measurement) -> Verdict:
    """The limit, the wall behind it, and a sentence with the figures; another one where the machine was not quiet."""
    limit = find_limit(found)
    verdict = _compute_verdict(found) if limit == "compute" else _data_verdict(found, limit)
    unrest = _describe_unrest(found)
    if not unrest:
        return verdict
    care = f"Take this with care, the machine was busy: {'; '.join(unrest)}; measure again when it is quiet"
    return replace(verdict, words=f"{verdict.words}. {care}")


def _describe_unrest(found: Measurement) -> list[str]:
    signs = []
    if found.unrest >= MUCH_UNREST:
        fast, slow = sorted(found.repeated_ms)
        signs.append(f"two equal runs of loading took {fast:.0f} and {slow:.0f} ms a batch")
    if found.at.device == "cpu" and found.cores_busy["compute"] < FULL_CORE:
        signs.append(f"training alone got {found.cores_busy['compute']:.1f} of a core")
    return signs


def _data_verdict(found: Measurement, limit: Limit) -> Verdict:
    wall, remaining = find_data_wall(found)
    waiting = f"{found.wait_share:.0%} of the step is waiting for its batch"
    if limit == "cores":
        words = (
            f"bound by the cores: alone, loading takes {found.data_ms:.0f} ms and training {found.compute_ms:.0f} ms a "
            f"step, together {found.both_ms:.0f} ms, and {waiting}; they compete for {found.at.cores} cores, of which "
            f"{wall} takes most on the side of loading"
        )
        return Verdict(limit, wall, words)
    if remaining is None:
        named = f"no part alone is the wall, {wall} is the longest"
    else:
        place = _threads(found, wall)
        named = (
            f"{wall}{place} is the wall (without it a batch takes {remaining:.0f} ms instead of {found.data_ms:.0f})"
        )
    return Verdict(limit, wall, f"data-bound: {waiting}; {named}; {_when_compute_limits(found)}")


def find_limit(found: Measurement) -> Limit:
    """What a training step waits for.

    data: its batch, which takes longer to load than to train on. cores: its batch, which would be there in time were it
    not for the training itself, on the same cores. compute: neither.
    """
    if found.wait_share < LARGE_WAIT:
        return "compute"
    return "data" if found.data_ms >= found.compute_ms else "cores"


def find_data_wall(found: Measurement) -> tuple[str, float | None]:
    """The part of the data path whose absence saves most, and data_ms without it.

    An absence cannot save more than the work that is left out; what it seems to save beyond that is another process's
    doing. None, and the part with the longest work, where no absence saves much: two parts are equally slow.
    """
    saved = {name: min(found.data_ms - ms, found.data_parts[name]) for name, ms in found.without.items()}
    wall = max(saved, key=lambda name: saved[name], default=None)
    if wall is not None and saved[wall] >= CLEAR_GAIN * found.data_ms:
        return wall, found.without[wall]
    return max(found.data_parts, key=lambda name: found.data_parts[name]), None


def modelled_data_ms(found: Measurement, threads: int) -> float:
    """data_ms with that many loading threads, by a model that is scaled to agree with the measurement as it was.

    Reads run on threads of their own, which grow in proportion, beside everything else; the frames of a batch are
    divided among the loading threads; planning and assembly are one thread's, batch after batch.
    """
    return found.data_ms * _model(found, threads) / _model(found, found.at.loading_threads)


def _model(found: Measurement, threads: int) -> float:
    serial = sum(found.data_parts[name] for name in found.serial_parts)
    frames = found.at.clips_per_step * found.at.frames_per_clip
    divided = sum(value for name, value in found.data_parts.items() if name not in (*found.serial_parts, "read")) / min(
        threads, frames
    )
    readers = found.at.reading_threads * threads / found.at.loading_threads
    return max(found.data_parts.get("read", 0.0) / readers, divided + serial, 1e-9)


def threads_for_compute(found: Measurement) -> int | None:
    """The fewest loading threads with which a batch takes no longer than the step on it; None if no number does."""
    counts = range(1, MOST_THREADS + 1)
    return next((count for count in counts if modelled_data_ms(found, count) <= found.compute_ms), None)


def what_if(found: Measurement) -> list[WhatIf]:
    """Predicted steps under changes that can be bought, mounted or configured; the first row is the present."""
    rows = [_row(found, "as it is", found.data_ms, measured=True)]
    for factor in (2, 4, 8):
        threads = factor * found.at.loading_threads
        change = f"{threads} loading threads on as many cores"
        rows.append(_row(found, change, modelled_data_ms(found, threads), measured=False))
    if "read" in found.without:
        rows.append(_row(found, "all bytes in memory", found.without["read"], measured=True))
    others = {name: ms for name, ms in found.read_plans.items() if name != found.at.reading}
    unread = found.without.get("read", found.data_ms)
    rows += [_row(found, f"read plan {name}", max(unread, ms), measured=False) for name, ms in others.items()]
    if "image decode" in found.without:
        rows.append(_row(found, "JPEGs decoded elsewhere (GPU)", found.without["image decode"], measured=True))
    rows.append(_row(found, "no augmentation", found.plain_ms, measured=True))
    rows.append(_row(found, "synthetic data: batches that lie ready", found.synthetic_ms, measured=True))
    return rows


def storage_rows(found: Measurement, nodes: tuple[int, ...] = (1, 2, 4, 8, 16, 64)) -> list[tuple[int, float, float]]:
    """(nodes like this one, MB/s they take from storage together, that by its bandwidth) at full compute speed.

    The bandwidth is that seen by one node; above 1, the storage would have to give more than that.
    """
    step_seconds = max(found.compute_ms, 1e-6) / 1000
    demand = found.bytes_per_step * found.at.world_size / step_seconds / 1e6
    return [(count, count * demand, count * demand * 1e6 / found.storage.bandwidth) for count in nodes]


def _row(found: Measurement, change: str, data_ms: float, *, measured: bool) -> WhatIf:
    step_ms = max(found.compute_ms, data_ms)
    return WhatIf(change, data_ms, step_ms, measured, "data" if data_ms > found.compute_ms else "compute")


def _compute_verdict(found: Measurement) -> Verdict:
    parts = {name: value for name, value in found.compute_parts.items() if name != "rest"}
    wall = max(parts, key=lambda name: parts[name])
    share = parts[wall] / found.compute_ms
    words = (
        f"compute-bound: {found.wait_share:.1%} of the step is waiting for its batch; {wall} takes {share:.0%} of a "
        f"step on a batch that lies ready; {_reserve(found)}"
    )
    if found.unsynchronised_ms is not None:
        exchange = 1 - found.unsynchronised_ms / found.compute_ms
        words += f"; the exchange of gradients between {found.at.world_size} ranks adds {max(0.0, exchange):.0%}"
    slowed = found.both_ms / found.compute_ms
    if found.at.device == "cpu" and slowed > 1.1:
        words += f"; loading on the same {found.at.cores} cores makes a step {slowed:.2f} times as long as alone"
    return Verdict("compute", wall, words)


def _reserve(found: Measurement) -> str:
    ratio = found.compute_ms / found.data_ms
    if ratio < 1:
        return (
            f"loading alone is no faster, {found.data_ms:.0f} ms against {found.compute_ms:.0f}, so it is near the edge"
        )
    return f"loading alone could feed {ratio:.1f} such devices"


def _threads(found: Measurement, wall: str) -> str:
    if wall in found.serial_parts:
        return " in its one thread"
    threads = found.at.reading_threads if wall == "read" else found.at.loading_threads
    return f" on {threads} thread{'s' * (threads > 1)}"


def _when_compute_limits(found: Measurement) -> str:
    threads = threads_for_compute(found)
    if threads is None:
        return f"no number of loading threads makes compute ({found.compute_ms:.0f} ms a step) the limit"
    return f"at {threads} loading threads on as many cores compute becomes the limit"
