"""What a scored object-frame costs, beside a plain transcription of the definitions on the same files."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from trainers.label_files import read_label_map
from trainers.prediction.videos import VideoSource, open_videos
from trainers.scoring.measures import BoolMask, boundary_map, boundary_radius
from trainers.scoring.protocols import PROTOCOLS, evaluate
from trainers.scoring.types import ResultFolder, find_results

REPEATS = 5


@dataclass(frozen=True, slots=True)
class ScoringTiming:
    """CPU time on one core, decoding of both label maps included; medians of REPEATS passes, both in turn.

    decoding_cpu_ms_per_object_frame: the part of either that reads the two label maps.
    """

    object_frames: int
    cpu_ms_per_object_frame: float
    reference_cpu_ms_per_object_frame: float
    decoding_cpu_ms_per_object_frame: float


def time_scoring(truth: Path, results_folder: Path) -> ScoringTiming:
    """Time DAVIS 2017 scoring of all videos of a shard set or raw folder that have results in `results_folder`.

    Raises ValueError if the plain transcription gives other scores, DataError as scoring does.
    """
    source = open_videos(truth)
    results = find_results(results_folder, source.videos)
    videos = [video for video in source.videos if (results.root / video).is_dir()]
    protocol = PROTOCOLS["davis2017"]
    ours: list[float] = []
    plain: list[float] = []
    decoding: list[float] = []
    with _one_thread():
        scores = evaluate(source, results, protocol, videos)
        numbers = {video: sum(item.video == video for item in scores) for video in videos}
        expected = np.array([(item.region.mean(), item.boundary.mean()) for item in scores])
        found = np.array(_score_plainly(source, results, numbers))
        if not np.allclose(found, expected, rtol=0, atol=1e-12):
            raise ValueError(f"the plain transcription scores {found.tolist()}, expected {expected.tolist()}")
        for _ in range(REPEATS):
            ours.append(_cpu_seconds(lambda: evaluate(source, results, protocol, videos)))
            plain.append(_cpu_seconds(lambda: _score_plainly(source, results, numbers)))
            decoding.append(_cpu_seconds(lambda: _decode(source, results, videos)))
    object_frames = sum(len(item.frames) for item in scores)
    ours_ms, plain_ms, decoding_ms = (
        1000 * statistics.median(seconds) / object_frames for seconds in (ours, plain, decoding)
    )
    return ScoringTiming(object_frames, ours_ms, plain_ms, decoding_ms)


def _score_plainly(
    source: VideoSource, results: ResultFolder, num_objects: dict[str, int]
) -> list[tuple[float, float]]:
    """Mean J and F per object from the definitions: whole frames, one object at a time, dilation by the disc."""
    means = []
    for video, number in num_objects.items():
        frames = source.annotated_names(video)[1:-1]
        curves = np.empty((number, len(frames), 2))
        for position, frame in enumerate(frames):
            truth, result = source.read_labels(video, frame), read_label_map(results.path(video, frame))
            for index in range(number):
                masks = truth == index + 1, result == index + 1
                curves[index, position] = _plain_region(*masks), _plain_boundary(*masks)
        means += [(float(curve[:, 0].mean()), float(curve[:, 1].mean())) for curve in curves]
    return means


def _plain_region(truth: BoolMask, result: BoolMask) -> float:
    union = np.sum(truth | result)
    return float(np.sum(truth & result) / union) if union else 1.0


def _plain_boundary(truth: BoolMask, result: BoolMask) -> float:
    radius = boundary_radius(*truth.shape)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = (x**2 + y**2 <= radius**2).astype(np.uint8)
    truth_map, result_map = boundary_map(truth), boundary_map(result)
    num_truth, num_result = np.sum(truth_map), np.sum(result_map)
    if not num_truth or not num_result:
        return float(num_truth == num_result)
    near_truth = cv2.dilate(truth_map.view(np.uint8), disc)
    near_result = cv2.dilate(result_map.view(np.uint8), disc)
    precision = np.sum(result_map * near_truth) / num_result
    recall = np.sum(truth_map * near_result) / num_truth
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _decode(source: VideoSource, results: ResultFolder, videos: list[str]) -> None:
    for video in videos:
        for frame in source.annotated_names(video)[1:-1]:
            source.read_labels(video, frame)
            read_label_map(results.path(video, frame))


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
