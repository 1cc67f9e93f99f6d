"""Curves of a run as a picture, from its journal."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.storage.paths import write_bytes
from trainers.pages import new_figure
from trainers.records.journal import read_journal

logger = logging.getLogger(__name__)

CURVES_FILE = "curves.png"
SEEN_AND_UNSEEN = tuple(f"{measure}-{group}" for measure in "JF" for group in ("seen", "unseen"))
PANELS = (
    ("loss", ("loss",), "report"),
    ("learning rate", ("learning_rate",), "report"),
    ("norm of gradients", ("gradient_norm",), "report"),
    ("loss scale (fp16)", ("loss_scale",), "report"),
    ("ms per step", ("step_ms", "data_ms"), "report"),
    ("validation", ("J&F-Mean", "J-Mean", "F-Mean", "G", *SEEN_AND_UNSEEN), "validation"),
)
"""Title, names of values and kind of record of each row."""
LABELS = {"step_ms": "whole step", "data_ms": "waiting for data"}
MOST_MARKERS = 60
"""Above which points are not marked."""


def write_curves(folder: Path) -> Path | None:
    """Plot the journal in `folder` into curves.png; None where it holds no report. A failure is a warning."""
    try:
        records = read_journal(folder)
        panels = [panel for panel in PANELS if _points(records, panel)]
        if not panels:
            return None
        figure = new_figure(9, 1.9 * len(panels) + 0.6)
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        borders = _stage_borders(records)
        for axes, (title, names, kind) in zip(rows, panels, strict=True):
            for name, points in _points(records, (title, names, kind)).items():
                marker = "." if len(points) <= MOST_MARKERS else ""
                axes.plot(*zip(*points, strict=True), marker=marker, label=LABELS.get(name, name))
            for step in list(borders)[1:]:
                axes.axvline(step, color="0.7", linewidth=0.8, zorder=0)
            axes.set_ylabel(title)
            if len(names) > 1:
                axes.legend(fontsize="small")
        for step, stage in borders.items() if len(borders) > 1 else ():
            place = rows[0].get_xaxis_transform()
            rows[0].text(step, 1.02, stage, transform=place, fontsize="small", clip_on=False)
        rows[-1].set_xlabel("step of the run")
        picture = io.BytesIO()
        figure.savefig(picture, dpi=100, bbox_inches="tight")
        path = folder / CURVES_FILE
        write_bytes(path, picture.getvalue())
    except (OSError, ValueError) as error:
        logger.warning("%s: no curves (%s)", folder, error)  # the run itself is on disk and must not fail for them
        return None
    return path


def _points(
    records: Sequence[dict[str, Any]], panel: tuple[str, Sequence[str], str]
) -> dict[str, list[tuple[int, float]]]:
    _, names, kind = panel
    found = {name: [(r["step"], r[name]) for r in records if r["kind"] == kind and name in r] for name in names}
    return {name: points for name, points in found.items() if points}


def _stage_borders(records: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Step before the first of each stage, and the stage's name."""
    reports = [record for record in records if record["kind"] == "report"]
    return {report["step"] - report["stage_step"]: report["stage"] for report in reports}
