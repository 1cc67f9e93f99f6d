"""STM-Cycle's training step: a clip is segmented forwards, and from each of its frames back to the first one.

All clips and objects of a batch go through the network together; every frame is encoded as a query once, and the open
ways back, which each read one frame's memory only, are one pass. The released code takes clips, and ways back, one by
one.
Source: Li et al. 2020; docs/stm_cycle.md lists what the published code does oddly and which option switches it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.object_rows import ObjectRows
from models.stm import Memory, Query, Stm, join_memories
from pipelines.types import Batch
from trainers.objectives.rde_parts import overlaps, with_iou
from trainers.objectives.stm_cycle_losses import HARD_SHARE, hardest_cross_entropy, present_labels, soft_iou_loss

CycleGate = Literal["highest", "all"]
SMALLEST_SIDE = 16


@dataclass(frozen=True)
class StmCycleOptions:
    """Weights and switches of the objective; the defaults are the published ones."""

    method: ClassVar[str] = "stm"
    """The network it trains."""
    name: Literal["stm_cycle"] = "stm_cycle"
    # Weight of the ways back to the first frame; 0 leaves them out, and what they cost.
    cycle_weight: float = 1.0
    # Which frames lead back: "highest", those that show the object of the highest slot (published); "all", those that
    # show every object of the clip.
    cycle_gate: CycleGate = "highest"
    cross_entropy_weight: float = 1.0
    iou_weight: float = 1.0
    # Share of the pixels that the cross-entropy keeps, the hardest ones.
    hard_share: float = HARD_SHARE
    # True: void pixels, as those outside the image, count against every object and in the share (published).
    count_void: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for values outside their range."""
        weights = (self.cycle_weight, self.cross_entropy_weight, self.iou_weight)
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise ValueError("no weight may be negative or infinite; give numbers from 0")
        if not 0.0 < self.hard_share <= 1.0:
            raise ValueError(f"hard_share must lie in (0, 1], not {self.hard_share}")

    @staticmethod
    def require_clips(num_frames: int, size: tuple[int, int]) -> None:
        """Raise ValueError for clips the objective cannot train on. size: height and width in pixels."""
        if num_frames < 2:
            raise ValueError(f"STM-Cycle trains on clips of 2 frames or more, got {num_frames}; set recipe.num_frames")
        if min(size) < SMALLEST_SIDE:
            raise ValueError(
                f"STM-Cycle trains on frames with sides of {SMALLEST_SIDE} pixels or more, got {size[0]}x{size[1]}; "
                "set recipe.size"
            )


class WayBack(NamedTuple):
    """From frame `time` of a clip, 1..T-1, to its frame 0."""

    time: int
    clip: int


class Unrolled(NamedTuple):
    """A batch, segmented; probabilities of background and the K slots in use.

    forward (T - 1, B, 1 + K, H, W) of frames 1..T-1; back (W, 1 + K, H, W) of frame 0 at the end of W ways back.
    """

    forward: Tensor
    back: Tensor | None


class Terms(NamedTuple):
    """Losses of frames, (frames,) each."""

    cross_entropy: Tensor
    iou: Tensor


class StmCycleObjective(nn.Module):
    """Model and losses as one module, so that one forward call is one training step."""

    def __init__(self, model: Stm, options: StmCycleOptions | None = None) -> None:
        super().__init__()
        self.model = model
        self.options = options or StmCycleOptions()

    def arguments(self, batch: Batch) -> dict[str, float]:
        """What changes from batch to batch of a stage, as keyword arguments of `forward`: nothing."""
        return {}

    def forward(
        self,
        images: Tensor,
        masks: Tensor,
        num_objects: Tensor,
        first_masks: Tensor,
        *,
        clean_masks: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch and its parts.

        images (B, T, 3, H, W) normalised float of any size; masks (B, T, H, W) uint8 slots, 255 = void; num_objects
        (B,) int64, which the host reads, once, with the open ways back; first_masks (B, K, H, W) float, what frame 0 is
        memorised with. clean_masks is not used. Returns the loss, a float32 scalar, and detached scalars for the log
        (see `summarise`). A clip without an object in frame 0 has loss 0, and the mean is over all clips. Raises
        ValueError for another clip length or size.
        """
        self.options.require_clips(images.shape[1], (images.shape[3], images.shape[4]))
        present = present_labels(masks, num_objects[:, None], first_masks.shape[1])  # (B, T, 1 + K)
        counted = present[:, 0, 1:].any(1)  # (B,), False: the published loss would be NaN
        gates = open_gates(present, num_objects, self.options.cycle_gate) & counted[:, None]  # (B, T - 1)
        # A clip without objects takes part with an empty slot, so that every weight has a gradient in every step.
        plan = torch.cat([num_objects.clamp(min=1)[:, None], gates.long()], 1).tolist()
        counts, ways = [row[0] for row in plan], ways_back([row[1:] for row in plan])
        seen = unroll(self.model, images, first_masks, counts, ways if self.options.cycle_weight > 0 else [])
        loss, metrics = self._losses(seen, masks, present[:, :, : 1 + max(counts)], ways)
        metrics |= {"gates_open": gates.float().mean()} | self._overlaps(seen, masks, first_masks.shape[1])
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def _losses(
        self, seen: Unrolled, masks: Tensor, present: Tensor, ways: list[WayBack]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        num_clips, num_steps = masks.shape[0], masks.shape[1] - 1
        later = masks[:, 1:].transpose(0, 1).flatten(0, 1)  # ((T - 1) * B, H, W), time slowest, as seen.forward
        terms = self._terms(seen.forward.flatten(0, 1), later, present[:, 0].repeat(num_steps, 1))
        counted = present[:, 0, 1:].any(1).float()  # (B,)
        forward_loss = (self._weighted(terms) * counted.repeat(num_steps)).mean()
        loss, back_loss = forward_loss, forward_loss.new_zeros(())
        if seen.back is not None:
            times, clips = torch.tensor(ways).to(masks.device, non_blocking=True).unbind(1)
            back = self._terms(seen.back, masks[clips, 0], present[clips, times])
            back_loss = self._weighted(back).sum() / (num_clips * num_steps)
            loss = forward_loss + self.options.cycle_weight * back_loss
        metrics = {"forward": forward_loss, "cycle": back_loss, "clips_without_object": 1 - counted.mean()}
        return loss, metrics | {"cross_entropy": terms.cross_entropy.mean(), "iou_loss": terms.iou.mean()}

    def _terms(self, found: Tensor, labels: Tensor, judged: Tensor) -> Terms:
        options = self.options
        entropy = hardest_cross_entropy(found, labels, judged, share=options.hard_share, count_void=options.count_void)
        return Terms(entropy, soft_iou_loss(found, labels, judged, count_void=options.count_void))

    def _weighted(self, terms: Terms) -> Tensor:
        return self.options.cross_entropy_weight * terms.cross_entropy + self.options.iou_weight * terms.iou

    @staticmethod
    def _overlaps(seen: Unrolled, masks: Tensor, num_slots: int) -> dict[str, Tensor]:
        """Of all slots, in use or not: every step reports the same names."""
        counts = overlaps(list(seen.forward.detach()[:, :, 1:]), masks[:, 1:])
        nothing = seen.forward.new_zeros(())
        for slot in range(seen.forward.shape[2], num_slots + 1):
            counts |= {f"intersection_{slot}": nothing, f"union_{slot}": nothing}
        return counts

    @staticmethod
    def summarise(means: dict[str, float]) -> dict[str, float]:
        """Means of `forward`'s scalars over steps and ranks -> what is reported: pixel counts become IoU."""
        return with_iou(means)


def unroll(model: Stm, images: Tensor, first_masks: Tensor, counts: Sequence[int], ways: Sequence[WayBack]) -> Unrolled:
    """Segment frames 1..T-1 in order, each from all before it, then frame 0 at the end of every way back.

    images (B, T, 3, H, W), first_masks (B, slots, H, W), counts: objects of each clip. A way back reads the memory of
    one frame alone. Frames are remembered with what was segmented, soft; nothing is detached, nothing replaced by the
    truth. Slots that no clip of the batch uses are left out: in the published code they take 1e-7 of the odds each.
    """
    num_clips, num_frames = images.shape[:2]
    size = (images.shape[3], images.shape[4])
    rows = ObjectRows.of(counts, max(counts), images.device)
    frames = torch.cat(images.unbind(1))  # (T*B, 3, H, W), time slowest; keeps channels last
    left_out = 0 if ways else num_clips  # only ways back segment the first frames, and remember the last ones
    query, stems = model.encode_query(frames[left_out:]), model.look(frames[: len(frames) - left_out])
    memories: list[Memory] = []
    masks, seen = rows.take(first_masks[:, : rows.num_slots]), []
    for time in range(num_frames):
        start = time * num_clips
        if time > 0:
            here = query.frames(slice(start - left_out, start - left_out + num_clips))
            seen.append(rows.aggregate(model.segment(here, join_memories(memories), rows.clips, size)).softmax(1))
            masks = rows.take(seen[-1][:, 1:])
        if time + 1 < num_frames or ways:
            memories.append(model.memorise(stems[start : start + num_clips], masks, rows.clips))
    back = _lead_back(model, query.frames(slice(num_clips)), memories, (counts, ways), size) if ways else None
    return Unrolled(torch.stack(seen), back)


def _lead_back(
    model: Stm,
    first: Query,
    memories: list[Memory],
    plan: tuple[Sequence[int], Sequence[WayBack]],
    size: tuple[int, int],
) -> Tensor:
    """Probabilities (W, 1 + K, H, W) of the first frames, one pass for all ways; plan: as in `unroll`."""
    counts, ways = plan
    starts = list(accumulate(counts, initial=0))
    numbers = [time * starts[-1] + starts[clip] + slot for time, clip in ways for slot in range(counts[clip])]
    device = first.key.device
    which = torch.tensor(numbers).to(device, non_blocking=True)
    rows = ObjectRows.of([counts[clip] for _, clip in ways], max(counts), device)
    clips = torch.tensor([clip for _, clip in ways]).to(device, non_blocking=True)[rows.clips]
    alone = join_memories(memories, over_objects=True).rows(which)
    return rows.aggregate(model.segment(first, alone, clips, size)).softmax(1)


def ways_back(gates: Sequence[Sequence[int]]) -> list[WayBack]:
    """Those that are open: gates[clip][time - 1] is 0 or 1."""
    return [WayBack(time, clip) for clip, row in enumerate(gates) for time, gate in enumerate(row, 1) if gate]


def open_gates(present: Tensor, num_objects: Tensor, gate: CycleGate) -> Tensor:
    """Which frames lead back to the first: present (B, T, 1 + K), num_objects (B,) -> (B, T - 1) bool."""
    later = present[:, 1:]
    if gate == "highest":
        highest = num_objects[:, None, None].expand(-1, later.shape[1], 1)
        return later.gather(2, highest)[:, :, 0]
    slots = torch.arange(later.shape[2], device=later.device)
    absent = slots > num_objects[:, None]  # (B, 1 + K)
    return (later | absent[:, None])[:, :, 1:].all(2)
