"""What scoring goes by and what comes out: folders of results, curves of objects, checks all protocols share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import DataError
from shards.masks import VOID
from trainers.label_files import LabelMap, read_label_map
from trainers.scoring.statistics import Statistics, summarise


@dataclass(frozen=True)
class ObjectScores:
    """Curves of one object of one video; region (J) and boundary (F) float64 (n,) over `frames`, the n scored ones."""

    video: str
    number: int
    frames: tuple[str, ...]
    region: NDArray[np.float64]
    boundary: NDArray[np.float64]

    @property
    def name(self) -> str:
        """`<video>_<number>`, the official name of an object."""
        return f"{self.video}_{self.number}"

    @cached_property
    def region_statistics(self) -> Statistics:
        """Mean, recall and decay of J."""
        return summarise(self.region)

    @cached_property
    def boundary_statistics(self) -> Statistics:
        """Mean, recall and decay of F."""
        return summarise(self.boundary)


@dataclass(frozen=True, slots=True)
class ResultFolder:
    """Predictions `<video>/<frame>.png` below `root`."""

    root: Path

    def path(self, video: str, frame: str) -> Path:
        """File of one frame."""
        return self.root / video / f"{frame}.png"

    def read(self, video: str, frame: str, truth: LabelMap) -> LabelMap:
        """Label map of one frame. Raises DataError if it is missing, damaged or not of the truth's size."""
        path = self.path(video, frame)
        result = read_label_map(path)
        if truth.shape != result.shape:
            height, width = truth.shape
            raise DataError(
                path,
                expected=f"{width}x{height} pixels as in the truth",
                found=f"{result.shape[1]}x{result.shape[0]}",
                remedy="resize predictions to the original size (probabilities, before the argmax)",
            )
        return result


def find_results(folder: Path, videos: Sequence[str]) -> ResultFolder:
    """Where the videos' folders lie: in `folder`, or below it as Annotations or Annotations/480p.

    Raises DataError if in none of them.
    """
    for root in (folder, folder / "Annotations", folder / "Annotations" / "480p"):
        if any((root / video).is_dir() for video in videos):
            return ResultFolder(root)
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir())[:5] if folder.is_dir() else None
    raise DataError(
        folder,
        expected=f"folders of results such as {videos[0] if videos else '<video>'}",
        found="no such folder" if folders is None else f"folders {', '.join(folders)}" if folders else "no folders",
        remedy="give the folder that holds <video>/<frame>.png",
    )


def require_files(results: ResultFolder, video: str, scored: Sequence[str]) -> None:
    """Raise DataError if a scored frame has no file."""
    missing = [frame for frame in scored if not results.path(video, frame).is_file()]
    if missing:
        raise DataError(
            results.path(video, missing[0]),
            expected=f"results for the {len(scored)} scored frames of {video}",
            found=f"{len(missing)} missing" if results.path(video, "").parent.is_dir() else "no folder of that video",
            remedy="predict every frame of the split, or score fewer videos",
        )


def require_ids(path: Path, result: LabelMap, allowed: Collection[int], description: str, remedy: str) -> None:
    """Raise DataError for the highest id of a result that is neither background nor allowed."""
    found = np.flatnonzero(np.bincount(result.reshape(-1), minlength=256)).tolist()
    stray = [object_id for object_id in found if object_id and object_id not in allowed]
    if stray:
        raise DataError(
            path,
            expected=description,
            found=f"id {stray[-1]}",
            remedy="write 0 where the result is void or unsure" if stray[-1] == VOID else remedy,
        )
