"""The rules of the DAVIS benchmarks: which frames, which pixels, which objects.

One frame of truth and result is in memory at a time, all its objects are scored together. docs/evaluation.md compares
each rule with the official code.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from shards.errors import DataError
from shards.masks import VOID
from trainers.label_files import LabelMap
from trainers.prediction.videos import VideoSource
from trainers.scoring.measures import score_frame, score_pairs
from trainers.scoring.types import ObjectScores, ResultFolder, require_ids

logger = logging.getLogger(__name__)

MAX_PROPOSALS = 20


def inner_frames(source: VideoSource, video: str) -> tuple[str, ...]:
    """All annotated frames but the first and the last, whose results are never opened. DataError if there are none."""
    return _annotated(source, video, 3, "of which the first and the last are not scored")[1:-1]


def all_frames(source: VideoSource, video: str) -> tuple[str, ...]:
    """All annotated frames. Raises DataError if there are fewer than 2: then only a start is given."""
    return _annotated(source, video, 2, "all of which are scored")


def score_objects(source: VideoSource, results: ResultFolder, video: str) -> list[ObjectScores]:
    """DAVIS 2017, semi-supervised: objects are 1 to the highest id of the first frame, void is background."""
    scored = inner_frames(source, video)
    ids = range(1, count_objects(_first_labels(source, video), video) + 1)
    region, boundary = np.empty((len(ids), len(scored))), np.empty((len(ids), len(scored)))
    for position, frame in enumerate(scored):
        truth = source.read_labels(video, frame)
        result = results.read(video, frame, truth)
        expected = f"ids 0 to {len(ids)}, the objects of the first frame"
        remedy = "write the ids of the first frame's label map"
        require_ids(results.path(video, frame), result, ids, expected, remedy)
        region[:, position], boundary[:, position] = score_frame(truth, result, ids)
    return _objects(video, scored, region, boundary)


def score_foreground(source: VideoSource, results: ResultFolder, video: str) -> list[ObjectScores]:
    """DAVIS 2016: every pixel above 0, void too, is the one object, in truth and result."""
    scored = inner_frames(source, video)
    region, boundary = np.empty((1, len(scored))), np.empty((1, len(scored)))
    for position, frame in enumerate(scored):
        truth = source.read_labels(video, frame)
        result = results.read(video, frame, truth)
        region[:, position], boundary[:, position] = score_frame(_foreground(truth), _foreground(result), (1,))
    return _objects(video, scored, region, boundary)


def score_proposals(source: VideoSource, results: ResultFolder, video: str) -> list[ObjectScores]:
    """DAVIS 2017, unsupervised: up to 20 proposals are assigned to the objects so that the mean of J and F is highest.

    All annotated frames count, void pixels of the truth are left out on both sides. Where there are fewer proposals
    than objects, empty ones are added. Scores come under the objects' ids, in their order.
    """
    scored = all_frames(source, video)
    num_objects = count_objects(_first_labels(source, video), video)
    num_proposals = max(MAX_PROPOSALS, num_objects)
    region = np.empty((num_proposals, num_objects, len(scored)))
    boundary = np.empty_like(region)
    used = num_objects
    for position, frame in enumerate(scored):
        truth = source.read_labels(video, frame)
        result = results.read(video, frame, truth)
        expected, remedy = f"ids 0 to {MAX_PROPOSALS}, the most proposals there may be", "keep the best proposals"
        require_ids(results.path(video, frame), result, range(1, MAX_PROPOSALS + 1), expected, remedy)
        used = max(used, int(result.max()))
        region[..., position], boundary[..., position] = score_pairs(
            *_without_void(truth, result), num_proposals, num_objects
        )
    chosen = assign(((region[:used] + boundary[:used]) / 2).mean(axis=2))
    objects = np.arange(num_objects)
    return _objects(video, scored, region[chosen, objects], boundary[chosen, objects])


def assign(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """For each object its proposal (K,), all different, with the highest sum of values (P, K), P >= K."""
    proposals, objects = linear_sum_assignment(values, maximize=True)
    return proposals[np.argsort(objects)]


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


def _annotated(source: VideoSource, video: str, at_least: int, why: str) -> tuple[str, ...]:
    names = source.annotated_names(video)
    if len(names) < at_least:
        raise DataError(
            f"truth of {video}",
            expected=f"at least {at_least} annotated frames, {why}",
            found=f"{len(names)}",
            remedy="score a split whose truth is public and complete",
        )
    return names


def _first_labels(source: VideoSource, video: str) -> LabelMap:
    return source.read_labels(video, source.annotated_names(video)[0])


def _without_void(truth: LabelMap, result: LabelMap) -> tuple[LabelMap, LabelMap]:
    """Both as background where the truth is void: neither J nor F then sees those pixels."""
    void = truth == VOID
    if not void.any():
        return truth, result
    return np.where(void, np.uint8(0), truth), np.where(void, np.uint8(0), result)


def _foreground(labels: LabelMap) -> LabelMap:
    return (labels != 0).view(np.uint8)


def _objects(
    video: str, frames: tuple[str, ...], region: NDArray[np.float64], boundary: NDArray[np.float64]
) -> list[ObjectScores]:
    return [
        ObjectScores(video, index + 1, frames, *curves)
        for index, curves in enumerate(zip(region, boundary, strict=True))
    ]
