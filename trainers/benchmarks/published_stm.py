"""STM-Cycle's published training step, structure and all: the alternative that ours is measured against.

A transcription of how the released code spends its time, made from its description, over the same network and weights:
clips one by one, every frame encoded as a query each time it is segmented, ways back to the first frame one by one,
one-hot labels, a full sort of the pixel losses.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.masks import aggregate_probabilities
from models.stm import Refinement, Stm


class PublishedStmStep(nn.Module):
    """Called as StmCycleObjective and equal to it in loss and gradients, with its default options.

    Every clip must show its objects in frame 0: where none is there the published loss is NaN.
    """

    def __init__(self, model: Stm) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, masks: Tensor, num_objects: Tensor, first_masks: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch; see StmCycleObjective.forward."""
        slots = torch.arange(first_masks.shape[1] + 1, device=masks.device)
        losses = []
        for frames, labels, number in zip(images, masks, num_objects.tolist(), strict=True):
            one_hot = (labels[:, None] == slots[:, None, None]).float()  # (T, 1 + K, H, W)
            losses.append(self._clip(frames, one_hot, number))
        return torch.stack(losses).mean(), {}

    def _clip(self, frames: Tensor, one_hot: Tensor, number: int) -> Tensor:
        keys, values, found = [], [], one_hot[:1]
        total = frames.new_zeros(())
        for time in range(1, len(frames)):
            key, value = self._memorise(frames[time - 1 : time], found, number)
            keys.append(key)
            values.append(value)
            found = self._segment(frames[time : time + 1], torch.cat(keys, 1), torch.cat(values, 1), one_hot.shape[1])
            total = total + clip_loss(found, one_hot[time : time + 1], number, one_hot[0])
        key, value = self._memorise(frames[-1:], found, number)
        keys.append(key)
        values.append(value)
        for time in range(len(frames) - 1, 0, -1):
            if int(one_hot[time].flatten(1).any(1).nonzero().max()) == number:
                back = self._segment(frames[:1], keys[time], values[time], one_hot.shape[1])
                total = total + clip_loss(back, one_hot[:1], number, one_hot[time])
        return total / (len(frames) - 1)

    def _memorise(self, frame: Tensor, masks: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Frame (1, 3, H, W), masks (1, 1 + K, H, W) -> keys (number, h*w, C), values (number, h*w, D)."""
        encoder = self.model.Encoder_M
        own = masks[0, 1 : number + 1, None]
        repeated = frame.expand(number, -1, -1, -1)
        stem = encoder.conv1(repeated) + encoder.conv1_m(own) + encoder.conv1_bg((1 - own).clamp(0, 1))
        key, value = self.model.KV_M_r4(encoder.stages(stem)[0])
        return key.flatten(2).transpose(1, 2), value.flatten(2).transpose(1, 2)

    def _segment(self, frame: Tensor, keys: Tensor, values: Tensor, num_channels: int) -> Tensor:
        """Probabilities (1, 1 + K, H, W)."""
        r4, r3, r2 = self.model.Encoder_Q(frame)
        key, value = (part.expand(len(keys), -1, -1, -1) for part in self.model.KV_Q_r4(r4))
        weights = (keys @ key.flatten(2) / math.sqrt(keys.shape[2])).softmax(1)
        readout = (values.transpose(1, 2) @ weights).view_as(value)
        decoder = self.model.Decoder
        at_16 = decoder.ResMM(decoder.convFM(torch.cat([readout, value], 1)))
        at_4 = _refine(decoder.RF2, _refine(decoder.RF3, at_16, r3), r2)
        two = F.interpolate(decoder.pred2(F.relu(at_4)), frame.shape[2:], mode="bilinear", align_corners=False)
        found = two.softmax(1)[:, 1]
        absent = found.new_zeros(num_channels - 1 - len(found), *found.shape[1:])
        return aggregate_probabilities(torch.cat([found, absent])[None]).softmax(1)


def _refine(block: Refinement, coarse: Tensor, features: Tensor) -> Tensor:
    skip = block.ResFS(block.convFS(features))
    grown = F.interpolate(coarse, skip.shape[2:], mode="bilinear", align_corners=False)
    refined: Tensor = block.ResMM(skip + grown)
    return refined


def clip_loss(found: Tensor, truth: Tensor, number: int, reference: Tensor) -> Tensor:
    """Cross-entropy and IoU loss of one frame: found, truth (1, 1 + K, H, W), reference (1 + K, H, W) one-hot."""
    seen = reference[: number + 1].flatten(1).any(1)
    channels = -found[0, : number + 1].log() * truth[0, : number + 1] * seen[:, None, None]
    pixels = channels.sum(0).flatten().sort(descending=True).values
    cross_entropy = pixels[: math.floor(0.4 * len(pixels))].mean()
    smaller = torch.minimum(found, truth).flatten(2).sum(2)[0, 1 : number + 1]
    larger = torch.maximum(found, truth).flatten(2).sum(2)[0, 1 : number + 1]
    return cross_entropy + (1 - smaller / larger)[seen[1:]].mean()
