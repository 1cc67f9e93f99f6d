"""The benchmarks: each one's rules by name, and scoring of many videos over processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import cv2
import numpy as np

from shards.building.work import begin_reader, without_interrupts
from trainers.prediction.videos import UNSUPERVISED, VideoSource
from trainers.scoring import davis as score_davis
from trainers.scoring import youtube as score_youtube
from trainers.scoring.types import ObjectScores, ResultFolder, require_files
from trainers.scoring.youtube import Categories, youtube_vos_scores


def global_scores(scores: Sequence[ObjectScores]) -> dict[str, float]:
    """The figures of DAVIS under their official names: means over objects, not over videos or frames."""
    region = np.mean([item.region_statistics for item in scores], axis=0)
    boundary = np.mean([item.boundary_statistics for item in scores], axis=0)
    columns = {"J&F-Mean": float((region[0] + boundary[0]) / 2)}
    for measure, values in (("J", region), ("F", boundary)):
        columns |= {
            f"{measure}-{name}": float(value) for name, value in zip(("Mean", "Recall", "Decay"), values, strict=True)
        }
    return columns


Figures = Callable[[VideoSource, Sequence[ObjectScores], Categories], dict[str, float]]


def _means_over_objects(
    _source: VideoSource, scores: Sequence[ObjectScores], _categories: Categories
) -> dict[str, float]:
    return global_scores(scores)


SIGNAL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Protocol:
    """Rules of a benchmark.

    scored: frames of a video whose results must be there. score: scores of a video's objects. rules: its choices, in
    a sentence. list_folders: where below ImageSets of a raw DAVIS folder its split lists may be; annotations: its
    folder of masks. splits: what is scored if nothing is said, the first that is there. figures: what the scores of all
    objects come to, by name; measure: the name of the one that ranks methods.
    """

    name: str
    scored: Callable[[VideoSource, str], tuple[str, ...]]
    score: Callable[[VideoSource, ResultFolder, str], list[ObjectScores]]
    rules: str
    list_folders: tuple[str, ...] = ("2017",)
    annotations: str = "Annotations"
    splits: tuple[str, ...] = ("val",)
    figures: Figures = _means_over_objects
    measure: str = "J&F-Mean"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "davis2017",
            score_davis.inner_frames,
            score_davis.score_objects,
            rules="all frames but the first and the last; void is background; mean over objects",
        ),
        Protocol(
            UNSUPERVISED,
            score_davis.all_frames,
            score_davis.score_proposals,
            rules="all frames; void is left out; up to 20 proposals, assigned to the objects by the highest mean of J "
            "and F; mean over objects",
            annotations="Annotations_unsupervised",
        ),
        Protocol(
            "davis2016",
            score_davis.inner_frames,
            score_davis.score_foreground,
            rules="all frames but the first and the last; every id, void too, is the one object; mean over videos",
            list_folders=("2016", "480p"),
        ),
        Protocol(
            "youtube_vos",
            score_youtube.scored_frames,
            score_youtube.score_listed_objects,
            rules="frames listed for an object but its first, the last included; mean over the objects of seen and of "
            "unseen categories; G is the mean of the four (the server's code is not public)",
            splits=("valid_gt", "valid", "valid_all_frames"),
            figures=youtube_vos_scores,
            measure="G",
        ),
    )
}


def usual_protocol(kind: str) -> str:
    """The protocol for a kind of data set: that of its name, davis2017 for all others."""
    return kind if kind in PROTOCOLS else "davis2017"


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
        require_files(results, video, protocol.scored(source, video))
    scores: list[ObjectScores] = []
    for video, objects in zip(videos, _score_all(source, results, protocol, videos, jobs), strict=True):
        scores += objects
        on_video(video)
    return scores


def _score_all(
    source: VideoSource, results: ResultFolder, protocol: Protocol, videos: Sequence[str], jobs: int
) -> Iterator[list[ObjectScores]]:
    if jobs == 1:
        yield from (protocol.score(source, results, video) for video in videos)
        return
    # Spawned, not forked: the caller may hold threads (OpenCV, torch) that a forked child would wait for.
    context = multiprocessing.get_context("spawn")
    parent = (os.getpid(),)
    with ProcessPoolExecutor(min(jobs, len(videos)), context, initializer=_start_worker, initargs=parent) as pool:
        with without_interrupts():
            futures = [pool.submit(protocol.score, source, results, video) for video in videos]
        try:
            for future in futures:
                while wait([future], SIGNAL_SECONDS).not_done:
                    pass  # in short waits, after which a signal that another thread got is seen
                yield future.result()
        except BrokenProcessPool:
            raise OSError("a worker process was killed (out of memory?); score again with fewer --jobs") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(parent: int) -> None:
    begin_reader(parent)
    cv2.setNumThreads(1)  # the processes already fill the cores
