"""MTMFI and FRTM follow objects with target models that are fitted in their first frame and refitted on the way.

Source: FRTM, Robinson et al. 2020, and MTMFI. Every frame matters: each is scored, memorised, and counted to a refit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from models.masks import aggregate_probabilities
from models.mtmfi import Mtmfi
from models.refiner import Variant
from models.target_memory import Growth
from models.target_models import TargetModels, TargetOptions
from pipelines.first_frame.plans import FirstFrameOptions, Hole, plan_first_frame
from pipelines.order.streams import Stream, StreamName, stream_key
from trainers.targets.fits import fit_targets

Merging = Literal["published", "once", "raw", "soft"]
CLAMP = 1e-7
STREAMS = stream_key(0, "first frames of segmentation")
"""The published programs seed with 0 before every object."""


@dataclass(frozen=True, slots=True)
class MtmfiOptions:
    """How objects are followed; the defaults are the published ones of the variant that the weights are of.

    num_channels: of the target models after projection (None: 64, FRTM 96). growth: of the newest sample's weight
    (None: the variant's). forgetting_rate: 75 in FRTM's program for YouTube-VOS. fast: fewer iterations, as was meant.
    capacity: samples in memory. refit_every: frames. num_samples, hole: of the first frame, see FirstFrameOptions.
    merging: how objects share the pixels. `published` takes a softmax of odds, keeps each pixel's winner, and does the
    same again for the output; `once` outputs the first softmax; `raw` outputs the probabilities as they are, given
    masks pasted in, as FRTM's program for YouTube-VOS; all three memorise the winner's part. `soft` is STM's
    aggregation for both. objects_at_once: how many go through the refiner together. amp: autocast of trunk and refiner.
    """

    num_channels: int | None = None
    growth: Growth | None = None
    forgetting_rate: float = 750.0
    fast: bool = False
    capacity: int = 80
    refit_every: int = 8
    num_samples: int = 5
    hole: Hole = "telea"
    merging: Merging = "published"
    objects_at_once: int = 8
    amp: bool = False

    def __post_init__(self) -> None:
        """Refuse an unknown merging and numbers that fit nothing."""
        if self.merging not in get_args(Merging):
            raise ValueError(f"unknown merging {self.merging!r}; choose one of {', '.join(get_args(Merging))}")
        if self.objects_at_once < 1:
            raise ValueError(f"objects_at_once is {self.objects_at_once}, expected at least 1")
        _ = self.targets("bise"), self.augmentation

    def targets(self, variant: Variant) -> TargetOptions:
        """How target models are fitted for weights of a variant."""
        is_frtm = variant == "frtm"
        options = TargetOptions(
            num_channels=self.num_channels or (96 if is_frtm else 64),
            forgetting_rate=self.forgetting_rate,
            capacity=self.capacity,
            refit_every=self.refit_every,
            growth=self.growth or ("frtm" if is_frtm else "mtmfi"),
        )
        return options.faster() if self.fast else options

    @property
    def augmentation(self) -> FirstFrameOptions:
        """How the samples of a first frame are made."""
        return FirstFrameOptions(num_samples=self.num_samples, hole=self.hole)

    def memorised(self, num_frames: int, starts: Collection[int]) -> frozenset[int]:
        """See SegmenterOptions: all from the first start on."""
        return frozenset(range(min(starts), num_frames))


class Merged(NamedTuple):
    """What is shown, (1, 1+O, H, W), and what each object's target models learn from, (O, H, W)."""

    shown: Tensor
    memorised: Tensor


class MtmfiSegmenter:
    """Target models for each set of objects that begin together; the network may be shared by threads.

    The memory takes a frame when the next one arrives, because objects may still begin in it.
    """

    def __init__(self, model: Mtmfi, options: MtmfiOptions) -> None:
        self._model = model.eval()
        self._options, self._targets = options, options.targets(model.refiner.variant)
        self._groups: list[TargetModels] = []
        self._image: Tensor | None = None
        self._separate: Tensor | None = None
        self._waiting: list[tuple[TargetModels, Tensor]] = []

    def start(self, image: Tensor, masks: Tensor) -> None:
        """See Segmenter."""
        with torch.inference_mode():
            self._groups, self._image = [], image
            self._separate, self._waiting = None, []
            self._groups.append(self._fit(image, masks[0]))

    def step(self, image: Tensor, *, skipped: int = 0) -> Tensor:
        """See Segmenter. Frames that are not shown are as if they did not exist."""
        with torch.inference_mode():
            for group, masks in self._waiting:
                group.update(masks)
            self._image = image
            self._separate = self._segment(image)
            return self._merge()

    def add(self, masks: Tensor, *, given_again: Tensor) -> Tensor:
        """See Segmenter. Inside the new masks the older objects vanish; then all are merged."""
        if self._image is None or self._separate is None:
            raise ValueError("add() needs a frame: call start() for a video's first objects")
        with torch.inference_mode():
            new = masks[0].to(self._separate.dtype)
            self._separate = torch.cat([self._separate * (1 - new.amax(0)), new])
            shown = self._merge()  # before the new group is there: it has not scored this frame, nor learns from it
            self._groups.append(self._fit(self._image, masks[0]))
            return shown

    def _merge(self) -> Tensor:
        """What is shown of the frame in work; its groups learn from it when the next frame comes."""
        assert self._separate is not None
        merged = merge(self._separate, self._options.merging)
        sizes = [group.num_objects for group in self._groups]
        self._waiting = list(zip(self._groups, merged.memorised[: sum(sizes)].split(sizes), strict=True))
        return merged.shown

    def _fit(self, image: Tensor, masks: Tensor) -> TargetModels:
        """Target models of the objects of masks (O, H, W)."""
        augmentation, size = self._options.augmentation, (image.shape[2], image.shape[3])
        plans = [
            plan_first_frame(Stream(STREAMS, StreamName.FIRST_FRAME, number), size, augmentation)
            for number in range(len(masks))
        ]
        fits = fit_targets(self._model, image, masks, plans, augmentation=augmentation, options=self._targets)
        return TargetModels(fits, self._targets)

    def _segment(self, image: Tensor) -> Tensor:
        """Probabilities (O, H, W) of every object by itself."""
        size = (image.shape[2], image.shape[3])
        with self._autocast(image):
            features = self._model.look(image)
            read = self._model.target_features(features)
            by_group = [group.score(read) for group in self._groups]
            scores = [torch.cat(level) for level in zip(*by_group, strict=True)]
            parts = zip(*(level.split(self._options.objects_at_once) for level in scores), strict=True)
            logits = torch.cat([self._model.refine(features, part, size) for part in parts])
        return logits[:, 0].float().sigmoid()

    def _autocast(self, image: Tensor) -> torch.autocast:
        dtype = torch.float16 if image.is_cuda else torch.bfloat16
        return torch.autocast(image.device.type, dtype, enabled=self._options.amp)


def merge(separate: Tensor, merging: Merging) -> Merged:
    """Objects that share the pixels, from each one's own probabilities (O, H, W); see MtmfiOptions."""
    if merging == "soft":
        probabilities = aggregate_probabilities(separate[None]).softmax(1)
        return Merged(probabilities, probabilities[0, 1:])
    shares = _softmax_of_odds(separate)
    # Of equal shares the first wins, as in argmax: two objects sure of a pixel do not both learn that it is theirs.
    first = shares.argmax(0, keepdim=True)
    winners = torch.zeros_like(shares).scatter(0, first, shares.gather(0, first))
    if merging == "once" or (merging == "published" and len(separate) == 1):
        return Merged(shares[None], winners[1:])
    if merging == "published":
        return Merged(_softmax_of_odds(winners[1:])[None], winners[1:])
    background = (1 - separate).amin(0, keepdim=True)
    return Merged(torch.cat([background, separate])[None], winners[1:])


def _softmax_of_odds(probabilities: Tensor) -> Tensor:
    """(1+O, H, W), background first, of (O, H, W): softmax of p / (1 - p), the odds and not their logarithm."""
    clamped = probabilities.clamp(CLAMP, 1 - CLAMP)
    background = (1 - clamped).amin(0, keepdim=True)
    joined = torch.cat([background, clamped])
    return (joined / (1 - joined)).softmax(0)
