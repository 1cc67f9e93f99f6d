"""YouTube-VOS 2018 and 2019: <split>/JPEGImages/<video>, sparse masks, and meta.json with the objects' frames."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from shards.errors import DataError
from shards.findings import DROPPED, Finding
from shards.naming import frame_number
from shards.object_facts import Given, ObjectFacts
from shards.sources.lists import FolderVideos, VideoFolders, restrict, unknown_video, video_folders
from shards.sources.types import SourceRequest
from shards.storage.paths import Location

ALL_FRAMES = "_all_frames"
PLAIN_SPLITS = ("train", "valid", "test")
SPLITS = (*PLAIN_SPLITS, *(f"{split}{ALL_FRAMES}" for split in PLAIN_SPLITS))
# The videos of `train` that RDE trains on: all but these.
RDE_SPLIT = "train_rde"
NOT_IN_RDE = frozenset(
    ("01e64dd36a", "04259896e2", "1336440745", "5bc77844da", "5ee23ca60e", "738e5a0a14", "f8af30d4b6")
)
_SEE = "see that the object begins in the earliest frame listed"
_PACKAGE = "get this part of the package, and its meta.json, from the data set's page"


def open_youtube_vos(request: SourceRequest) -> FolderVideos:
    """Read folders and meta.json of the wanted splits (by default train, valid and test, as far as they are there).

    A split `*_all_frames` takes its images from that folder, masks and meta.json from the plain one.
    A video that lies in two of them is refused, and with it both copies: which one is right would be a guess.
    Raises DataError where a wanted part is missing or meta.json is not of this layout, ValueError for a split together
    with its all-frames form: they are the same videos under the same names.
    """
    request.options.require_only("youtube_vos", "lists")
    root = request.one_folder("youtube_vos")
    findings: list[Finding] = []
    places: dict[str, VideoFolders] = {}
    twice: dict[str, Finding] = {}
    for split in _wanted(root, request.splits):
        for name, place in _places(root, split, findings).items():
            other = places.setdefault(name, place)
            if other is not place:
                refusal = Finding("refused", "video in two splits", "each video once", other.images, _PACKAGE, DROPPED)
                twice.setdefault(name, refusal.at(place.images, name))
    # What else was said of them would make one refused video look like several.
    findings = [one for one in findings if one.video not in twice] + list(twice.values())
    places = {name: place for name, place in places.items() if name not in twice}
    chosen = restrict({name: place.splits for name, place in places.items()}, request.options.lists, findings)
    places = {name: places[name]._replace(splits=chosen[name]) for name in chosen}
    return FolderVideos("youtube_vos", root, None, places, tuple(findings), expected="some")


def images_folder(root: Location, split: str) -> str:
    """Folder of a split's videos, relative to the root; `all_frames/<split>` as some codebases keep it counts too."""
    usual, moved = f"{split}/JPEGImages", f"all_frames/{split}/JPEGImages"
    return moved if split.endswith(ALL_FRAMES) and not (root / usual).is_dir() and (root / moved).is_dir() else usual


def _wanted(root: Location, splits: tuple[str, ...] | None) -> list[str]:
    if RDE_SPLIT in (splits or ()):
        raise ValueError(f"{RDE_SPLIT} is a part of train: give --split train, and the set has {RDE_SPLIT} too")
    there = [split for split in SPLITS if (root / images_folder(root, split)).is_dir()]
    wanted = sorted(set(splits or [split for split in there if split in PLAIN_SPLITS]), key=str)
    missing = [split for split in wanted if split not in there]
    if missing or not wanted:
        found = f"only {', '.join(there)}" if there else "none of them" if root.is_dir() else f"no folder {root}"
        if (root / "JPEGImages").is_dir():
            found = "JPEGImages: this is one split; give the folder above it"
        raise DataError(
            root / (missing[0] if missing else "train") / "JPEGImages",
            expected="the layout of YouTube-VOS (train/JPEGImages, valid/JPEGImages, ...)",
            found=found,
            remedy="give the folder that holds train and valid; --split chooses among those there are",
        )
    for split in wanted:
        if f"{split}{ALL_FRAMES}" in wanted:
            raise ValueError(f"{split} and {split}{ALL_FRAMES} are the same videos: build them into two sets (--name)")
    return wanted


def _places(root: Location, split: str, findings: list[Finding]) -> dict[str, VideoFolders]:
    plain = split.removesuffix(ALL_FRAMES)
    images = images_folder(root, split)
    label = f"{plain}/meta.json"
    listed = read_meta(root / label, findings)
    names = video_folders(root / images, images, findings)
    findings += [unknown_video(label, name) for name in sorted(set(listed) - set(names))]
    given: Given = "all" if plain == "train" else "first"
    places = {}
    for name in names:
        objects = listed.get(name)
        if not objects:
            found = "no entry" if objects is None else "an entry without objects"
            findings.append(_remark("no objects in meta.json", "the video's objects", found).at(label, name))
        splits = (split, RDE_SPLIT) if split == "train" and name not in NOT_IN_RDE else (split,)
        masks = f"{plain}/Annotations/{name}"
        places[name] = VideoFolders(f"{images}/{name}", masks, splits, objects or {}, given)
    return places


def read_meta(path: Location, findings: list[Finding] | None = None) -> dict[str, dict[int, ObjectFacts]]:
    """Objects of every video that meta.json lists, by video name and id; frames in time order.

    Frames listed in another order, or twice, are told in `findings`. Raises DataError for anything else.
    """
    if not path.is_file():
        raise DataError(path, expected="meta.json of the split", found="none", remedy=_PACKAGE)
    try:
        videos = json.loads(path.read_bytes(), object_pairs_hook=_each_once)["videos"]
        json.dumps(videos, ensure_ascii=False).encode()  # halves of surrogate pairs, which no file of a set can hold
        objects = {name: _objects(entry) for name, entry in videos.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            path,
            expected='{"videos": {<video>: {"objects": {<id>: {"frames": [<frame>, ...]}}}}}',
            found=f"{type(error).__name__}: {error}",
            remedy="restore the file from the original package",
        ) from None
    if findings is not None:
        findings += _disorder(f"{path.parent.name}/{path.name}", videos, objects)
    return objects


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that comes twice would hide what its first place said."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"{max(counts, key=lambda key: counts[key])!r} is there twice")
    return fields


def _objects(entry: Mapping[str, Any]) -> dict[int, ObjectFacts]:
    objects = {}
    for key, facts in entry["objects"].items():
        if not key.isascii() or not key.isdigit() or str(int(key)) != key or not 1 <= int(key) <= 254:
            raise ValueError(f"object id {key!r}, not one of '1' to '254'")
        frames = facts["frames"]
        if not isinstance(frames, list) or not all(isinstance(name, str) for name in frames):
            raise TypeError(f"frames of object {key} are no list of names")
        category = facts.get("category")
        ordered = tuple(sorted(set(frames), key=_time_order))
        objects[int(key)] = ObjectFacts(ordered, None if category is None else str(category))
    return dict(sorted(objects.items()))


def _time_order(frame: str) -> tuple[float, str]:
    number = frame_number(frame)
    return (math.inf if number is None else number), frame


def _disorder(
    label: str, videos: Mapping[str, Any], objects: Mapping[str, Mapping[int, ObjectFacts]]
) -> Iterator[Finding]:
    """A remark for each object whose frames are listed out of order: the first of the list is not where it begins."""
    for name, facts in objects.items():
        for object_id, one in facts.items():
            listed = videos[name]["objects"][str(object_id)]["frames"]
            if listed != list(one.frames):
                found = f"object {object_id}: {' '.join(listed[:4])}{' ...' * (len(listed) > 4)}"
                in_order = "each once, in time order"
                remark = Finding("repaired", "listed frames out of order", in_order, found, _SEE, "sorted")
                yield remark.at(label, name)


def _remark(reason: str, expected: str, found: str) -> Finding:
    return Finding("warning", reason, expected, found, "masks decide which objects there are", "kept")
