"""Scores as people and programs read them: a table, the two CSV files of the official code, and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.manifest import encode_json
from shards.storage.paths import write_bytes
from trainers.scoring.protocols import Protocol
from trainers.scoring.types import ObjectScores


@dataclass(frozen=True, slots=True)
class Report:
    """Scores of a split (its name is in the file names), the benchmark's figures, and what they belong to."""

    protocol: Protocol
    split: str
    dataset: str
    results: str
    scores: Sequence[ObjectScores]
    figures: Mapping[str, float]


def write_report(folder: Path, report: Report) -> tuple[Path, ...]:
    """Write global_results-<split>.csv, per-sequence_results-<split>.csv and results-<split>.json; returns their paths.

    CSV columns and three decimals are those of the official code; JSON holds full precision and the per-frame curves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        f"global_results-{report.split}.csv": _csv(report.figures, [_decimals(report.figures.values())]),
        f"per-sequence_results-{report.split}.csv": _csv(
            ("Sequence", "J-Mean", "F-Mean"), sequence_rows(report.scores)
        ),
        f"results-{report.split}.json": encode_json(_everything(report)),
    }
    for name, data in contents.items():
        write_bytes(folder / name, data)
    return tuple(folder / name for name in contents)


def write_curves(folder: Path, split: str, scores: Sequence[ObjectScores]) -> Path:
    """Write curves-<split>.csv, a row per object and scored frame: Video, Object, Frame, J, F in full precision."""
    rows = [
        (item.video, str(item.number), frame, repr(float(region)), repr(float(boundary)))
        for item in scores
        for frame, region, boundary in zip(item.frames, item.region, item.boundary, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"curves-{split}.csv"
    write_bytes(path, _csv(("Video", "Object", "Frame", "J", "F"), rows))
    return path


def format_report(report: Report) -> str:
    """Global figures, then a row per object, as text with columns in line."""
    tables = [
        (tuple(report.figures), [_decimals(report.figures.values())]),
        (("Sequence", "J-Mean", "F-Mean"), sequence_rows(report.scores)),
    ]
    return "\n\n".join(_aligned(header, rows) for header, rows in tables)


def sequence_rows(scores: Sequence[ObjectScores]) -> list[list[str]]:
    """`<video>_<number>`, mean J and mean F of every object, three decimals."""
    return [[item.name, *_decimals((item.region_statistics.mean, item.boundary_statistics.mean))] for item in scores]


def _everything(report: Report) -> dict[str, Any]:
    objects = {
        item.name: {
            "J": item.region_statistics._asdict() | {"per_frame": item.region.tolist()},
            "F": item.boundary_statistics._asdict() | {"per_frame": item.boundary.tolist()},
            "frames": list(item.frames),
        }
        for item in report.scores
    }
    return {
        "protocol": report.protocol.name,
        "rules": report.protocol.rules,
        "split": report.split,
        "dataset": report.dataset,
        "results": report.results,
        "num_objects": len(report.scores),
        "num_object_frames": sum(len(item.frames) for item in report.scores),
        "global": dict(report.figures),
        "objects": objects,
    }


def _decimals(values: Iterable[float]) -> list[str]:
    """Three of them; counts stay whole."""
    return [str(value) if isinstance(value, int) else f"{value:.3f}" for value in values]


def _csv(header: Iterable[str], rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)
