"""RDE's training step for stage 0: synthetic frames of a still image, one object, no recurrent memory.

Published clips have three frames; longer ones go on in the same way.
Source: RDE-VOS, Li et al. 2022. docs/rde.md lists what the published code does oddly and which option switches it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from models.rde import Rde
from pipelines.types import Batch
from trainers.objectives.losses import frame_weights
from trainers.objectives.rde_parts import (
    Clip,
    CommonOptions,
    divergence,
    frame_losses,
    overlaps,
    require_clips,
    slot_masks,
    slots_in_use,
    weighted_sum,
    with_iou,
)

LEAST_FRAMES = 2
SMALLEST_SIDE = 16


@dataclass(frozen=True)
class RdeStillOptions(CommonOptions):
    """Weights and switches of the objective; the defaults are the published ones, of stage 0."""

    still: ClassVar[bool] = True
    name: Literal["rde_still"] = "rde_still"
    top_p_start_step: int = 5_000
    top_p_end_step: int = 17_500

    @staticmethod
    def require_clips(num_frames: int, size: tuple[int, int]) -> None:
        """Raise ValueError for clips the objective cannot train on. size: height and width in pixels."""
        require_clips((num_frames, size), least_frames=LEAST_FRAMES, smallest_side=SMALLEST_SIDE)


class RdeStillObjective(nn.Module):
    """Model and losses as one module, so that one forward call is one training step."""

    def __init__(self, model: Rde, options: RdeStillOptions | None = None) -> None:
        super().__init__()
        self.model = model
        self.options = options or RdeStillOptions()

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

        images (B, T, 3, H, W) normalised float, H and W multiples of 16; masks (B, T, H, W) uint8 slots, 255 = void;
        num_objects (B,) int64; first_masks (B, K, H, W) float in 0..1, frame 0 with damage; top_p in (0, 1];
        clean_masks (B, K, H, W) float in 0..1: frame 0 without damage, None where `masks` says it.
        Returns the loss, a float32 scalar (the mean over clips), and detached scalars for the log (see `summarise`).
        Raises ValueError for fewer than two frames and for another size.
        """
        num_frames = images.shape[1]
        self.options.require_clips(num_frames, (images.shape[3], images.shape[4]))
        in_use = slots_in_use(num_objects, first_masks.shape[1])
        clip = Clip(self.model, images, self.model.encode_key(images), in_use)
        clean = slot_masks(masks[:, 0], first_masks.shape[1]) if clean_masks is None else clean_masks
        value, clean_value = clip.first_values(first_masks, clean)
        memory = clip.with_key(0, value)
        judged = [clip.segment(1, memory)]
        for frame in range(2, num_frames):
            memory = memory.followed_by(clip.remember(frame - 1, judged[-1].probabilities))
            judged.append(clip.segment(frame, memory))
        losses = frame_losses(tuple(judged), masks, num_objects, top_p)
        value_divergence = divergence(value, clean_value, in_use, self.options)
        cross_entropy = weighted_sum(losses, frame_weights(num_frames, self.options.frame_weighting))
        loss = cross_entropy + weighted_sum([value_divergence], self.options.weights)
        metrics = {f"loss_frame_{frame}": frame_loss for frame, frame_loss in enumerate(losses, start=1)}
        metrics |= {"divergence_value": value_divergence, "cross_entropy": cross_entropy}
        metrics |= {"top_p": loss.new_tensor(top_p)}
        metrics |= overlaps([seen.probabilities for seen in judged], masks[:, 1:])
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    @staticmethod
    def summarise(means: dict[str, float]) -> dict[str, float]:
        """Means of `forward`'s scalars over steps and ranks -> what is reported: pixel counts become IoU."""
        return with_iou(means)
