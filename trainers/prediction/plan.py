"""What each benchmark asks of a segmentation run: which objects from where, which frames, which sizes, which files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shards.errors import DataError
from shards.naming import frame_number
from shards.wording import counted
from trainers.label_files import LabelMap
from trainers.prediction.following import Script, object_ids
from trainers.prediction.videos import VideoSource, first_appearances

logger = logging.getLogger(__name__)

PngForm = Literal["palette", "grey"]
Memorised = Callable[[int, Collection[int]], frozenset[int]]


@dataclass(frozen=True, slots=True)
class SegmentationProtocol:
    """How a benchmark is segmented; mem_every and top_k are RDE's published settings for it.

    merge_objects: every id above 0, void too, is one object, before the model sees it. late_objects: objects may begin
    at any frame, and only the frames the data set lists are wanted; otherwise all are in the first frame and every
    frame is wanted. shorter_side: pixels the model sees, None for all. folder: of the videos, below OUT. png: `grey`
    writes the merged object as 255. splits: what is segmented if nothing is said, the first that is there.
    list_folders: where below ImageSets split lists may be.
    """

    name: str
    merge_objects: bool = False
    late_objects: bool = False
    shorter_side: int | None = None
    mem_every: int = 3
    top_k: int = 40
    folder: str = "."
    png: PngForm = "palette"
    splits: tuple[str, ...] = ("val",)
    list_folders: tuple[str, ...] = ("2017",)


SEGMENTATION_PROTOCOLS = {
    "davis2017": SegmentationProtocol("davis2017"),
    "davis2016": SegmentationProtocol("davis2016", merge_objects=True, png="grey", list_folders=("2016", "480p")),
    "youtube_vos": SegmentationProtocol(
        "youtube_vos",
        late_objects=True,
        shorter_side=480,
        mem_every=4,
        top_k=20,
        folder="Annotations",
        splits=("valid_all_frames", "valid"),
    ),
}


def usual_protocol(kind: str) -> str:
    """The protocol for a kind of data set: that of its name, davis2017 for all others."""
    return kind if kind in SEGMENTATION_PROTOCOLS else "davis2017"


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """One video to segment: names of all its frames, what is asked of them, and how its given label maps are read.

    submitted: numbers of the frames that the benchmark scores, or might: what goes into a submission.
    """

    video: str
    names: tuple[str, ...]
    script: Script
    submitted: tuple[int, ...]
    merge_objects: bool

    def read_labels(self, source: VideoSource, frame: int) -> LabelMap:
        """Given label map (H, W) uint8 of a frame; with merged objects 0 and 1."""
        labels = source.read_labels(self.video, self.names[frame])
        return (labels != 0).astype(np.uint8) if self.merge_objects else labels


def plan_video(
    source: VideoSource,
    video: str,
    protocol: SegmentationProtocol,
    memorised: Memorised,
    *,
    all_frames: bool = False,
) -> VideoPlan:
    """What is asked of one video.

    memorised: number of frames and those in which objects begin -> frames the model must see even if nobody asks for
    their masks (`RdeOptions.memorised`). all_frames: want every frame.
    Raises DataError for a video that has no frames, no given masks, or masks without image.
    """
    names = source.frame_names(video)
    numbers = {name: number for number, name in enumerate(names)}
    _require_images(source, video, numbers)
    begins = _late_objects(source, video, numbers) if protocol.late_objects else _first_objects(source, video, protocol)
    listed = _listed(source, video, numbers) if protocol.late_objects else ()
    submitted = listed or tuple(range(len(names)))
    written = tuple(range(len(names))) if all_frames else submitted
    first, last = min(begins), max(written[-1], min(begins))
    needed = {*written, *begins, *memorised(len(names), begins.keys())}
    shown = tuple(number for number in sorted(needed) if first <= number <= last)
    return VideoPlan(video, names, Script(begins, shown, written), submitted, protocol.merge_objects)


def _first_objects(source: VideoSource, video: str, protocol: SegmentationProtocol) -> dict[int, tuple[int, ...]]:
    """All objects of the first frame."""
    names, annotated = source.frame_names(video), source.annotated_names(video)
    remedy = "complete the video, or name the videos to segment"
    if not names or names[0] not in annotated:
        raise DataError(
            source.locate(video, names[0]) if names else f"video {video}",
            expected="a first frame with its label map",
            found="no label map" if names else "no frames",
            remedy=f"{remedy}; --protocol youtube_vos follows objects that begin later" if annotated else remedy,
        )
    labels = source.read_labels(video, names[0])
    ids = object_ids((labels != 0).view(np.uint8) if protocol.merge_objects else labels)
    if not len(ids):
        raise DataError(
            source.locate(video, names[0]),
            expected="an object in the first label map",
            found="background only",
            remedy="name the videos to segment",
        )
    return {0: tuple(ids.tolist())}


def _late_objects(source: VideoSource, video: str, numbers: dict[str, int]) -> dict[int, tuple[int, ...]]:
    """Objects by the frame in which they begin."""
    begins: dict[int, tuple[int, ...]] = {}
    annotated = set(source.annotated_names(video))
    for object_id, name in first_appearances(source, video).items():
        if name not in numbers or name not in annotated:
            raise DataError(
                f"video {video}, frame {name}",
                expected=f"image and mask where object {object_id} begins",
                found="no mask" if name in numbers else "no image",
                remedy="restore the files, or name the videos to segment",
            )
        begins[numbers[name]] = (*begins.get(numbers[name], ()), object_id)
    if not begins:
        raise DataError(
            f"video {video}", expected="objects to follow", found="none", remedy="name the videos to segment"
        )
    return dict(sorted(begins.items()))


def _listed(source: VideoSource, video: str, numbers: dict[str, int]) -> tuple[int, ...]:
    """Frames in which some object is listed, and those at the same step before the first of them."""
    names = {name for facts in source.object_facts(video).values() for name in facts.frames}
    listed = sorted(numbers[name] for name in names & numbers.keys())
    if len(names) > len(listed):
        logger.warning("%s: no image of %s that the set lists", video, counted(len(names) - len(listed), "frame"))
    if len(listed) < 2:
        return tuple(listed)
    marks = {number: frame_number(name) or 0 for name, number in numbers.items()}
    first, step = marks[listed[0]], marks[listed[1]] - marks[listed[0]]
    before = [number for number in range(listed[0]) if step > 0 and (first - marks[number]) % step == 0]
    return (*before, *listed)


def _require_images(source: VideoSource, video: str, numbers: dict[str, int]) -> None:
    for frame in source.annotated_names(video):
        if frame not in numbers:
            raise DataError(
                source.locate(video, frame),
                expected="the image of an annotated frame",
                found="no such file",
                remedy="complete the video, or name the videos to segment",
            )
