"""STM-Cycle's training step: a clip is segmented forwards, and from each of its frames back to the first one.

All clips and objects of a batch go through the network together; every frame is encoded as a query once, and the ways
back, which each read one frame's memory only, are one pass. The released code takes clips, and ways back, one by one.
Source: Li et al. 2020; docs/stm_cycle.md lists what the published code does oddly and which option switches it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.object_rows import ObjectRows
from models.stm import Memory, Stm, join_memories
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


class Unrolled(NamedTuple):
    """A batch, segmented: logits (T - 1, B, 1 + K, H, W) of frames 1..T-1, and of frame 0 as seen from each of them."""

    forward: Tensor
    back: Tensor | None


class Terms(NamedTuple):
    """Losses (T - 1, B): cross-entropy and IoU loss."""

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
        (B,) int64, read by the host once; first_masks (B, K, H, W) float, what frame 0 is memorised with. clean_masks
        is not used. Returns the loss, a float32 scalar, and detached scalars for the log (see `summarise`). A clip
        without an object in frame 0 has loss 0, and the mean is over all clips. Raises ValueError for another clip
        length or size.
        """
        self.options.require_clips(images.shape[1], (images.shape[3], images.shape[4]))
        # A clip without objects takes part with an empty slot, so that every weight has a gradient in every step.
        counts = num_objects.clamp(min=1).tolist()
        rows = ObjectRows.of(counts, first_masks.shape[1], images.device)
        seen = unroll(self.model, images, first_masks, rows, with_cycle=self.options.cycle_weight > 0)
        present = present_labels(masks, num_objects[:, None], first_masks.shape[1])  # (B, T, 1 + K)
        return self._losses(seen, masks, present, num_objects)

    def _losses(
        self, seen: Unrolled, masks: Tensor, present: Tensor, num_objects: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        num_steps = masks.shape[1] - 1
        counted = present[:, 0, 1:].any(1).float()  # (B,), 0: the published loss would be NaN
        later = masks[:, 1:].transpose(0, 1)  # (T - 1, B, H, W)
        terms = self._terms(seen.forward, later, present[None, :, 0].expand(num_steps, -1, -1))
        forward_loss = (self._weighted(terms).sum(0) / num_steps * counted).mean()
        gate = open_gates(present, num_objects, self.options.cycle_gate) * counted[:, None]  # (B, T - 1)
        loss, back_loss = forward_loss, forward_loss.new_zeros(())
        if seen.back is not None:
            first = masks[None, :, 0].expand(num_steps, -1, -1, -1)
            back = self._terms(seen.back, first, present[:, 1:].transpose(0, 1))
            back_loss = ((self._weighted(back) * gate.T).sum(0) / num_steps).mean()
            loss = forward_loss + self.options.cycle_weight * back_loss
        metrics = {"forward": forward_loss, "cycle": back_loss, "gates_open": gate.mean()}
        metrics |= {"cross_entropy": terms.cross_entropy.mean(), "iou_loss": terms.iou.mean()}
        metrics |= {"clips_without_object": 1 - counted.mean()}
        metrics |= overlaps([logits.softmax(1)[:, 1:] for logits in seen.forward.detach()], masks[:, 1:])
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def _terms(self, logits: Tensor, labels: Tensor, judged: Tensor) -> Terms:
        """Of (T - 1, B) frames; dimensions 0 and 1 of all arguments."""
        lead, options = logits.shape[:2], self.options
        flat = (logits.flatten(0, 1), labels.flatten(0, 1), judged.flatten(0, 1))
        entropy = hardest_cross_entropy(*flat, share=options.hard_share, count_void=options.count_void)
        return Terms(entropy.view(lead), soft_iou_loss(*flat, count_void=options.count_void).view(lead))

    def _weighted(self, terms: Terms) -> Tensor:
        return self.options.cross_entropy_weight * terms.cross_entropy + self.options.iou_weight * terms.iou

    @staticmethod
    def summarise(means: dict[str, float]) -> dict[str, float]:
        """Means of `forward`'s scalars over steps and ranks -> what is reported: pixel counts become IoU."""
        return with_iou(means)


def unroll(model: Stm, images: Tensor, first_masks: Tensor, rows: ObjectRows, *, with_cycle: bool) -> Unrolled:
    """Segment frames 1..T-1 in order, each from all before it, then frame 0 from each of them alone.

    images (B, T, 3, H, W), first_masks (B, K, H, W). Frames are remembered with what was segmented, soft; nothing is
    detached, nothing replaced by the truth.
    """
    num_clips, num_frames = images.shape[:2]
    size = (images.shape[3], images.shape[4])
    frames = torch.cat(images.unbind(1))  # (T*B, 3, H, W), time slowest; keeps channels last
    query, stems = model.encode_query(frames), model.look(frames)
    memories: list[Memory] = []
    masks, seen = rows.take(first_masks), []
    for time in range(num_frames):
        here = slice(time * num_clips, (time + 1) * num_clips)
        if time > 0:
            logits = rows.aggregate(model.segment(query.frames(here), join_memories(memories), rows.clips, size))
            seen.append(logits)
            masks = rows.take(logits.softmax(1)[:, 1:])
        if time + 1 < num_frames or with_cycle:
            memories.append(model.memorise(stems[here], masks, rows.clips))
    forward = torch.stack(seen)
    if not with_cycle:
        return Unrolled(forward, None)
    alone = join_memories(memories[1:], over_objects=True)
    back = model.segment(query.frames(slice(num_clips)), alone, rows.clips.repeat(num_frames - 1), size)
    return Unrolled(forward, rows.repeated(num_frames - 1).aggregate(back).view_as(forward))


def open_gates(present: Tensor, num_objects: Tensor, gate: CycleGate) -> Tensor:
    """Which frames lead back to the first: present (B, T, 1 + K), num_objects (B,) -> (B, T - 1) float, 0 or 1."""
    later = present[:, 1:]
    if gate == "highest":
        highest = num_objects[:, None, None].expand(-1, later.shape[1], 1)
        return later.gather(2, highest)[:, :, 0].float()
    slots = torch.arange(later.shape[2], device=later.device)
    absent = slots > num_objects[:, None]  # (B, 1 + K)
    return (later | absent[:, None])[:, :, 1:].all(2).float()
