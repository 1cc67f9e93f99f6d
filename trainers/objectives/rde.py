"""RDE's training step for stages 1 to 3: a recurrent memory that learns to match a full one, over clips of two objects.

Published clips have five frames; longer ones go on in the same way.
Source: RDE-VOS, Li et al. 2022. docs/rde.md lists what the published code does oddly and which option switches it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
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

LEAST_FRAMES = 3
"""Frame 2 is the first that is read from a compressed memory; without it the SAM would learn nothing."""
SMALLEST_SIDE = 32
"""The SAM pools 2x2 positions of 16 pixels."""


@dataclass(frozen=True)
class RdeObjectiveOptions(CommonOptions):
    """Weights and switches of the objective; the defaults are the published ones."""

    still: ClassVar[bool] = False
    name: Literal["rde"] = "rde"
    # Weights of the divergences of the decoder inputs of frame 2, and of frame 4 and later even ones (decoder_f2, _f4).
    frame_2_weight: float = 10.0
    frame_4_weight: float = 10.0

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the divergences of the value of frame 0 and the decoder inputs of frames 2 and 4."""
        return (self.value_weight, self.frame_2_weight, self.frame_4_weight)

    def weights_of(self, num_frames: int) -> tuple[float, ...]:
        """Of the divergences of a clip: the value of frame 0, then the decoder inputs of its even frames."""
        first, second, later = self.weights
        return (first, second, *(later for _ in range(4, num_frames, 2)))

    @staticmethod
    def require_clips(num_frames: int, size: tuple[int, int]) -> None:
        """Raise ValueError for clips the objective cannot train on. size: height and width in pixels."""
        require_clips((num_frames, size), least_frames=LEAST_FRAMES, smallest_side=SMALLEST_SIDE)


class Unrolled(NamedTuple):
    """A clip, segmented: `judged` holds frames 1 .. T - 1 as the losses see them.

    full_inputs: even frame -> its decoder input as the full memory has it.
    """

    judged: tuple[Segmentation, ...]
    full_inputs: dict[int, Tensor]


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

        images (B, T, 3, H, W) normalised float, H and W multiples of 16; masks (B, T, H, W) uint8 slots, 255 = void;
        num_objects (B,) int64; first_masks (B, K, H, W) float, frame 0 with damage; top_p in (0, 1]; clean_masks
        (B, K, H, W) float: frame 0 without damage, None where `masks` says it.
        Returns the loss, a float32 scalar (the mean over clips), and detached scalars for the log (see `summarise`).
        Raises ValueError for fewer than three frames and for another size.
        """
        num_frames = images.shape[1]
        self.options.require_clips(num_frames, (images.shape[3], images.shape[4]))
        in_use = slots_in_use(num_objects, first_masks.shape[1])
        clip = Clip(self.model, images, self.model.encode_key(images), in_use)
        clean = slot_masks(masks[:, 0], first_masks.shape[1]) if clean_masks is None else clean_masks
        value, clean_value = clip.first_values(first_masks, clean)
        seen = unroll(clip, value, num_frames)
        losses = frame_losses(seen.judged, masks, num_objects, top_p)
        pairs = {"value": (value, clean_value)}
        pairs |= {f"{at}": (seen.judged[at - 1].decoder_input, given) for at, given in seen.full_inputs.items()}
        divergences = {name: divergence(*pair, in_use, self.options) for name, pair in pairs.items()}
        cross_entropy = weighted_sum(losses, frame_weights(num_frames, self.options.frame_weighting))
        loss = cross_entropy + weighted_sum([*divergences.values()], self.options.weights_of(num_frames))
        metrics = {f"loss_frame_{frame}": frame_loss for frame, frame_loss in enumerate(losses, start=1)}
        metrics |= {f"divergence_{name}": value for name, value in divergences.items()}
        metrics |= {"cross_entropy": cross_entropy, "top_p": loss.new_tensor(top_p)}
        metrics |= overlaps([frame.probabilities for frame in seen.judged], masks[:, 1:])
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    @staticmethod
    def summarise(means: dict[str, float]) -> dict[str, float]:
        """Means of `forward`'s scalars over steps and ranks -> what is reported: pixel counts become IoU."""
        return with_iou(means)


def unroll(clip: Clip, first_value: Tensor, num_frames: int) -> Unrolled:
    """Segment frames 1 .. T - 1, odd ones from all frames before them, even ones from these compressed to one.

    Every frame but the last is remembered with what was segmented, nothing is detached, nothing replaced by the truth.
    """
    full = clip.with_key(0, first_value)
    judged, full_inputs = [], {}
    # The compressed memory, and what it lacks of the full one.
    parts = [full]
    for frame in range(1, num_frames):
        if frame % 2:
            seen = shown = clip.segment(frame, full)
        else:
            parts = [reduce(lambda old, new: clip.compress(old.followed_by(new)), parts)]
            if frame + 1 == num_frames:
                # The published code decodes this read as well and drops the result.
                full_inputs[frame] = clip.read(frame, full)
                judged.append(clip.segment(frame, parts[0]))
                break
            # What the full memory shows is not judged, but its mask is what the frame is remembered with.
            seen, shown = clip.segment_from(frame, parts[0], full)
            full_inputs[frame] = shown.decoder_input
        judged.append(seen)
        if frame + 1 < num_frames:
            parts.append(clip.remember(frame, shown.probabilities))
            full = full.followed_by(parts[-1])
    return Unrolled(tuple(judged), full_inputs)
