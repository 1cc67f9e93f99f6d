"""What finished clips cost, each way beside the others on the same plans and bytes: video of RDE, and stills.

CPU time of this process and of the workers it waited for. The ways take turns in rounds, as in
`pipelines.benchmarks.executors`.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset

from pipelines.assembly import assemble, choose_objects, normalise, slot_masks
from pipelines.benchmarks.executors import BATCH, take_turns
from pipelines.damage import damage_masks
from pipelines.executors import make_executor
from pipelines.executors.cpu import Scratch
from pipelines.executors.encoded import decode_jpeg_padded, jpeg_size
from pipelines.spline import bend
from pipelines.types import ClipPixels, ClipPlan, EncodedClip, Executor

FLOOR = "JPEG decoding alone"
NAIVE = "dali, one operator after the other"
FINISHED = "cpu and assembly"
LOADER = "paper in a torch DataLoader"
WORKER = "start and end of a DataLoader's worker"
STILL_CPU, STILL_PAPER = "cpu and spline", "paper, spline per pixel"
NUM_SLOTS = 2


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU milliseconds per clip by way, in the order of the table; `floor` is JPEG decoding on the same frames."""

    num_clips: int
    num_frames: int
    rounds: int
    ways: dict[str, float]
    floor: float


def cpu_seconds() -> float:
    """User and system time of this process and of all children it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def time_video_ways(clips: Sequence[EncodedClip], names: Sequence[str], *, rounds: int) -> Costs:
    """Executors by name (with `dali` also its naive graph), cpu with assembly, and the paper form in a DataLoader.

    clips: of `rde_video`. For comparable numbers call torch.set_num_threads(1) first. Raises ValueError for no clips.
    """
    executors = {name: make_executor(name) for name in dict.fromkeys(("cpu", *names))}
    if "dali" in executors:
        executors |= {NAIVE: _naive_dali()}
    work = {name: _run(executor, clips) for name, executor in executors.items()}
    work[FINISHED] = _finish(executors["cpu"], clips)
    if "paper" in executors:
        work |= {LOADER: _load(clips), WORKER: _load(())}
    found = _measure(clips, work, list(executors.values()), rounds)
    if LOADER in found.ways:
        # The worker starts anew in each round, so that its time is that of a child that ended; a run starts it once.
        found.ways[LOADER] -= found.ways.pop(WORKER)
    return found


def time_still_ways(clips: Sequence[EncodedClip], *, rounds: int) -> Costs:
    """cpu followed by the spline, and the published steps with theirs. clips: of `rde_static`."""
    executors = {name: make_executor(name) for name in ("cpu", "paper")}
    work = {STILL_CPU: _bend(executors["cpu"], clips), STILL_PAPER: _run(executors["paper"], clips)}
    return _measure(clips, work, list(executors.values()), rounds)


def time_assembly(clips: Sequence[EncodedClip], *, rounds: int) -> dict[str, float]:
    """CPU milliseconds per clip of the parts of assembly on the CPU, of clips of label maps, and of the whole."""
    executor = make_executor("cpu")
    batches = [(executor(batch), [clip.plan for clip in batch]) for batch in _batches(clips)]
    executor.close()
    ids = [choose_objects(pixels.labels, plans, NUM_SLOTS) for pixels, plans in batches]
    masks = [_slot_masks(pixels, each) for (pixels, _), each in zip(batches, ids, strict=True)]
    work: dict[str, Callable[[], None]] = {
        "choice of objects": lambda: _each(batches, lambda p, plans: choose_objects(p.labels, plans, NUM_SLOTS)),
        "slots": lambda: _both(batches, ids, lambda p, _, each: slot_masks(p.labels, each)),
        "damage of first masks": lambda: _both(batches, masks, lambda _, plans, each: _damage(each, plans)),
        "floats": lambda: _each(batches, lambda p, _: normalise(p.images)),
        "all": lambda: _each(batches, _assemble),
    }
    seconds = take_turns(work, rounds)
    return {name: 1e3 * value / len(clips) for name, value in seconds.items()}


class PaperClips(Dataset[dict[str, torch.Tensor]]):
    """Finished clips by the published steps, one at a time, as a worker of a DataLoader makes them."""

    def __init__(self, clips: Sequence[EncodedClip]) -> None:
        self._clips = clips
        self._executor = make_executor("paper")

    def __len__(self) -> int:
        """Clips."""
        return len(self._clips)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """images (T, 3, H, W) float32, masks (T, H, W), first_masks (K, H, W). Its assembly is ours, which helps it."""
        clip = self._clips[index]
        batch, _ = assemble(self._executor([clip]), [clip.plan], num_slots=NUM_SLOTS, step=0, device="cpu")
        return {"images": batch.images[0], "masks": batch.masks[0], "first_masks": batch.first_masks[0]}


def _measure(
    clips: Sequence[EncodedClip],
    work: dict[str, Callable[[], None]],
    executors: Sequence[Executor],
    rounds: int,
) -> Costs:
    if not clips or rounds < 1:
        raise ValueError(f"needs at least one clip and one round, got {len(clips)} clips and {rounds} rounds")
    try:
        seconds = take_turns(work | {FLOOR: partial(_decode, clips, Scratch())}, rounds, clock=cpu_seconds)
    finally:
        for executor in executors:
            executor.close()
    costs = {name: 1e3 * value / len(clips) for name, value in seconds.items()}
    floor = costs.pop(FLOOR)
    return Costs(len(clips), len(clips[0].frames), rounds, costs, floor)


def _naive_dali() -> Executor:
    from pipelines.executors.dali_naive import NaiveDaliExecutor  # noqa: PLC0415 - only where DALI is asked for

    return NaiveDaliExecutor()


def _batches(clips: Sequence[EncodedClip]) -> list[list[EncodedClip]]:
    return [list(clips[first : first + BATCH]) for first in range(0, len(clips), BATCH)]


def _run(executor: Executor, clips: Sequence[EncodedClip]) -> Callable[[], None]:
    def run_all() -> None:
        for batch in _batches(clips):
            executor(batch)

    return run_all


def _finish(executor: Executor, clips: Sequence[EncodedClip]) -> Callable[[], None]:
    def run_all() -> None:
        for batch in _batches(clips):
            _assemble(executor(batch), [clip.plan for clip in batch])

    return run_all


def _bend(executor: Executor, clips: Sequence[EncodedClip]) -> Callable[[], None]:
    def run_all() -> None:
        for batch in _batches(clips):
            bend(executor(batch), [clip.plan for clip in batch])

    return run_all


def _load(clips: Sequence[EncodedClip]) -> Callable[[], None]:
    def run_all() -> None:
        for _ in DataLoader(PaperClips(clips), batch_size=BATCH, num_workers=1):
            pass

    return run_all


def _decode(clips: Sequence[EncodedClip], scratch: Scratch) -> None:
    for clip in clips:
        for index in {id(frame): index for index, frame in enumerate(clip.frames)}.values():  # a still only once
            height, width = jpeg_size(clip, index)
            decode_jpeg_padded(clip, index, scratch.decoded(height * width * 4))


Made = tuple[ClipPixels, list[ClipPlan]]


def _each(batches: Sequence[Made], work: Callable[[ClipPixels, list[ClipPlan]], object]) -> None:
    for pixels, plans in batches:
        work(pixels, plans)


def _both(
    batches: Sequence[Made],
    others: Sequence[torch.Tensor],
    work: Callable[[ClipPixels, list[ClipPlan], torch.Tensor], object],
) -> None:
    for (pixels, plans), other in zip(batches, others, strict=True):
        work(pixels, plans, other)


def _assemble(pixels: ClipPixels, plans: list[ClipPlan]) -> None:
    assemble(pixels, plans, num_slots=NUM_SLOTS, step=0, device="cpu")


def _slot_masks(pixels: ClipPixels, slot_ids: torch.Tensor) -> torch.Tensor:
    """(B, K, H, W) bool: first masks of the slots."""
    masks = slot_masks(pixels.labels[:, :1], slot_ids)
    return masks == torch.arange(1, NUM_SLOTS + 1, dtype=torch.uint8)[None, :, None, None]


def _damage(masks: torch.Tensor, plans: list[ClipPlan]) -> torch.Tensor:
    each = [(plan, slot) for plan in plans for slot in range(masks.shape[1])]
    return damage_masks(
        masks.flatten(0, 1),
        keys=[plan.damage_key for plan, _ in each],
        ious=[plan.damage_iou for plan, _ in each],
        slots=[slot for _, slot in each],
    )
