"""How long a build will take: a few frames converted and timed."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

from shards.building.convert import convert_video
from shards.building.plan import BuildRequest, Plan
from shards.findings import Findings

# Videos and frames of each: enough for a figure in about a second, spread over the whole set.
NUM_VIDEOS, NUM_FRAMES = 4, 16
# Header and padding of a frame's two members, on average.
_TAR_BYTES = 1536


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a build is expected to take. num_frames: that were timed. bytes: of all shards. seconds: on `jobs` cores.

    Storage that is slower than the cores is in it as far as reading goes; writing is not.
    """

    num_frames: int
    bytes: int
    seconds: float


def estimate_build(request: BuildRequest, plan: Plan) -> Estimate | None:
    """Convert the first frames of videos across the plan and count up; None if none of them is usable.

    Writes nothing; refused input among the frames is passed over.
    """
    names = list(plan.sizes)
    chosen = sorted({names[(2 * place + 1) * len(names) // (2 * NUM_VIDEOS)] for place in range(NUM_VIDEOS)})
    read = made = frames = 0
    begun = time.perf_counter()
    for name in chosen:
        video = plan.source.video(name)
        sample = dataclasses.replace(video, frames=video.frames[:NUM_FRAMES])
        ready = convert_video(sample, request.target(plan.source), Findings("skip", plan.source.root), map)
        if ready is not None:
            size = plan.sizes[name]
            read += size.num_bytes * len(ready.frames) // size.num_frames
            made += ready.num_bytes
            frames += len(ready.frames)
    seconds = time.perf_counter() - begun
    if not read:
        return None
    total_frames = sum(size.num_frames for size in plan.sizes.values())
    total_bytes = sum(size.num_bytes for size in plan.sizes.values())
    scaled = int(total_bytes * made / read) + total_frames * _TAR_BYTES
    return Estimate(frames, scaled, seconds / frames * total_frames / request.jobs)
