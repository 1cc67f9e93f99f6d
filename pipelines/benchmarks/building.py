"""What building shards costs beside `tar cf`, a plain script and its own stages; on more processes; in memory."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipelines.benchmarks.build_work import BuildStages, MadeSource, make_bl30k, plain_webdataset, tar_files
from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.masks import MaskCodec

BL30K_BYTES = 700 * 10**9
BL30K_FRAMES = 29_989 * 160
# Times the input for the second measurement of memory.
LARGER = 4
_NUM_SHARDS = 8


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU and wall-clock seconds of one piece of work over the whole source, its child processes included."""

    cpu: float
    wall: float


class Alone(NamedTuple):
    """What a build in a process of its own took, and its most resident memory (not its workers') in megabytes."""

    cpu: float
    wall: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class BuildTiming:
    """Medians of `rounds` turns over one source, page cache warm.

    costs: `build` (from tars, one process), `tar cf` and `webdataset` of the same files. stages: CPU seconds of each
    stage of a build alone. processes: LARGER times the source on so many processes, their start included.
    peak_mb: most memory of a building process for one time and LARGER times the source.
    """

    num_videos: int
    num_frames: int
    source_mb: float
    rounds: int
    costs: dict[str, Cost]
    stages: dict[str, float]
    processes: dict[int, Cost]
    peak_mb: dict[int, float]


@dataclass(frozen=True, slots=True)
class BuildMeasure:
    """What to measure. davis: DAVIS-layout folder whose frames fill the videos; processes: beside one."""

    davis: Path
    num_videos: int = 8
    frames_per_video: int = 40
    mask_codec: MaskCodec = "lz4"
    rounds: int = 3
    processes: int = 2


def time_build(measure: BuildMeasure, scratch: Path) -> BuildTiming:
    """Make a source and measure all of it in `scratch`, a folder that is made and removed again.

    Raises ValueError for a folder without frames, FileExistsError if `scratch` is there.
    """
    scratch.mkdir()
    try:
        source = make_bl30k(measure.davis, scratch / "source", measure.num_videos, measure.frames_per_video)
        costs = _take_turns(_whole_work(source, scratch, measure.mask_codec), measure.rounds)
        stages = _take_turns(_stages(source, scratch, measure.mask_codec), measure.rounds)
        peaks = {1: _run_alone(source, scratch, measure.mask_codec, 1).peak_mb}
        shutil.rmtree(scratch / "source")
        alone = _run_larger(scratch, measure)
    finally:
        shutil.rmtree(scratch)
    return BuildTiming(
        source.num_videos,
        source.num_frames,
        source.num_bytes / 1e6,
        measure.rounds,
        costs,
        {name: cost.cpu for name, cost in stages.items()},
        {processes: _median(runs) for processes, runs in alone.items()},
        peaks | {LARGER: max(run.peak_mb for run in alone[1])},
    )


def derived_hours(timing: BuildTiming, machines: int, cores: int) -> tuple[float, float]:
    """Hours for all of BL30K on so many machines of so many cores: (by bytes, by frames).

    Derived from the CPU time of `build`, as if all cores were busy with it and the disks kept up.
    """
    share = timing.costs["build"].cpu / (machines * cores) / 3600
    return share * BL30K_BYTES / (timing.source_mb * 1e6), share * BL30K_FRAMES / timing.num_frames


def _whole_work(source: MadeSource, scratch: Path, codec: MaskCodec) -> dict[str, Callable[[], None]]:
    target = scratch / "beside.tar"
    return {
        "build": lambda: _build(source.tars, scratch / "set", codec, source.num_bytes // _NUM_SHARDS, 1),
        "tar cf": lambda: tar_files(source.folder, target),
        "webdataset": lambda: plain_webdataset(source, target, codec),
    }


def _stages(source: MadeSource, scratch: Path, codec: MaskCodec) -> dict[str, Callable[[], None]]:
    stages = BuildStages(source, scratch, codec)
    return {
        "read": stages.read,
        "image check": stages.check_images,
        "mask decode": stages.decode_masks,
        "objects": stages.find_objects,
        "mask encode": stages.encode_masks,
        "hash": stages.hash,
        "write": stages.write,
    }


def _take_turns(work: dict[str, Callable[[], None]], rounds: int) -> dict[str, Cost]:
    """Medians over `rounds` rounds in turn, after one that does not count."""
    found: dict[str, list[Cost]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, function in work.items():
            cpu, wall = _cpu_seconds(), time.perf_counter()
            function()
            found[name].append(Cost(_cpu_seconds() - cpu, time.perf_counter() - wall))
    return {name: _median(costs[1:]) for name, costs in found.items()}


def _median(costs: Sequence[Cost | Alone]) -> Cost:
    return Cost(statistics.median(cost.cpu for cost in costs), statistics.median(cost.wall for cost in costs))


def _cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _build(tars: tuple[Path, ...], out: Path, codec: MaskCodec, shard_size: int, processes: int) -> None:
    request = BuildRequest("bl30k", tars, out, mask_codec=codec, shard_size=max(1, shard_size), jobs=processes)
    build(request, make_plan(request), silent)
    shutil.rmtree(out)


def _run_larger(scratch: Path, measure: BuildMeasure) -> dict[int, list[Alone]]:
    """Runs by number of processes, in turn. Shards are as large as those of the source: there are more of them."""
    videos = LARGER * measure.num_videos
    larger = make_bl30k(measure.davis, scratch / "larger", videos, measure.frames_per_video)
    runs: dict[int, list[Alone]] = {1: [], measure.processes: []}
    for _ in range(measure.rounds):
        for processes, found in runs.items():
            found.append(_run_alone(larger, scratch, measure.mask_codec, processes, LARGER * _NUM_SHARDS))
    return runs


def _run_alone(
    source: MadeSource, scratch: Path, codec: MaskCodec, processes: int, num_shards: int = _NUM_SHARDS
) -> Alone:
    """Build the source in a process that imports the build and nothing else."""
    arguments = [scratch / "alone", codec, source.num_bytes // num_shards, processes, *source.tars]
    # Not by multiprocessing, whose children import the tool they come from, and all of PyTorch with it.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", _ALONE, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise OSError(f"the build that was measured failed: {result.stderr.strip()}")
    return Alone(*map(float, result.stdout.split()))


_ALONE = """
import sys
from pathlib import Path
from pipelines.benchmarks.building import measure_alone
out, codec, shard_size, processes, *tars = sys.argv[1:]
print(*measure_alone(tuple(map(Path, tars)), Path(out), codec, int(shard_size), int(processes)))
"""


def measure_alone(tars: tuple[Path, ...], out: Path, codec: MaskCodec, shard_size: int, processes: int) -> Alone:
    """Build the tars into `out`, which goes again, in this process, which should be a fresh one."""
    cpu, wall = _cpu_seconds(), time.perf_counter()
    _build(tars, out, codec, shard_size, processes)
    wall = time.perf_counter() - wall
    # Not ru_maxrss, which begins with what the parent had.
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1e3
    return Alone(_cpu_seconds() - cpu, wall, peak)
