"""Curves of a run as a picture, from its journal."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def write_curves(folder: Path) -> Path | None:
    """Plot the journal in `folder` into curves.png; None where it holds no report. A failure is a warning."""
    try:
        records = read_journal(folder)
        panels = [panel for panel in PANELS if _points(records, panel)]
        if not panels:
            return None
        figure = new_figure(9, 1.9 * len(panels) + 0.6)
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, names, kind) in zip(rows, panels, strict=True):
            for name, points in _points(records, (title, names, kind)).items():
                axes.plot([step for step, _ in points], [value for _, value in points], marker=".", label=name)
            axes.set_ylabel(title)
            if len(names) > 1:
                axes.legend(fontsize="small")
        rows[-1].set_xlabel("step of the run")
        path = folder / CURVES_FILE
        figure.savefig(path, dpi=100, bbox_inches="tight")
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
