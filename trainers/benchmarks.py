"""The scoring protocols of DAVIS 2017 (semi-supervised) and DAVIS 2016: which frames, which pixels, which objects.

One frame of truth and result is in memory at a time, all its objects are scored together, and videos are independent,
so they can be spread over processes. docs/evaluation.md compares each rule with the official code.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.errors import DataError
from shards.masks import VOID
from trainers.label_files import LabelMap, read_label_map
from trainers.score_statistics import Statistics, summarise
from trainers.scoring import score_frame
from trainers.videos import VideoSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Protocol:
    """Rules of a benchmark.

    merge_objects: every id above 0, void too, is one foreground object (2016); otherwise the objects are 1 to the
    highest id of the first frame and void is background. list_folders: where below ImageSets its split lists may be.
    """

    name: str
    merge_objects: bool
    list_folders: tuple[str, ...]


PROTOCOLS = {
    "davis2017": Protocol("davis2017", merge_objects=False, list_folders=("2017",)),
    "davis2016": Protocol("davis2016", merge_objects=True, list_folders=("2016", "480p")),
}


@dataclass(frozen=True)
class ObjectScores:
    """Curves of one object of one video; region (J) and boundary (F) float64 (n,) over `frames`, the n scored ones."""

    video: str
    number: int
    frames: tuple[str, ...]
    region: NDArray[np.float64]
    boundary: NDArray[np.float64]

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


def find_results(folder: Path, videos: Sequence[str]) -> ResultFolder:
    """Where the videos' folders lie: in `folder`, or below it as Annotations/480p. Raises DataError if in neither."""
    for root in (folder, folder / "Annotations" / "480p"):
        if any((root / video).is_dir() for video in videos):
            return ResultFolder(root)
    names = sorted(path.name for path in folder.iterdir())[:5] if folder.is_dir() else []
    raise DataError(
        folder,
        expected=f"folders of results such as {videos[0] if videos else '<video>'}",
        found=(", ".join(names) or "an empty folder") if folder.is_dir() else "no such folder",
        remedy="give the folder that holds <video>/<frame>.png",
    )


def evaluate(
    source: VideoSource,
    results: ResultFolder,
    protocol: Protocol,
    videos: Sequence[str],
    *,
    jobs: int = 1,
    on_video: Callable[[str], object] = lambda video: None,
) -> list[ObjectScores]:
    """Scores of every object, in the order of `videos`, over `jobs` processes; on_video is called as each is done.

    Raises DataError for the first missing, damaged or impossible result; files are looked for before any is scored.
    """
    if jobs < 1 or not videos:
        raise ValueError(f"expected at least one job and one video, found {jobs} jobs and {len(videos)} videos")
    for video in videos:
        _require_files(source, results, video)
    scores: list[ObjectScores] = []
    for video, objects in zip(videos, _score_all(source, results, protocol, videos, jobs), strict=True):
        scores += objects
        on_video(video)
    return scores


def score_video(source: VideoSource, results: ResultFolder, protocol: Protocol, video: str) -> list[ObjectScores]:
    """Scores of one video's objects; its first and last annotated frames are left out, their results never opened."""
    names = source.annotated_names(video)
    first = source.read_labels(video, names[0])
    num_objects = 1 if protocol.merge_objects else count_objects(first, video)
    scored = names[1:-1]
    region, boundary = np.empty((num_objects, len(scored))), np.empty((num_objects, len(scored)))
    for position, frame in enumerate(scored):
        truth = source.read_labels(video, frame)
        result = read_label_map(results.path(video, frame))
        _require_size(results.path(video, frame), truth, result)
        if protocol.merge_objects:
            truth, result = _foreground(truth), _foreground(result)
        else:
            _require_ids(results.path(video, frame), result, num_objects)
        region[:, position], boundary[:, position] = score_frame(truth, result, num_objects)
    return [ObjectScores(video, index + 1, scored, region[index], boundary[index]) for index in range(num_objects)]


def count_objects(first: LabelMap, video: str) -> int:
    """Objects of a video by its first label map: the highest id below void, so that a hole in the ids is an object."""
    ids = np.flatnonzero(np.bincount(first.reshape(-1), minlength=256)[1:VOID]) + 1
    if not len(ids):
        raise DataError(
            f"first frame of {video}", expected="at least one object", found="background only", remedy="leave it out"
        )
    if len(ids) < ids[-1]:
        logger.warning(
            "%s: the first frame has ids %s; as in the official code all of 1 to %d count as objects",
            video,
            ids,
            ids[-1],
        )
    return int(ids[-1])


def global_scores(scores: Sequence[ObjectScores]) -> dict[str, float]:
    """The benchmark's figures under the official names: means over objects, not over videos or frames."""
    region = np.mean([item.region_statistics for item in scores], axis=0)
    boundary = np.mean([item.boundary_statistics for item in scores], axis=0)
    columns = {"J&F-Mean": float((region[0] + boundary[0]) / 2)}
    for measure, values in (("J", region), ("F", boundary)):
        columns |= {
            f"{measure}-{name}": float(value) for name, value in zip(("Mean", "Recall", "Decay"), values, strict=True)
        }
    return columns


def _score_all(
    source: VideoSource, results: ResultFolder, protocol: Protocol, videos: Sequence[str], jobs: int
) -> Iterator[list[ObjectScores]]:
    if jobs == 1:
        yield from (score_video(source, results, protocol, video) for video in videos)
        return
    # Spawned, not forked: the caller may hold threads (OpenCV, torch) that a forked child would wait for.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(videos)), mp_context=context, initializer=_start_worker) as pool:
        futures = [pool.submit(score_video, source, results, protocol, video) for video in videos]
        try:
            for future in futures:
                yield future.result()
        except BrokenProcessPool:
            raise OSError("a worker process was killed (out of memory?); score again with fewer --jobs") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    cv2.setNumThreads(1)  # the processes already fill the cores


def _foreground(labels: LabelMap) -> LabelMap:
    return (labels != 0).view(np.uint8)


def _require_files(source: VideoSource, results: ResultFolder, video: str) -> None:
    names = source.annotated_names(video)
    if len(names) < 3:
        raise DataError(
            f"truth of {video}",
            expected="at least 3 annotated frames, of which the first and the last are not scored",
            found=f"{len(names)}",
            remedy="score a split whose truth is public and complete",
        )
    missing = [frame for frame in names[1:-1] if not results.path(video, frame).is_file()]
    if missing:
        raise DataError(
            results.path(video, missing[0]),
            expected=f"results for the {len(names) - 2} scored frames of {video}",
            found=f"{len(missing)} missing" if results.path(video, "").parent.is_dir() else "no folder of that video",
            remedy="predict every frame of the split, or score fewer videos",
        )


def _require_size(path: Path, truth: LabelMap, result: LabelMap) -> None:
    if truth.shape != result.shape:
        height, width = truth.shape
        raise DataError(
            path,
            expected=f"{width}x{height} pixels as in the truth",
            found=f"{result.shape[1]}x{result.shape[0]}",
            remedy="resize predictions to the original size (probabilities, before the argmax)",
        )


def _require_ids(path: Path, result: LabelMap, num_objects: int) -> None:
    highest = int(result.max())
    if highest > num_objects:
        raise DataError(
            path,
            expected=f"ids 0 to {num_objects}, the objects of the first frame",
            found=f"id {highest}",
            remedy="write 0 where the result is void or unsure"
            if highest == VOID
            else "write the ids of the first frame's label map",
        )
