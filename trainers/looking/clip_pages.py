"""Clips as the trainer sees them, in a page to leaf through: images and masks apart, with every number of the plan."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines.assembly import make_assembly
from pipelines.executors import make_executor
from pipelines.loader import ClipLoader
from pipelines.pictures import clip_headings, clip_rows, sheet
from pipelines.source import ClipSource
from pipelines.types import VOID, Batch, ClipPlan
from shards.palettes import voc_palette
from trainers.config import Config
from trainers.looking.clip_page_script import SCRIPT, STYLE
from trainers.looking.drawn_clips import name_clip
from trainers.looking.schedule import gap_rule, make_schedule
from trainers.pages import data_uri, make_page
from trainers.running.stages import open_sources

JPEG_QUALITY = 88


@dataclass(frozen=True)
class Look:
    """Which batches to look at: of a stage (by position) at these of its steps, the share of one rank of several."""

    stage: int = 0
    steps: tuple[int, ...] = (0,)
    rank: int = 0
    world_size: int = 1


def load_batches(config: Config, look: Look, stack: ExitStack) -> Iterator[tuple[ClipSource, Batch]]:
    """The batches as `config` makes them for training, on the CPU. Raises ValueError for steps the stage lacks."""
    source = open_sources(config, stack)[look.stage]
    name = "cpu" if config.executor == "auto" else config.executor
    executor = make_executor(name, threads=1, device=torch.device("cpu"))
    stack.callback(executor.close)
    to_batch = make_assembly(source.recipe, torch.device("cpu"))
    for step in look.steps:
        with ClipLoader(
            source,
            executor,
            to_batch,
            rank=look.rank,
            world_size=look.world_size,
            start_step=step,
            stop_step=step + 1,
            on_corrupt=config.reading.on_corrupt,
        ) as loader:
            for batch in loader:
                yield source, batch


def look_sheet(config: Config, look: Look, *, cell_height_px: int = 160) -> Image.Image:
    """A contact sheet of the batches, a row per clip."""
    rows, captions = [], []
    with ExitStack() as stack:
        for source, batch in load_batches(config, look, stack):
            more_rows, more_captions = clip_rows(batch, source.describe)
            rows += more_rows
            captions += more_captions
    return sheet(rows, captions, cell_height_px, headings=clip_headings(len(rows[0]) - 1))


def clip_page(config: Config, look: Look, title: str) -> str:
    """A self-contained HTML page of the batches, to leaf through clip by clip."""
    clips: list[dict[str, Any]] = []
    rule = gap_rule(config.stages[look.stage].clip_recipe())
    with ExitStack() as stack:
        for source, batch in load_batches(config, look, stack):
            of_step = {"curriculum": _curriculum(config, look.stage, batch.step), "gap_rule": rule}
            views = (view_clip(source, batch, position, look.rank) for position in range(len(batch.plans)))
            clips += [view | of_step for view in views]
    # No `</script>` may end the script from inside of a name.
    data = json.dumps(clips).replace("</", "<\\/")
    return make_page(title, ['<div id="browser"></div>'], style=STYLE, script=f"const CLIPS = {data};\n{SCRIPT}")


def view_clip(source: ClipSource, batch: Batch, position: int, rank: int = 0) -> dict[str, Any]:
    """One clip for the page's script: its words and numbers, its images and masks as addresses that hold them."""
    plan = batch.plans[position]
    named = name_clip(source, plan, step=batch.step, rank=rank)
    slots = torch.arange(1, batch.first_masks.shape[1] + 1)[:, None, None]
    given = ((batch.first_masks[position] > 0.5) * slots).amax(dim=0).to(torch.uint8)
    return named.as_plain() | {
        "num_objects": int(batch.num_objects[position]),
        "annotated": batch.annotated[position].tolist(),
        "images": [data_uri(_jpeg(pixels), "image/jpeg") for pixels in _pixels(batch, position)],
        "masks": [data_uri(_label_png(labels.numpy()), "image/png") for labels in batch.masks[position]],
        "given": data_uri(_label_png(given.numpy()), "image/png"),
        "plan": plan_numbers(plan),
    }


def plan_numbers(plan: ClipPlan) -> dict[str, str]:
    """The numbers of a plan as words, name by name."""
    determinants = np.abs(np.linalg.det(plan.matrices[:, :, :2].astype(np.float64)))
    centre = np.array([plan.size[1] / 2, plan.size[0] / 2, 1.0])
    looks_at = plan.matrices.astype(np.float64) @ centre  # (T, 2)
    return {
        "output size": f"{plan.size[0]} x {plan.size[1]}",
        "mirrored": "yes" if np.linalg.det(plan.matrices[0, :, :2].astype(np.float64)) < 0 else "no",
        "source pixels per output pixel, each frame": _listed(np.sqrt(determinants)),
        "centre of each frame in the source (x, y)": "; ".join(f"{x:.0f}, {y:.0f}" for x, y in looks_at),
        "turned, degrees, each frame": _listed(_angles(plan.matrices), 1),
        "colour gain (r, g, b)": _listed(plan.colours[0, :, :3].sum(axis=1)),
        "colour offset (r, g, b)": _listed(plan.colours[0, :, 3], 1),
        "first mask damaged to IoU": "not damaged" if plan.damage_iou is None else f"{plan.damage_iou:.3f}",
        "choices passed over": str(plan.trial),
        "bent by splines": f"{sum(spline is not None for spline in plan.splines)} of {len(plan.frames)} frames",
        **_published_steps(plan),
    }


def _published_steps(plan: ClipPlan) -> dict[str, str]:
    """The steps that matrices and colours were composed from, where a recipe records them."""
    if plan.steps is None:
        return {}
    found = {field.name: getattr(plan.steps, field.name) for field in fields(plan.steps)}
    # Matrices are not for reading; what they do is told above.
    shown = {name: value for name, value in found.items() if not isinstance(value, np.ndarray)}
    return {f"published step: {name.replace('_', ' ')}": _short(value) for name, value in shown.items()}


def _short(value: Any) -> str:
    """Numbers with three digits behind the point, whatever they are in."""
    if isinstance(value, tuple | list):
        return ", ".join(f"({_short(part)})" if isinstance(part, tuple | list) else _short(part) for part in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _angles(matrices: NDArray[np.float32]) -> NDArray[np.float64]:
    """Degrees by which the columns of the output run across the source; a mirrored frame counts from its own axis."""
    across = matrices[:, :, 0].astype(np.float64)
    mirrored = np.linalg.det(matrices[:, :, :2].astype(np.float64)) < 0
    across[mirrored, 0] *= -1
    return np.degrees(np.arctan2(across[:, 1], across[:, 0]))


def _listed(numbers: Sequence[float] | NDArray[Any], digits: int = 2) -> str:
    return ", ".join(f"{number:.{digits}f}" for number in numbers)


def _curriculum(config: Config, stage: int, step: int) -> dict[str, str]:
    values = make_schedule(config, None)[stage].values_at(step)
    return {name.replace("_", " "): f"{value:g}" for name, value in values.items()}


def _pixels(batch: Batch, position: int) -> NDArray[np.uint8]:
    """(T, H, W, 3) uint8: the images of a clip before they were normalised."""
    mean, deviation = (torch.tensor(values) for values in (batch.normalisation.mean, batch.normalisation.deviation))
    images = batch.images[position].permute(0, 2, 3, 1).cpu()
    return ((images * deviation + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=JPEG_QUALITY, colorspace="RGB")
    return data


def _label_png(labels: NDArray[np.uint8]) -> bytes:
    """An indexed PNG in the colours of the ids, void white, background transparent."""
    picture = Image.fromarray(labels, mode="P")
    palette = bytearray(voc_palette())
    palette[3 * VOID :] = b"\xff\xff\xff"
    picture.putpalette(bytes(palette))
    data = io.BytesIO()
    picture.save(data, format="PNG", transparency=bytes([0, *[255] * 255]))
    return data.getvalue()
