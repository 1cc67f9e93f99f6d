"""RDE's published training step of stages 1 to 3, structure and all: the alternative that ours is measured against.

A transcription of how the released code spends its time, made from its description, over the same network and weights:
values and decoder passes run one object at a time on joined channels, frame 4 is decoded once more for nothing, the
cross-entropy goes sample by sample, and every logged number is fetched from the device at every step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.masks import aggregate
from models.rde import FrameFeatures, Rde
from trainers.objectives.rde import RdeObjectiveOptions
from trainers.objectives.rde_parts import Memory, Segmentation, slot_masks, slots_in_use

NUM_FRAMES = 5


class PublishedStep(nn.Module):
    """Called as RdeObjective and equal to it in loss and gradients, for two slots and label maps without void."""

    def __init__(self, model: Rde, options: RdeObjectiveOptions | None = None) -> None:
        super().__init__()
        self.model = model
        self.options = options or RdeObjectiveOptions()
        self.logged: dict[str, float] = {}

    def forward(
        self, images: Tensor, masks: Tensor, num_objects: Tensor, first_masks: Tensor, *, top_p: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch; see RdeObjective.forward."""
        in_use = slots_in_use(num_objects, 2)
        all_features = self.model.encode_key(images)
        frames = [all_features.frame(frame) for frame in range(NUM_FRAMES)]
        value = self._values(images[:, 0], frames[0], first_masks)
        clean_value = self._values(images[:, 0], frames[0], slot_masks(masks[:, 0], 2))
        judged, pairs = self._unroll(images, frames, value, in_use)
        divergences = [self._divergence(*pair) for pair in ((value, clean_value), *pairs)]
        losses = [self._cross_entropy(s.logits, masks[:, t], num_objects, top_p) for t, s in enumerate(judged, start=1)]
        total = losses[0].new_zeros(())
        for loss in losses:
            total = (total + loss) / 2
        for weight, term in zip(self.options.weights, divergences, strict=True):
            total = total + weight * term
        self._log([*losses, total, *divergences, *self._counts(judged, masks)])
        return total, {}

    def _unroll(
        self, images: Tensor, frames: list[FrameFeatures], value: Tensor, in_use: Tensor
    ) -> tuple[list[Segmentation], list[tuple[Tensor, Tensor]]]:
        """Segmentations of frames 1..4 and (student, teacher) of frames 2 and 4."""
        bank = Memory(frames[0].key[:, :, None], value)
        frame_1 = self._segment(frames[1], bank, in_use)
        bank = bank.followed_by(self._remember(images[:, 1], frames[1], frame_1))
        thin = Memory(*self.model.compress(*bank))
        frame_2, full_2 = self._segment(frames[2], thin, in_use), self._segment(frames[2], bank, in_use)
        memory_2 = self._remember(images[:, 2], frames[2], full_2)
        bank = bank.followed_by(memory_2)
        frame_3 = self._segment(frames[3], bank, in_use)
        memory_3 = self._remember(images[:, 3], frames[3], frame_3)
        bank = bank.followed_by(memory_3)
        for memory in (memory_2, memory_3):
            thin = Memory(*self.model.compress(*thin.followed_by(memory)))
        frame_4, full_4 = self._segment(frames[4], thin, in_use), self._segment(frames[4], bank, in_use)
        pairs = [(s.decoder_input, t.decoder_input) for s, t in ((frame_2, full_2), (frame_4, full_4))]
        return [frame_1, frame_2, frame_3, frame_4], pairs

    def _values(self, image: Tensor, features: FrameFeatures, masks: Tensor) -> Tensor:
        """(B, 2, 512, 1, h, w), one pass per object over [image, mask, other mask] and [features, f16]."""
        encoder, values = self.model.value_encoder, []
        for own, other in ((0, 1), (1, 0)):
            inputs = torch.cat([image, masks[:, own, None], masks[:, other, None]], 1)
            fused = encoder.fuser.block1(torch.cat([encoder.features(inputs), features.f16], 1))
            values.append(encoder.fuser.block2(fused + encoder.fuser.attention(fused)))
        return torch.stack(values, 1).unsqueeze(3)

    def _remember(self, image: Tensor, features: FrameFeatures, seen: Segmentation) -> Memory:
        return Memory(features.key[:, :, None], self._values(image, features, seen.probabilities))

    def _segment(self, query: FrameFeatures, memory: Memory, in_use: Tensor) -> Segmentation:
        inputs = self.model.read(memory.key, memory.value, query.key, query.thin)
        logits = [self._decode(inputs[:, slot], query) for slot in range(2)]
        joined, probabilities = aggregate(torch.cat(logits, 1), in_use)
        return Segmentation(joined, probabilities, inputs)

    def _decode(self, inputs: Tensor, query: FrameFeatures) -> Tensor:
        """Logits (B, 1, H, W) of one object from its joined channels (B, 1024, h, w)."""
        decoder = self.model.decoder
        at_4 = decoder.up_8_4(decoder.up_16_8(decoder.compress(inputs), query.f8), query.f4)
        return F.interpolate(decoder.pred(F.relu(at_4)), scale_factor=4, mode="bilinear", align_corners=False)

    def _cross_entropy(self, logits: Tensor, labels: Tensor, num_objects: Tensor, top_p: float) -> Tensor:
        losses = []
        for sample, channels in enumerate(2 + (num_objects > 1).long().cpu()):
            pixels = F.cross_entropy(
                logits[sample : sample + 1, : int(channels)], labels[sample : sample + 1].long(), reduction="none"
            ).flatten()
            kept = pixels if top_p == 1.0 else pixels.topk(int(pixels.numel() * top_p), sorted=False).values
            losses.append(kept.mean())
        return torch.stack(losses).mean()

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        temperature = self.options.temperature
        terms = [
            F.kl_div(
                F.log_softmax(student[:, slot].float() / temperature, 1),
                F.softmax(teacher[:, slot].float() / temperature, 1),
                reduction="none",  # then the mean over all elements, as the library's reduction "mean" is still defined
            ).mean()
            for slot in range(2)
        ]
        return temperature**2 * (terms[0] + terms[1])

    @staticmethod
    def _counts(judged: list[Segmentation], masks: Tensor) -> list[Tensor]:
        found = torch.stack([s.probabilities for s in judged], 1) > 0.5  # (B, 4, 2, H, W)
        counts = []
        for slot in range(2):
            guess, truth = found[:, :, slot], masks[:, 1:] == slot + 1
            counts += [(guess & truth).sum(), (guess | truth).sum()]
        return counts

    def _log(self, numbers: list[Tensor]) -> None:
        """Fetch each number from the device, as the published step does whether or not a report is due."""
        self.logged = {str(position): number.item() for position, number in enumerate(numbers)}
