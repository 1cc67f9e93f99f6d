"""RDE follows objects with a bank that keeps its size.

Source: RDE, Li et al. 2022, section 3 and its two evaluation programs: DAVIS (all objects in the first frame) and
YouTube-VOS (objects may begin at any frame; there every object has a bank of its own, here those that begin together
share one, with equal results: they have the same keys).
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models.masks import aggregate, aggregate_probabilities
from models.memory import BANK_MODES, BankMode, MemoryBank
from models.rde import KeyFeatures, Rde

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RdeOptions:
    """How RDE's bank is used; the defaults are the published ones for DAVIS 2017.

    mode: what the bank holds. mem_every: frames between two memorised ones. top_k: memory positions read per query
    position, None for all. include_last: memorise every frame. amp: autocast (float16 on a GPU, bfloat16 on a CPU).
    first_frame_once: one copy of the first frame in the modes whose memory holds two, which published results have.
    """

    mode: BankMode = "two-frames-compress"
    mem_every: int = 3
    top_k: int | None = 40
    include_last: bool = False
    amp: bool = False
    first_frame_once: bool = False

    def __post_init__(self) -> None:
        if self.mode not in BANK_MODES:
            raise ValueError(f"unknown bank mode {self.mode!r}; choose one of {', '.join(BANK_MODES)}")
        if self.mem_every < 1 or (self.top_k is not None and self.top_k < 1):
            raise ValueError(f"mem_every {self.mem_every} and top_k {self.top_k} must be at least 1")

    def is_due(self, num_since: int) -> bool:
        """Whether a frame so many frames after the last memorised one is memorised."""
        return self.include_last or num_since >= self.mem_every

    def memorised(self, num_frames: int, starts: Collection[int]) -> frozenset[int]:
        """Frames of a video that are memorised; starts: those in which objects begin."""
        frames, latest = set(starts), min(starts)
        for frame in range(latest, num_frames - 1):
            if frame in starts or self.is_due(frame - latest):
                frames.add(frame)
                latest = frame
        return frozenset(frames)


class _Shown(NamedTuple):
    """A frame as the model saw it; masks (1, O, H, W) of the objects, without background."""

    image: Tensor
    features: KeyFeatures
    masks: Tensor


class _Group(NamedTuple):
    """Objects that began in one frame: their bank, and their places among all objects."""

    bank: MemoryBank
    places: slice


class RdeSegmenter:
    """RDE with a bank for each set of objects that begin together.

    A frame is memorised, for all objects, when the next one arrives, so the last frame never is, as published. That is
    `mem_every` frames after the last memorised one, and always where objects begin. `model` may be shared by threads.
    """

    def __init__(self, model: Rde, options: RdeOptions) -> None:
        self._model = model.eval()
        self._options = options
        self._groups: list[_Group] = []
        self._latest: _Shown | None = None
        self._waiting: _Shown | None = None
        self._since_memorised = 0

    def start(self, image: Tensor, masks: Tensor) -> None:
        """See Segmenter. The first value is made from the aggregated masks, not the given ones."""
        with torch.inference_mode(), self._autocast(image):
            features = self._model.encode_key(image.unsqueeze(1))
            probabilities = aggregate_probabilities(masks.float()).softmax(1)
            self._groups = [_Group(self._new_bank(), slice(0, masks.shape[1]))]
            self._latest = _Shown(image, features, probabilities[:, 1:])
            self._memorise_next()
            self._memorise()
        self._warn_of_few_positions(features.key)

    def step(self, image: Tensor, *, skipped: int = 0) -> Tensor:
        """See Segmenter."""
        with torch.inference_mode(), self._autocast(image):
            self._memorise()
            features = self._model.encode_key(image.unsqueeze(1))
            query, thin = features.key[:, :, 0], features.thin[:, 0]
            readouts = torch.cat([group.bank.read(query, thin) for group in self._groups], 1)
            object_logits = self._model.decode(readouts, features.f8[:, 0], features.f4[:, 0])
            probabilities = aggregate(object_logits).logits.softmax(1)
            self._latest = _Shown(image, features, probabilities[:, 1:])
            self._since_memorised += 1 + skipped
            if self._options.is_due(self._since_memorised):
                self._memorise_next()
            return probabilities

    def add(self, masks: Tensor, *, given_again: Tensor) -> Tensor:
        """See Segmenter. Inside the new masks the older objects vanish; then all are aggregated again, as published."""
        if self._latest is None:
            raise ValueError("add() needs a frame: call start() for a video's first objects")
        image, features, older = self._latest
        with torch.inference_mode():
            masks = masks.float()
            outside = 1 - masks.amax(1, keepdim=True)
            probabilities = aggregate_probabilities(torch.cat([older * outside, masks], 1)).softmax(1)
        self._groups.append(_Group(self._new_bank(), slice(older.shape[1], probabilities.shape[1] - 1)))
        self._latest = _Shown(image, features, probabilities[:, 1:])
        self._memorise_next()
        return probabilities

    def _memorise_next(self) -> None:
        self._waiting = self._latest
        self._since_memorised = 0

    def _memorise(self) -> None:
        if self._waiting is None:
            return
        image, features, masks = self._waiting
        value = self._model.encode_value(image, features.f16[:, 0], masks)
        for group in self._groups:
            group.bank.update(features.key, value[:, group.places])
        self._waiting = None

    def _new_bank(self) -> MemoryBank:
        options = self._options
        return MemoryBank(self._model, options.mode, options.top_k, first_frame_once=options.first_frame_once)

    def _warn_of_few_positions(self, key: Tensor) -> None:
        top_k, num_positions = self._options.top_k, self._groups[0].bank.num_frames * key.shape[-2] * key.shape[-1]
        if top_k is not None and top_k > num_positions:
            logger.warning(
                "top_k %d exceeds the %d positions in memory: all are read while there are no more",
                top_k,
                num_positions,
            )

    def _autocast(self, image: Tensor) -> torch.autocast:
        dtype = torch.float16 if image.is_cuda else torch.bfloat16
        return torch.autocast(image.device.type, dtype, enabled=self._options.amp)
