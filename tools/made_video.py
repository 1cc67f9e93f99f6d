"""Shards of made-up video of full size, for tools that measure and are given no data."""

from __future__ import annotations

from pathlib import Path

from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.sources.moving_shapes import MovingShapes, write_moving_shapes

FULL_SIZE = MovingShapes(num_train=6, num_val=2, num_frames=20, height=480, width=854)
"""DAVIS's frame size, because costs go with pixels."""


def made_shards(scratch: Path, shapes: MovingShapes = FULL_SIZE) -> Path:
    """Write moving shapes into `scratch` and build them. Returns the folder of the shard set."""
    write_moving_shapes(scratch / "davis", shapes)
    request = BuildRequest("davis2017", (scratch / "davis",), scratch)
    build(request, make_plan(request), silent)
    return scratch / request.data_set
