"""What RDE's training steps are made of, for still images (stage 0) and for video (stages 1 to 3) alike.

Source: RDE-VOS, Li et al. 2022. docs/rde.md lists what the published code does oddly and which option switches it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from models.masks import aggregate
from models.rde import KeyFeatures, Rde
from pipelines.types import VOID
from trainers.objectives.losses import FrameWeighting, bootstrapped_cross_entropy, channel_divergence, hardest_share


@dataclass(frozen=True)
class CommonOptions:
    """Weights and switches of every RDE objective; the defaults are the published ones."""

    method: ClassVar[str] = "rde"
    """The network it trains."""
    still: ClassVar[bool]
    """Trains a network without a SAM and without a channel for other objects."""
    # Weight of the divergence between the values of frame 0 with damaged and with clean masks (klloss).
    value_weight: float = 10.0
    temperature: float = 1.0
    # "elements", as published, divides a divergence by its channels too; "positions" is the divergence of a position.
    divergence_mean: Literal["elements", "positions"] = "elements"
    # "published" halves from the last frame to the first; "uniform" is STCN's plain sum.
    frame_weighting: FrameWeighting = "published"
    # False: the teacher side of each divergence is a constant. Published: gradients flow into both sides.
    teacher_gradient: bool = True
    # False: slots without an object add nothing to the divergences. Published: they count like any other.
    absent_objects_diverge: bool = True
    # Bootstrapping, in steps of the stage: all pixels before the first, the top_p hardest after the second.
    top_p: float = 0.15
    top_p_start_step: int = 20_000
    top_p_end_step: int = 70_000

    def __post_init__(self) -> None:
        """Raise ValueError for values outside their range."""
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if not 0 <= self.top_p_start_step <= self.top_p_end_step:
            raise ValueError("top_p_start_step must lie between 0 and top_p_end_step")
        if self.temperature <= 0 or min(self.weights) < 0:
            raise ValueError("temperature must be positive and no weight negative")
        if not all(math.isfinite(number) for number in (self.temperature, *self.weights)):
            raise ValueError("temperature and weights must be finite")

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the divergences, in the order the objective computes them."""
        return (self.value_weight,)

    def share_at(self, step: int) -> float:
        """Share of the pixels that the cross-entropy keeps at a step of the stage."""
        return hardest_share(step, top_p=self.top_p, start_step=self.top_p_start_step, end_step=self.top_p_end_step)


def require_clips(found: tuple[int, tuple[int, int]], *, least_frames: int, smallest_side: int) -> None:
    """ValueError unless `found`, frames per clip and (height, width), can be trained on."""
    if found[0] < least_frames:
        problem = f"this objective of RDE trains on clips of {least_frames} frames or more, got {found[0]}"
        raise ValueError(f"{problem}; set recipe.num_frames and recipe.clip_length")
    height, width = found[1]
    if any(side % 16 or side < smallest_side for side in (height, width)):
        raise ValueError(
            f"RDE trains on frames whose sides are multiples of 16 and at least {smallest_side}, got "
            f"{height}x{width}; set recipe.size"
        )


class Segmentation(NamedTuple):
    """What one frame became: logits (B, 1 + K, H, W), probabilities (B, K, H, W), decoder_input (B, K, 1024, h, w)."""

    logits: Tensor
    probabilities: Tensor
    decoder_input: Tensor


class Memory(NamedTuple):
    """key (B, 64, T, h, w), value (B, K, 512, T, h, w)."""

    key: Tensor
    value: Tensor

    def followed_by(self, other: Memory) -> Memory:
        """Both, one after the other in time."""
        return Memory(torch.cat([self.key, other.key], dim=2), torch.cat([self.value, other.value], dim=3))


@dataclass(frozen=True, slots=True)
class Clip:
    """A batch of clips on its way through the model.

    images (B, T, 3, H, W), features of all of them, in_use (B, K): 1 for slots that the aggregation sees.
    """

    model: Rde
    images: Tensor
    features: KeyFeatures
    in_use: Tensor

    def first_values(self, damaged: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Values of frame 0 for damaged and clean masks, each (B, K, 512, 1, h, w), in one pass."""
        both = self.model.encode_value(
            self.images[:, 0], self.features.f16[:, 0], torch.cat([damaged, clean.to(damaged.dtype)], 1), num_sets=2
        )
        first, second = both.chunk(2, dim=1)
        return first, second

    def with_key(self, frame: int, value: Tensor) -> Memory:
        """Key of a frame and its value (B, K, 512, 1, h, w)."""
        return Memory(self.features.key[:, :, frame : frame + 1], value)

    def remember(self, frame: int, masks: Tensor) -> Memory:
        """A frame with masks (B, K, H, W) in 0..1."""
        return self.with_key(frame, self.model.encode_value(self.images[:, frame], self.features.f16[:, frame], masks))

    def compress(self, memory: Memory) -> Memory:
        """Two frames as one."""
        return Memory(*self.model.compress(*memory))

    def read(self, frame: int, memory: Memory) -> Tensor:
        """Decoder input (B, K, 1024, h, w) of `frame` from `memory`."""
        query = self.features.frame(frame)
        return self.model.read(memory.key, memory.value, query.key, query.thin)

    def segment(self, frame: int, memory: Memory) -> Segmentation:
        """`frame` as seen from `memory`."""
        (seen,) = self.segment_from(frame, memory)
        return seen

    def segment_from(self, frame: int, *memories: Memory) -> tuple[Segmentation, ...]:
        """`frame` as seen from each of `memories`, in one decoder pass."""
        inputs = [self.read(frame, memory) for memory in memories]
        query = self.features.frame(frame)
        logits = self.model.decode(torch.cat(inputs, 1), query.f8, query.f4).chunk(len(memories), dim=1)
        masks = [aggregate(each, self.in_use) for each in logits]
        return tuple(Segmentation(*each, given) for each, given in zip(masks, inputs, strict=True))


def frame_losses(judged: tuple[Segmentation, ...], masks: Tensor, num_objects: Tensor, top_p: float) -> list[Tensor]:
    """Mean over the clips of each judged frame's cross-entropy, frames 1 .. T - 1 of masks (B, T, H, W)."""
    return [
        bootstrapped_cross_entropy(frame.logits, masks[:, number], num_objects, top_p).mean()
        for number, frame in enumerate(judged, start=1)
    ]


def divergence(student: Tensor, teacher: Tensor, in_use: Tensor, options: CommonOptions) -> Tensor:
    """Sum over slots, mean over clips. student, teacher (B, K, C, ...)."""
    teacher = teacher if options.teacher_gradient else teacher.detach()
    rows = channel_divergence(student.flatten(0, 1), teacher.flatten(0, 1), options.temperature, dim=1)
    if options.divergence_mean == "positions":
        rows = rows * student.shape[2]
    slots = rows.view(in_use.shape)  # (B, K)
    return (slots if options.absent_objects_diverge else slots * in_use).sum(1).mean()


def weighted_sum(terms: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    """Sum of weight x term, for equally many of both."""
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum()


def slots_in_use(num_objects: Tensor, num_slots: int) -> Tensor:
    """(B, num_slots) float, 1 for slots with an object. The first slot is always in use, empty or not (published)."""
    slots = torch.arange(1, num_slots + 1, device=num_objects.device)
    return (slots <= num_objects.clamp(min=1)[:, None]).float()


def slot_masks(labels: Tensor, num_slots: int) -> Tensor:
    """Slot map (B, H, W) -> one float mask per slot (B, num_slots, H, W). Void belongs to no slot."""
    slots = torch.arange(1, num_slots + 1, device=labels.device)
    return (labels[:, None] == slots[:, None, None]).float()


def overlaps(probabilities: list[Tensor], masks: Tensor) -> dict[str, Tensor]:
    """Pixel counts of intersection and union per slot over all judged frames, at probability 0.5, void left out.

    probabilities: one (B, K, H, W) per frame; masks (B, frames, H, W). Counts, so that they may be averaged over steps.
    """
    counts = {}
    found = torch.stack([frame.detach() > 0.5 for frame in probabilities], dim=1)  # (B, frames, K, H, W)
    known = masks != VOID
    for slot in range(1, found.shape[2] + 1):
        guess, truth = found[:, :, slot - 1] & known, masks == slot
        counts[f"intersection_{slot}"] = (guess & truth).sum().float()
        counts[f"union_{slot}"] = (guess | truth).sum().float()
    return counts


def with_iou(means: dict[str, float]) -> dict[str, float]:
    """Means of an objective's scalars over steps and ranks, with IoU in the place of `overlaps`' counts."""
    kept = {name: value for name, value in means.items() if not name.startswith(("intersection_", "union_"))}
    for name, union in means.items():
        slot = name.removeprefix("union_")
        if slot != name and union > 0:
            kept[f"iou_{slot}"] = means[f"intersection_{slot}"] / union
    return kept
