"""How far executors are apart on the same plans: pixels and labels per operation and per recipe, and distributions.

The `cpu` executor is what the others are compared with, because it defines correctness.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.assembly import slot_masks
from pipelines.executors import make_executor
from pipelines.parity.operations import OPERATIONS, single_operation
from pipelines.parity.steps import compare_damage, compare_splines, damage_ious
from pipelines.types import ClipPixels, EncodedClip, Executor

REFERENCE = "cpu"
LEVELS = 256


@dataclass(slots=True)
class Tally:
    """Counts over pairs of pixels, from which all figures of a comparison follow exactly.

    differences (256,): values of images by how many levels they are apart. same, labels: label pixels that agree, and
    all. shared, either: pixels of objects with the same label in both, and with an object in one.
    """

    differences: NDArray[np.int64] = field(default_factory=lambda: np.zeros(LEVELS, np.int64))
    same: int = 0
    labels: int = 0
    shared: int = 0
    either: int = 0

    def add_images(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """Two uint8 tensors of one shape, on any device."""
        apart = (ours.cpu().int() - theirs.cpu().int()).abs().flatten().numpy()
        self.differences += np.bincount(apart, minlength=LEVELS)

    def add_labels(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """Two uint8 tensors of one shape, on any device; 0 is background and 255 void."""
        ours, theirs = ours.cpu(), theirs.cpu()
        objects = ((ours > 0) & (ours < LEVELS - 1)) | ((theirs > 0) & (theirs < LEVELS - 1))
        same = ours == theirs
        self.same, self.labels = self.same + int(same.sum()), self.labels + ours.numel()
        self.shared, self.either = self.shared + int((same & objects).sum()), self.either + int(objects.sum())

    def add(self, ours: ClipPixels, theirs: ClipPixels) -> None:
        """Both parts of the pixels of the same clips; soft masks count as their two halves."""
        self.add_images(ours.images, theirs.images)
        halves = (ours.labels >= LEVELS // 2, theirs.labels >= LEVELS // 2)
        pair = tuple(half.to(torch.uint8) for half in halves) if ours.soft else (ours.labels, theirs.labels)
        self.add_labels(*pair)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One executor beside `cpu`. mean, p99, largest: levels of 255 that image values are apart, None without images.

    equal_labels: share of the label pixels that agree. object_overlap: pixels of objects that have the same label in
    both, as a share of those that are an object's in either (an IoU); None where no object is seen.
    """

    what: str
    executor: str
    mean: float | None
    p99: int | None
    largest: int | None
    equal_labels: float | None
    object_overlap: float | None

    @classmethod
    def of(cls, what: str, executor: str, tally: Tally) -> Comparison:
        """The figures that follow from the counts."""
        total = int(tally.differences.sum())
        known = np.flatnonzero(tally.differences)
        rank = np.searchsorted(np.cumsum(tally.differences), 0.99 * total)
        return cls(
            what,
            executor,
            mean=float(tally.differences @ np.arange(LEVELS)) / total if total else None,
            p99=int(rank) if total else None,
            largest=int(known[-1]) if total else None,
            equal_labels=tally.same / tally.labels if tally.labels else None,
            object_overlap=tally.shared / tally.either if tally.either else None,
        )


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and percentiles of some number over `count` cases, as `source` makes them."""

    what: str
    source: str
    count: int
    mean: float
    p5: float
    p50: float
    p95: float

    @classmethod
    def of(cls, what: str, source: str, values: Sequence[float]) -> Distribution:
        """The figures of at least one value."""
        p5, p50, p95 = np.percentile(values, [5, 50, 95]).tolist()
        return cls(what, source, len(values), float(np.mean(values)), p5, p50, p95)


@dataclass(frozen=True, slots=True)
class ParityReport:
    """operations and recipes: each executor beside `cpu`, in order of the steps and of the catalogue."""

    operations: tuple[Comparison, ...]
    recipes: tuple[Comparison, ...]
    distributions: tuple[Distribution, ...]


def compare_executors(
    clips: Mapping[str, Sequence[EncodedClip]], operation_clips: Sequence[EncodedClip], names: Sequence[str],
    *, device: torch.device | str = "cpu", threads: int = 1,
) -> ParityReport:  # fmt: skip
    """Compare executors with `cpu` on the clips of each recipe and on single operations taken from operation_clips.

    operation_clips: clips of `rde_video`. device: where the other executors and the batched steps work.
    Raises ValueError for unknown executors, ModuleNotFoundError where DALI is missing, DataError for bad clips.
    """
    others = [name for name in names if name != REFERENCE]
    executors = {name: make_executor(name, threads=threads, device=device) for name in (REFERENCE, *others)}
    try:
        operations = tuple(_operations(operation_clips, executors, torch.device(device)))
        recipes = tuple(row for name, each in clips.items() for row in _compare(name, each, executors))
        distributions = (*_areas(clips, executors), *_damage(operation_clips, executors[REFERENCE]))
    finally:
        for executor in executors.values():
            executor.close()
    return ParityReport(operations, recipes, distributions)


def _operations(
    clips: Sequence[EncodedClip], executors: Mapping[str, Executor], device: torch.device
) -> list[Comparison]:
    rows: list[Comparison] = []
    for name in OPERATIONS:
        rows += _compare(name, [single_operation(clip, name) for clip in clips], executors)
    frames = [executors[REFERENCE]([clip]) for clip in clips]
    for what, compare in (("spline", compare_splines), ("damage", compare_damage)):
        tallies: defaultdict[str, Tally] = defaultdict(Tally)
        for pixels, clip in zip(frames, clips, strict=True):
            compare(pixels, clip.plan, device, tallies.__getitem__)
        rows += [Comparison.of(what, name, tally) for name, tally in tallies.items()]
    return rows


def _compare(what: str, clips: Sequence[EncodedClip], executors: Mapping[str, Executor]) -> list[Comparison]:
    published = all(clip.plan.steps is not None for clip in clips)
    tallies = {name: Tally() for name in executors if name != REFERENCE and (published or name != "paper")}
    for clip in clips:
        reference = executors[REFERENCE]([clip])
        for name, tally in tallies.items():
            tally.add(reference, executors[name]([clip]))
    return [Comparison.of(what, name, tally) for name, tally in tallies.items()]


def _areas(clips: Mapping[str, Sequence[EncodedClip]], executors: Mapping[str, Executor]) -> list[Distribution]:
    """Areas of objects as shares of the frame, over all frames of all clips."""
    rows = []
    for what, each in clips.items():
        for name, executor in executors.items():
            if name == "paper" and any(clip.plan.steps is None for clip in each):
                continue
            shares = [share for clip in each for share in _object_shares(executor([clip]), clip)]
            if shares:
                rows.append(Distribution.of(f"object area, {what}", name, shares))
    return rows


def _object_shares(pixels: ClipPixels, clip: EncodedClip) -> list[float]:
    if pixels.soft:
        return [
            float(share) for share in (pixels.labels >= LEVELS // 2).float().flatten(2).mean(dim=2).flatten() if share
        ]
    ids = torch.tensor([clip.plan.object_ids or (0,)], dtype=torch.uint8, device=pixels.labels.device)
    slots = slot_masks(pixels.labels, ids)[0]  # (T, H, W)
    shares = [(slots == slot).float().mean(dim=(1, 2)) for slot in range(1, ids.shape[1] + 1)]
    return [float(share) for of_slot in shares for share in of_slot if share]


def _damage(clips: Sequence[EncodedClip], executor: Executor) -> list[Distribution]:
    ours: list[float] = []
    published: list[float] = []
    for clip in clips:
        for mine, theirs in damage_ious(executor([clip]), clip.plan):
            ours.append(mine)
            published.append(theirs)
    if not ours:
        return []
    what = "IoU after damage, rde_video"
    return [Distribution.of(what, "all executors", ours), Distribution.of(what, "published loop", published)]
