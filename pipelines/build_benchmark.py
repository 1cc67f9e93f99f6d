"""What building shards costs beside `tar cf`, a plain script and its own stages; on more processes; in memory."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.build_work import BuildStages, MadeSource, make_bl30k, plain_webdataset, tar_files
from shards.build import build, silent
from shards.masks import MaskCodec
from shards.plan import BuildRequest, make_plan

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


@dataclass(frozen=True, slots=True)
class BuildTiming:
    """Medians of `rounds` turns over one source, page cache warm.

    costs: `build` (from tars, one process), `tar cf` and `webdataset` of the same files, `build on N` processes.
    stages: CPU seconds of each stage of a build alone. peak_mb: most resident memory of a building process, by how many
    times the source was given to it, 1 or LARGER; empty where it was not asked for.
    """

    num_videos: int
    num_frames: int
    source_mb: float
    rounds: int
    costs: dict[str, Cost]
    stages: dict[str, float]
    peak_mb: dict[int, float]


@dataclass(frozen=True, slots=True)
class BuildMeasure:
    """What to measure. davis: DAVIS-layout folder whose frames fill the videos; processes: besides one."""

    davis: Path
    num_videos: int = 8
    frames_per_video: int = 40
    mask_codec: MaskCodec = "lz4"
    rounds: int = 3
    processes: int = 2
    memory: bool = True


def time_build(measure: BuildMeasure, scratch: Path) -> BuildTiming:
    """Make a source and measure all of it in `scratch`, a folder that is made and removed again.

    Raises ValueError for a folder without frames, FileExistsError if `scratch` is there.
    """
    scratch.mkdir()
    try:
        source = make_bl30k(measure.davis, scratch / "source", measure.num_videos, measure.frames_per_video)
        costs = _take_turns(_whole_work(source, scratch, measure), measure.rounds)
        stages = _take_turns(_stages(source, scratch, measure.mask_codec), measure.rounds)
        peaks = _peaks(source, scratch, measure) if measure.memory else {}
    finally:
        shutil.rmtree(scratch)
    seconds = {name: cost.cpu for name, cost in stages.items()}
    size = source.num_bytes / 1e6
    return BuildTiming(source.num_videos, source.num_frames, size, measure.rounds, costs, seconds, peaks)


def derived_hours(timing: BuildTiming, machines: int, cores: int, processes: int) -> tuple[float, float]:
    """Hours for all of BL30K on so many machines of so many cores: (by bytes, by frames).

    Derived from the wall time of `build on <processes>`, as if further cores and machines added as much each.
    """
    share = timing.costs[f"build on {processes}"].wall * processes / (machines * cores) / 3600
    return share * BL30K_BYTES / (timing.source_mb * 1e6), share * BL30K_FRAMES / timing.num_frames


def _whole_work(source: MadeSource, scratch: Path, measure: BuildMeasure) -> dict[str, Callable[[], None]]:
    target = scratch / "beside.tar"

    def build_on(processes: int) -> Callable[[], None]:
        return lambda: _build(source, scratch / "set", measure.mask_codec, processes)

    return {
        "build": build_on(1),
        "tar cf": lambda: tar_files(source.folder, target),
        "webdataset": lambda: plain_webdataset(source, target, measure.mask_codec),
        f"build on {measure.processes}": build_on(measure.processes),
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
    return {
        name: Cost(
            statistics.median(cost.cpu for cost in costs[1:]), statistics.median(cost.wall for cost in costs[1:])
        )
        for name, costs in found.items()
    }


def _cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _build(source: MadeSource, out: Path, codec: MaskCodec, processes: int) -> None:
    request = BuildRequest(
        "bl30k",
        source.tars,
        out,
        mask_codec=codec,
        shard_size=max(1, source.num_bytes // _NUM_SHARDS),
        jobs=processes,
    )
    build(request, make_plan(request), silent)
    shutil.rmtree(out)


def _peaks(source: MadeSource, scratch: Path, measure: BuildMeasure) -> dict[int, float]:
    peaks = {1: _peak(source, scratch, measure.mask_codec)}
    shutil.rmtree(scratch / "source")
    larger = make_bl30k(
        measure.davis, scratch / "larger", LARGER * measure.num_videos, measure.frames_per_video, len(source.tars)
    )
    # As large shards as before: what grows is their number.
    return peaks | {LARGER: _peak(larger, scratch, measure.mask_codec, shards=LARGER)}


def _peak(source: MadeSource, scratch: Path, codec: MaskCodec, shards: int = 1) -> float:
    """Megabytes that a fresh process needs at most to build the source with one job."""
    size = source.num_bytes // (shards * _NUM_SHARDS)
    arguments = [str(scratch / "peak"), codec, str(size), *map(str, source.tars)]
    # Not by multiprocessing, whose children import the tool they come from, and all of PyTorch with it.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", _PEAK, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise OSError(f"the process whose memory was measured failed: {result.stderr.strip()}")
    return float(result.stdout)


_PEAK = """
import sys
from pathlib import Path
from pipelines.build_benchmark import measure_peak
out, codec, shard_size, *tars = sys.argv[1:]
sys.stdout.write(str(measure_peak(tuple(map(Path, tars)), Path(out), codec, int(shard_size))))
"""


def measure_peak(tars: tuple[Path, ...], out: Path, codec: MaskCodec, shard_size: int) -> float:
    """Build the tars with one job into `out`, which goes again; megabytes this process has needed at most so far."""
    request = BuildRequest("bl30k", tars, out, mask_codec=codec, shard_size=shard_size)
    build(request, make_plan(request), silent)
    shutil.rmtree(out)
    # Not ru_maxrss, which begins with what the parent had.
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1e3
