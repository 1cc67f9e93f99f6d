"""RDE's training step for stages 1 to 3: five frames, two objects, a recurrent memory that learns to match a full one.

Source: RDE-VOS, Li et al. 2022. docs/rde.md lists what the published code does oddly and which option switches it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from models.rde import Rde
from pipelines.types import Batch
from trainers.objectives.losses import frame_weights
from trainers.objectives.rde_parts import (
    Clip,
    CommonOptions,
    Segmentation,
    divergence,
    frame_losses,
    overlaps,
    require_clips,
    slot_masks,
    slots_in_use,
    weighted_sum,
    with_iou,
)

NUM_FRAMES = 5
SMALLEST_SIDE = 32
"""The SAM pools 2x2 positions of 16 pixels."""


@dataclass(frozen=True)
class RdeObjectiveOptions(CommonOptions):
    """Weights and switches of the objective; the defaults are the published ones."""

    still: ClassVar[bool] = False
    name: Literal["rde"] = "rde"
    # Weights of the divergences of the decoder inputs of frames 2 and 4 (decoder_f2, decoder_f4).
    frame_2_weight: float = 10.0
    frame_4_weight: float = 10.0

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the divergences of the value of frame 0 and the decoder inputs of frames 2 and 4."""
        return (self.value_weight, self.frame_2_weight, self.frame_4_weight)

    @staticmethod
    def require_clips(num_frames: int, size: tuple[int, int]) -> None:
        """Raise ValueError for clips the objective cannot train on. size: height and width in pixels."""
        require_clips((num_frames, size), num_frames=NUM_FRAMES, smallest_side=SMALLEST_SIDE)


class Unrolled(NamedTuple):
    """A clip, segmented: `judged` holds frames 1..4 as the losses see them, the rest is what the full memory reads."""

    judged: tuple[Segmentation, ...]
    full_input_2: Tensor
    full_input_4: Tensor


class RdeObjective(nn.Module):
    """Model and losses as one module, so that one forward call is one training step."""

    def __init__(self, model: Rde, options: RdeObjectiveOptions | None = None) -> None:
        super().__init__()
        self.model = model
        self.options = options or RdeObjectiveOptions()

    def arguments(self, batch: Batch) -> dict[str, float]:
        """What changes from batch to batch of a stage, as keyword arguments of `forward`."""
        return {"top_p": self.options.share_at(batch.step)}

    def forward(
        self,
        images: Tensor,
        masks: Tensor,
        num_objects: Tensor,
        first_masks: Tensor,
        *,
        top_p: float,
        clean_masks: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch and its parts.

        images (B, 5, 3, H, W) normalised float, H and W multiples of 16; masks (B, 5, H, W) uint8 slots, 255 = void;
        num_objects (B,) int64; first_masks (B, K, H, W) float, frame 0 with damage; top_p in (0, 1]; clean_masks
        (B, K, H, W) float: frame 0 without damage, None where `masks` says it.
        Returns the loss, a float32 scalar (the mean over clips), and detached scalars for the log (see `summarise`).
        Raises ValueError for another clip length or size.
        """
        self.options.require_clips(images.shape[1], (images.shape[3], images.shape[4]))
        in_use = slots_in_use(num_objects, first_masks.shape[1])
        clip = Clip(self.model, images, self.model.encode_key(images), in_use)
        clean = slot_masks(masks[:, 0], first_masks.shape[1]) if clean_masks is None else clean_masks
        value, clean_value = clip.first_values(first_masks, clean)
        seen = unroll(clip, value)
        losses = frame_losses(seen.judged, masks, num_objects, top_p)
        pairs = (
            (value, clean_value),
            (seen.judged[1].decoder_input, seen.full_input_2),
            (seen.judged[3].decoder_input, seen.full_input_4),
        )
        divergences = [divergence(student, teacher, in_use, self.options) for student, teacher in pairs]
        cross_entropy = weighted_sum(losses, frame_weights(NUM_FRAMES, self.options.frame_weighting))
        loss = cross_entropy + weighted_sum(divergences, self.options.weights)
        metrics = {f"loss_frame_{frame}": frame_loss for frame, frame_loss in enumerate(losses, start=1)}
        metrics |= dict(zip(("divergence_value", "divergence_2", "divergence_4"), divergences, strict=True))
        metrics |= {"cross_entropy": cross_entropy, "top_p": loss.new_tensor(top_p)}
        metrics |= overlaps([frame.probabilities for frame in seen.judged], masks[:, 1:])
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    @staticmethod
    def summarise(means: dict[str, float]) -> dict[str, float]:
        """Means of `forward`'s scalars over steps and ranks -> what is reported: pixel counts become IoU."""
        return with_iou(means)


def unroll(clip: Clip, first_value: Tensor) -> Unrolled:
    """Segment frames 1..4, remembering what was segmented. Nothing is detached, nothing replaced by the truth."""
    full = clip.with_key(0, first_value)
    frame_1 = clip.segment(1, full)
    full = full.followed_by(clip.remember(1, frame_1.probabilities))

    compressed = clip.compress(full)
    # What the full memory shows is not judged, but its mask is what frame 2 is remembered with.
    frame_2, full_2 = clip.segment_from(2, compressed, full)
    memory_2 = clip.remember(2, full_2.probabilities)
    full = full.followed_by(memory_2)

    frame_3 = clip.segment(3, full)
    memory_3 = clip.remember(3, frame_3.probabilities)
    full = full.followed_by(memory_3)

    compressed = clip.compress(compressed.followed_by(memory_2))
    compressed = clip.compress(compressed.followed_by(memory_3))
    frame_4 = clip.segment(4, compressed)
    # The published code decodes this read as well and drops the result.
    full_input_4 = clip.read(4, full)
    return Unrolled((frame_1, frame_2, frame_3, frame_4), full_2.decoder_input, full_input_4)
