"""RDE's training step for stages 1 to 3: five frames, two objects, a recurrent memory that learns to match a full one.

Source: RDE-VOS, Li et al. 2022. docs/rde.md lists what the published code does oddly and which option switches it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.masks import aggregate
from models.rde import KeyFeatures, Rde
from pipelines.types import VOID
from trainers.losses import (
    FrameWeighting,
    bootstrapped_cross_entropy,
    channel_divergence,
    frame_weights,
    hardest_share,
)

NUM_FRAMES = 5
SMALLEST_SIDE = 32
"""The SAM pools 2x2 positions of 16 pixels."""


@dataclass(frozen=True)
class RdeOptions:
    """Weights and switches of the objective; the defaults are the published ones."""

    name: Literal["rde"] = "rde"
    # Weights of the divergences: value of frame 0, decoder input of frames 2 and 4 (klloss, decoder_f2, decoder_f4).
    value_weight: float = 10.0
    frame_2_weight: float = 10.0
    frame_4_weight: float = 10.0
    temperature: float = 1.0
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
        if self.temperature <= 0 or min(self.value_weight, self.frame_2_weight, self.frame_4_weight) < 0:
            raise ValueError("temperature must be positive and no weight negative")
        numbers = (self.temperature, self.value_weight, self.frame_2_weight, self.frame_4_weight)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("temperature and weights must be finite")

    @staticmethod
    def require_clips(num_frames: int, size: tuple[int, int]) -> None:
        """Raise ValueError for clips the objective cannot train on. size: height and width in pixels."""
        if num_frames != NUM_FRAMES:
            raise ValueError(f"RDE trains on clips of {NUM_FRAMES} frames, got {num_frames}; set recipe.num_frames")
        if any(side % 16 or side < SMALLEST_SIDE for side in size):
            raise ValueError(
                f"RDE trains on frames whose sides are multiples of 16 and at least {SMALLEST_SIDE}, got "
                f"{size[0]}x{size[1]}; set recipe.size"
            )


class Segmentation(NamedTuple):
    """What one frame became: logits (B, 1 + K, H, W), probabilities (B, K, H, W), decoder_input (B, K, 1024, h, w)."""

    logits: Tensor
    probabilities: Tensor
    decoder_input: Tensor


class Unrolled(NamedTuple):
    """A clip, segmented: `judged` holds frames 1..4 as the losses see them, the rest is what the full memory reads."""

    judged: tuple[Segmentation, ...]
    full_input_2: Tensor
    full_input_4: Tensor


class Memory(NamedTuple):
    """key (B, 64, T, h, w), value (B, K, 512, T, h, w)."""

    key: Tensor
    value: Tensor

    def followed_by(self, other: Memory) -> Memory:
        """Both, one after the other in time."""
        return Memory(torch.cat([self.key, other.key], dim=2), torch.cat([self.value, other.value], dim=3))


class RdeObjective(nn.Module):
    """Model and losses as one module, so that one forward call is one training step."""

    def __init__(self, model: Rde, options: RdeOptions | None = None) -> None:
        super().__init__()
        self.model = model
        self.options = options or RdeOptions()

    def arguments(self, step: int) -> dict[str, float]:
        """What changes from step to step of a stage, as keyword arguments of `forward`."""
        options = self.options
        share = hardest_share(
            step, top_p=options.top_p, start_step=options.top_p_start_step, end_step=options.top_p_end_step
        )
        return {"top_p": share}

    def forward(
        self, images: Tensor, masks: Tensor, num_objects: Tensor, first_masks: Tensor, top_p: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch and its parts.

        images (B, 5, 3, H, W) normalised float, H and W multiples of 16; masks (B, 5, H, W) uint8 slots, 255 = void;
        num_objects (B,) int64; first_masks (B, K, H, W) float, frame 0 with damage; top_p in (0, 1].
        Returns the loss, a float32 scalar (the mean over clips), and detached scalars for the log (see `summarise`).
        Raises ValueError for another clip length or size.
        """
        self.options.require_clips(images.shape[1], (images.shape[3], images.shape[4]))
        in_use = slots_in_use(num_objects, first_masks.shape[1])
        features = self.model.encode_key(images)
        clean_masks = slot_masks(masks[:, 0], first_masks.shape[1])
        value, clean_value = self._first_values(images, features, first_masks, clean_masks)
        clip = self._unroll(images, features, value, in_use)
        frame_losses = self._frame_losses(clip, masks, num_objects, top_p)
        divergences = self._divergences(clip, value, clean_value, in_use)
        options = self.options
        weights = (options.value_weight, options.frame_2_weight, options.frame_4_weight)
        cross_entropy = _weighted(frame_losses, frame_weights(NUM_FRAMES, options.frame_weighting))
        loss = cross_entropy + _weighted(divergences, weights)
        metrics = {f"loss_frame_{frame}": frame_loss for frame, frame_loss in enumerate(frame_losses, start=1)}
        metrics |= dict(zip(("divergence_value", "divergence_2", "divergence_4"), divergences, strict=True))
        metrics |= {"cross_entropy": cross_entropy, "top_p": loss.new_tensor(top_p)}
        metrics |= overlaps([frame.probabilities for frame in clip.judged], masks[:, 1:])
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def _first_values(
        self, images: Tensor, features: KeyFeatures, damaged: Tensor, clean: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Values of frame 0 for damaged and clean masks, each (B, K, 512, 1, h, w), in one pass of 2B images."""
        image, f16 = images[:, 0], features.f16[:, 0]
        both = self.model.encode_value(
            torch.cat([image, image]), torch.cat([f16, f16]), torch.cat([damaged, clean.to(damaged.dtype)])
        )
        first, second = both.chunk(2)
        return first, second

    def _unroll(self, images: Tensor, features: KeyFeatures, first_value: Tensor, in_use: Tensor) -> Unrolled:
        """Segment frames 1..4, remembering what was segmented. Nothing is detached, nothing replaced by the truth."""

        def remembered(frame: int, masks: Tensor) -> Memory:
            value = self.model.encode_value(images[:, frame], features.f16[:, frame], masks)
            return Memory(features.key[:, :, frame : frame + 1], value)

        full = Memory(features.key[:, :, :1], first_value)
        frame_1 = self._segment(features, 1, full, in_use)
        full = full.followed_by(remembered(1, frame_1.probabilities))

        compressed = Memory(*self.model.compress(*full))
        frame_2 = self._segment(features, 2, compressed, in_use)
        full_2 = self._segment(features, 2, full, in_use)  # not judged, but its mask is what frame 2 is remembered with
        memory_2 = remembered(2, full_2.probabilities)
        full = full.followed_by(memory_2)

        frame_3 = self._segment(features, 3, full, in_use)
        memory_3 = remembered(3, frame_3.probabilities)
        full = full.followed_by(memory_3)

        compressed = Memory(*self.model.compress(*compressed.followed_by(memory_2)))
        compressed = Memory(*self.model.compress(*compressed.followed_by(memory_3)))
        frame_4 = self._segment(features, 4, compressed, in_use)
        # The published code decodes this read as well and drops the result.
        full_input_4 = self._read(features, 4, full)
        return Unrolled((frame_1, frame_2, frame_3, frame_4), full_2.decoder_input, full_input_4)

    def _read(self, features: KeyFeatures, frame: int, memory: Memory) -> Tensor:
        """Decoder input (B, K, 1024, h, w) of `frame` from `memory`."""
        query = features.frame(frame)
        return self.model.read(memory.key, memory.value, query.key, query.thin)

    def _segment(self, features: KeyFeatures, frame: int, memory: Memory, in_use: Tensor) -> Segmentation:
        decoder_input = self._read(features, frame, memory)
        query = features.frame(frame)
        logits, probabilities = aggregate(self.model.decode(decoder_input, query.f8, query.f4), in_use)
        return Segmentation(logits, probabilities, decoder_input)

    def _frame_losses(self, clip: Unrolled, masks: Tensor, num_objects: Tensor, top_p: float) -> list[Tensor]:
        """Mean over the clips of each judged frame's cross-entropy, frames 1..4."""
        return [
            bootstrapped_cross_entropy(frame.logits, masks[:, number], num_objects, top_p).mean()
            for number, frame in enumerate(clip.judged, start=1)
        ]

    def _divergences(self, clip: Unrolled, value: Tensor, clean_value: Tensor, in_use: Tensor) -> list[Tensor]:
        """Of the value of frame 0 (damaged | clean) and the decoder inputs of frames 2 and 4 (compressed | full)."""
        pairs = (
            (value, clean_value),
            (clip.judged[1].decoder_input, clip.full_input_2),
            (clip.judged[3].decoder_input, clip.full_input_4),
        )
        return [self._divergence(student, teacher, in_use) for student, teacher in pairs]

    def _divergence(self, student: Tensor, teacher: Tensor, in_use: Tensor) -> Tensor:
        """Sum over slots, mean over clips. student, teacher (B, K, C, ...)."""
        teacher = teacher if self.options.teacher_gradient else teacher.detach()
        rows = channel_divergence(student.flatten(0, 1), teacher.flatten(0, 1), self.options.temperature, dim=1)
        slots = rows.view(in_use.shape)  # (B, K)
        return (slots if self.options.absent_objects_diverge else slots * in_use).sum(1).mean()

    @staticmethod
    def summarise(means: dict[str, float]) -> dict[str, float]:
        """Means of `forward`'s scalars over steps and ranks -> what is reported: pixel counts become IoU."""
        kept = {name: value for name, value in means.items() if not name.startswith(("intersection_", "union_"))}
        for name, union in means.items():
            slot = name.removeprefix("union_")
            if slot != name and union > 0:
                kept[f"iou_{slot}"] = means[f"intersection_{slot}"] / union
        return kept


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


def _weighted(terms: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum()
