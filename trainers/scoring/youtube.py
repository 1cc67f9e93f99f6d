"""A local G for YouTube-VOS. The server's code is not public, so every choice that papers leave open is made here.

An object is scored in the frames the data set lists for it but its first (the given one), the last frame included;
an object missing from a result counts as an empty mask. J and F are meaned over an object's frames, then over the
objects of seen and of unseen categories apart, not over categories or videos; G is the mean of the four.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import DataError
from trainers.prediction.videos import VideoSource, first_appearances
from trainers.scoring.measures import score_frame
from trainers.scoring.types import ObjectScores, ResultFolder, require_ids

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Categories:
    """Which objects are of unseen categories. of_object: video -> id -> category, before what the data set says."""

    unseen: frozenset[str] = frozenset()
    seen: frozenset[str] | None = None
    of_object: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def is_unseen(self, source: VideoSource, video: str, object_id: int) -> bool:
        """Whether an object's category is unseen. Raises DataError for one without category, or a category of neither.

        Without a table of unseen categories all objects are seen.
        """
        if not self.unseen:
            return False
        facts = source.object_facts(video).get(object_id)
        category = self.of_object.get(video, {}).get(object_id, facts.category if facts else None)
        if category is None or (self.seen is not None and category not in self.seen | self.unseen):
            raise DataError(
                f"{video}_{object_id}",
                expected="a category that is seen or unseen",
                found="none" if category is None else category,
                remedy="complete the table of categories",
            )
        return category in self.unseen


def read_categories(path: Path) -> Categories:
    """Table of categories: JSON `{"unseen": [...], "seen": [...], "videos": {video: {id: category}}}`.

    `seen` may be left out (every other category is seen), `videos` too where the data set knows the categories.
    """
    try:
        fields: Any = json.loads(path.read_bytes())
        seen = fields.get("seen")
        videos = fields.get("videos", {})
        of_object = {video: {int(key): str(name) for key, name in ids.items()} for video, ids in videos.items()}
        return Categories(frozenset(fields["unseen"]), None if seen is None else frozenset(seen), of_object)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            path,
            expected='a table {"unseen": [...], "seen": [...], "videos": {<video>: {<id>: <category>}}}',
            found=f"{type(error).__name__}: {error}",
            remedy="correct the file",
        ) from None


def scored_frames(source: VideoSource, video: str) -> tuple[str, ...]:
    """Frames in which some object is scored, in time order."""
    wanted = {frame for frames in _frames_of_objects(source, video).values() for frame in frames}
    return tuple(frame for frame in source.annotated_names(video) if frame in wanted)


def score_listed_objects(source: VideoSource, results: ResultFolder, video: str) -> list[ObjectScores]:
    """Scores of a video's objects, each over its own frames."""
    frames_of = _frames_of_objects(source, video)
    allowed = sorted(first_appearances(source, video))
    curves: dict[int, list[tuple[float, float]]] = {object_id: [] for object_id in frames_of}
    for frame in scored_frames(source, video):
        truth = source.read_labels(video, frame)
        result = results.read(video, frame, truth)
        expected = f"the ids of the video, {', '.join(map(str, allowed))}"
        require_ids(results.path(video, frame), result, allowed, expected, "write the ids of the given label maps")
        ids = [object_id for object_id, frames in frames_of.items() if frame in frames]
        for object_id, values in zip(ids, zip(*score_frame(truth, result, ids), strict=True), strict=True):
            curves[object_id].append(values)
    return [
        ObjectScores(video, object_id, frames, *np.array(curves[object_id], np.float64).T)
        for object_id, frames in frames_of.items()
    ]


def youtube_vos_scores(source: VideoSource, scores: Sequence[ObjectScores], categories: Categories) -> dict[str, float]:
    """G and its parts: J and F of seen and of unseen objects, those there are, and how many objects each has."""
    groups: dict[str, list[ObjectScores]] = {"seen": [], "unseen": []}
    for item in scores:
        groups["unseen" if categories.is_unseen(source, item.video, item.number) else "seen"].append(item)
    parts = {}
    for measure in ("J", "F"):
        for name, items in groups.items():
            if items:
                means = [(item.region if measure == "J" else item.boundary).mean() for item in items]
                parts[f"{measure}-{name}"] = float(np.mean(means))
    counts = {f"objects-{name}": len(items) for name, items in groups.items() if items}
    return {"G": float(np.mean(list(parts.values()))), **parts, **counts}


def _frames_of_objects(source: VideoSource, video: str) -> dict[int, tuple[str, ...]]:
    """Scored frames of each object, in time order; objects that have none are left out, which is said."""
    listed, annotated = source.object_facts(video), source.annotated_names(video)
    frames_of = {}
    for object_id, start in first_appearances(source, video).items():
        after = annotated[annotated.index(start) + 1 :] if start in annotated else annotated
        frames = listed[object_id].frames[1:] if object_id in listed else after
        missing = [frame for frame in frames if frame not in annotated]
        if missing:
            raise DataError(
                f"truth of {video}, frame {missing[0]}",
                expected=f"masks of the {len(frames)} frames in which object {object_id} is scored",
                found=f"{len(missing)} missing",
                remedy="score a split whose truth is public and complete",
            )
        if frames:
            frames_of[object_id] = frames
        else:
            logger.warning("%s: object %d begins in its last frame and is not scored", video, object_id)
    if not frames_of:
        raise DataError(f"truth of {video}", expected="objects to score", found="none", remedy="leave it out")
    return frames_of
