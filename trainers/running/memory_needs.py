"""What a training step of RDE needs of a CPU's memory, to say so before the machine runs out of it.

On a CPU nothing reports that memory is short: the system ends the process without a word. The figures are measured
(docs/benchmarks.md, peak memory of the step) and hold to about a fifth; other methods have none yet.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

PARAMETER_BYTES = 16
"""Weight, gradient and Adam's two moments."""
BYTES_PER_PIXEL = {"rde": 4_800, "rde_still": 3_000}
"""Objective -> what a frame of a clip keeps for the backward pass, per pixel, at width 1 in float32."""
CHECKPOINTED_SHARE = 0.65
"""Of that, with activation checkpointing: the recomputed key encoder is the peak then."""
MEMORY_INFO = Path("/proc/meminfo")
GROUP_LIMIT, GROUP_USE = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


class StepNeeds(NamedTuple):
    """A stage's name, its objective's name, (height, width) of its frames, and clips per process and pass.

    num_frames: of the longest clips.
    """

    stage: str
    objective: str
    size: tuple[int, int]
    num_clips: int
    num_frames: int
    checkpointing: bool = False


def step_bytes(needs: StepNeeds, *, width: float, num_parameters: int) -> int | None:
    """Memory in bytes that one process takes for weights and a step; None for an objective without figures."""
    per_pixel = BYTES_PER_PIXEL.get(needs.objective)
    if per_pixel is None:
        return None
    pixels = needs.num_clips * needs.num_frames * needs.size[0] * needs.size[1]
    share = CHECKPOINTED_SHARE if needs.checkpointing else 1.0
    return round(num_parameters * PARAMETER_BYTES + pixels * width * per_pixel * share)


def warn_of_memory(
    stages: Sequence[StepNeeds], *, width: float, num_parameters: int, processes: int = 1, free: int | None = None
) -> None:
    """Log a warning for each stage whose step, in all processes of this machine, needs more memory than is free."""
    free = available_bytes() if free is None else free
    for needs in stages:
        wanted = step_bytes(needs, width=width, num_parameters=num_parameters)
        if free is None or wanted is None or processes * wanted <= free:
            continue
        text = (
            "stage %s: %d clips of %dx%d at width %g need about %.3g GB of memory here and %.3g GB are free: the "
            "system may end this run in silence; give a larger accumulate, a smaller batch_size, recipe.size or "
            "model.width, activation_checkpointing=true, or use a GPU"
        )
        height, across = needs.size
        clips = processes * needs.num_clips
        logger.warning(text, needs.stage, clips, across, height, width, processes * wanted / 1e9, free / 1e9)


def available_bytes() -> int | None:
    """Memory that processes may still take on this machine, or in its control group; None where nothing says so."""
    found = [number for number in (_machine_bytes(), _group_bytes()) if number is not None]
    return min(found, default=None)


def _machine_bytes() -> int | None:
    if not MEMORY_INFO.is_file():
        return None
    values: dict[str, Any] = dict(line.split(":", 1) for line in MEMORY_INFO.read_text(encoding="ascii").splitlines())
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None


def _group_bytes() -> int | None:
    if not (GROUP_LIMIT.is_file() and GROUP_USE.is_file()):
        return None
    limit = GROUP_LIMIT.read_text(encoding="ascii").strip()
    return None if limit == "max" else max(0, int(limit) - int(GROUP_USE.read_text(encoding="ascii")))
