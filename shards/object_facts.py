"""What a data set says about objects beside its masks: where each begins, which frames to score, its category."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from shards.findings import Finding


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """One object as the data set lists it.

    frames: names of the frames it is to be scored in, in time order; its mask is given in the first of them. It may be
    hidden in any of the others. category: None where the data set hides or lacks it.
    """

    frames: tuple[str, ...]
    category: str | None = None


def encode_object_facts(objects: Mapping[int, ObjectFacts]) -> dict[str, Any]:
    """For JSON: object ids as text."""
    return {
        str(object_id): {"category": facts.category, "frames": list(facts.frames)}
        for object_id, facts in objects.items()
    }


def decode_object_facts(fields: Mapping[str, Any] | None) -> dict[int, ObjectFacts]:
    """Inverse of `encode_object_facts`, ids ascending; {} for None."""
    return {
        int(object_id): ObjectFacts(tuple(facts["frames"]), facts["category"])
        for object_id, facts in sorted((fields or {}).items(), key=lambda item: int(item[0]))
    }


@dataclass(frozen=True, slots=True)
class MaskIds:
    """Ids found in the masks of a video: frame name -> ids; frames without a mask are not in it."""

    images: Sequence[str]
    ids: Mapping[str, np.ndarray]


Given = Literal["all", "first"]


def reconcile(
    listed: Mapping[int, ObjectFacts], found: MaskIds, given: Given
) -> tuple[dict[int, ObjectFacts], Iterator[Finding]]:
    """Facts that images and masks bear out, and a warning for each that they do not.

    Masks decide which objects there are, the list where they begin. given: whether the masks of all frames are there,
    or (`first`) only those in which an object begins. Findings are without place.
    """
    kept: dict[int, ObjectFacts] = {}
    findings: list[Finding] = []
    images = set(found.images)
    for object_id, facts in listed.items():
        frames = tuple(name for name in facts.frames if name in images)
        lost = [name for name in facts.frames if name not in images]
        if lost:
            findings.append(_remark("listed frame missing", f"object {object_id}", f"no image {_some(lost)}"))
        if not _occurs(object_id, frames, found, given):
            where = "its first frame's mask" if given == "first" else "any mask"
            what = f"not in {where}: left out of the facts"
            findings.append(_remark("listed object in no mask", f"object {object_id}", what))
            continue
        unmasked = [name for name in (frames if given == "all" else ()) if name not in found.ids]
        if unmasked:
            findings.append(_remark("listed frame without mask", f"object {object_id}", f"no mask {_some(unmasked)}"))
        kept[object_id] = ObjectFacts(frames, facts.category)
    unlisted = sorted({int(label) for ids in found.ids.values() for label in ids} - set(listed))
    if unlisted and listed:
        findings.append(_remark("object not listed", "every id of the masks", f"ids {unlisted} in masks alone"))
    return kept, iter(findings)


def _occurs(object_id: int, frames: tuple[str, ...], found: MaskIds, given: Given) -> bool:
    if given == "first":
        return bool(frames) and object_id in found.ids.get(frames[0], ())
    return bool(frames) and any(object_id in ids for ids in found.ids.values())


def _some(names: Sequence[str]) -> str:
    return " ".join(names[:8]) + " ..." * (len(names) > 8)


def _remark(reason: str, expected: str, found: str) -> Finding:
    remedy = "compare meta.json with the folders; masks decide which objects there are"
    return Finding("warning", reason, f"{expected}, as the list says", found, remedy, "kept")
