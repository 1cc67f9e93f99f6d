"""Streaming segmentation of a video from its first label map: a frame in, a label map out, only the bank is kept.

Source: RDE, Li et al. 2022, whose evaluation program holds all frames and probabilities of a video on the device; the
label maps are the same. Ids are mapped back to those of the first label map (the program writes their positions 1..O).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.masks import Padding, aggregate, aggregate_probabilities, pad_to_multiple, unpad
from models.memory import BANK_MODES, BankMode, MemoryBank
from models.rde import KeyFeatures, Rde
from pipelines.assembly import IMAGE_DEVIATION, IMAGE_MEAN
from shards.masks import VOID
from trainers.label_files import LabelMap

logger = logging.getLogger(__name__)

SMALLEST_SIDE = 32
"""Pixels of a padded frame's sides at least: memory is compressed in blocks of 2x2 positions of 16 pixels."""


class Segmenter(Protocol):
    """A model that follows objects through a video. Frames (1, 3, H, W) float, normalised, H and W multiples of 16."""

    def start(self, image: Tensor, masks: Tensor) -> None:
        """Begin a video, forgetting the last: its first frame and the masks (1, O, H, W) of its objects, 0 or 1."""

    def step(self, image: Tensor) -> Tensor:
        """Probabilities (1, 1+O, H, W) of background and objects in the next frame."""


@dataclass(frozen=True, slots=True)
class RdeOptions:
    """How RDE's bank is used; the defaults are the published ones for DAVIS 2017.

    mode: what the bank holds. mem_every: frames between two memorised ones. top_k: memory positions read per query
    position, None for all. include_last: memorise every frame. amp: autocast (float16 on a GPU, bfloat16 on a CPU).
    """

    mode: BankMode = "two-frames-compress"
    mem_every: int = 3
    top_k: int | None = 40
    include_last: bool = False
    amp: bool = False

    def __post_init__(self) -> None:
        if self.mode not in BANK_MODES:
            raise ValueError(f"unknown bank mode {self.mode!r}; choose one of {', '.join(BANK_MODES)}")
        if self.mem_every < 1 or (self.top_k is not None and self.top_k < 1):
            raise ValueError(f"mem_every {self.mem_every} and top_k {self.top_k} must be at least 1")


class _Memorable(NamedTuple):
    """A frame that goes into the bank when the next one comes."""

    image: Tensor
    features: KeyFeatures
    masks: Tensor


class RdeSegmenter:
    """RDE with one bank for all objects of a video, which must all be in its first frame.

    A frame is memorised when the next one arrives, so the last frame never is, as published.
    """

    def __init__(self, model: Rde, options: RdeOptions) -> None:
        self._model = model.eval()
        self._options = options
        self._bank = MemoryBank(model, options.mode, options.top_k)
        self._waiting: _Memorable | None = None
        self._frame = 0

    def start(self, image: Tensor, masks: Tensor) -> None:
        """See Segmenter. The first value is made from the aggregated masks, not the given ones."""
        with torch.inference_mode(), self._autocast(image):
            features = self._model.encode_key(image.unsqueeze(1))
            probabilities = aggregate_probabilities(masks.float()).softmax(1)
            value = self._model.encode_value(image, features.f16[:, 0], probabilities[:, 1:])
            self._bank = MemoryBank(self._model, self._options.mode, self._options.top_k)
            self._bank.update(features.key, value)
        self._warn_of_few_positions(features.key)
        self._waiting = None
        self._frame = 0

    def step(self, image: Tensor) -> Tensor:
        """See Segmenter."""
        with torch.inference_mode(), self._autocast(image):
            self._memorise()
            self._frame += 1
            features = self._model.encode_key(image.unsqueeze(1))
            readout = self._bank.read(features.key[:, :, 0], features.thin[:, 0])
            object_logits = self._model.decode(readout, features.f8[:, 0], features.f4[:, 0])
            probabilities = aggregate(object_logits).logits.softmax(1)
            if self._options.include_last or self._frame % self._options.mem_every == 0:
                self._waiting = _Memorable(image, features, probabilities[:, 1:])
            return probabilities

    def _memorise(self) -> None:
        if self._waiting is not None:
            image, features, masks = self._waiting
            self._bank.update(features.key, self._model.encode_value(image, features.f16[:, 0], masks))
            self._waiting = None

    def _warn_of_few_positions(self, key: Tensor) -> None:
        top_k, num_positions = self._options.top_k, self._bank.num_frames * key.shape[-2] * key.shape[-1]
        if top_k is not None and top_k > num_positions:
            logger.warning(
                "top_k %d exceeds the %d positions in memory: all are read while there are no more",
                top_k,
                num_positions,
            )

    def _autocast(self, image: Tensor) -> torch.autocast:
        dtype = torch.float16 if image.is_cuda else torch.bfloat16
        return torch.autocast(image.device.type, dtype, enabled=self._options.amp)


@dataclass(slots=True)
class ModelClock:
    """Time as the paper counts it: from frames on the device to label maps on the device, no decoding, no files."""

    num_frames: int = 0
    seconds: float = 0.0

    @property
    def frames_per_second(self) -> float:
        """All frames, given first ones included, by all seconds; 0 before the first."""
        return self.num_frames / self.seconds if self.seconds else 0.0


def segment_video(
    segmenter: Segmenter,
    frames: Iterable[NDArray[np.uint8]],
    first: LabelMap,
    *,
    device: torch.device,
    clock: ModelClock,
) -> Iterator[LabelMap]:
    """Label maps (H, W) uint8 of the frames, in order, with the ids of `first`, as the frames come.

    frames: RGB (H, W, 3) uint8, the first being the one `first` belongs to; its label map is `first` itself, void as
    background. Raises ValueError for a frame of another size, or if `first` has no object.
    """
    ids = object_ids(first)
    if not len(ids):
        raise ValueError("the first label map has no object to follow")
    names = np.concatenate([np.zeros(1, np.uint8), ids])
    for number, frame in enumerate(frames):
        if frame.shape != (*first.shape, 3):
            raise ValueError(f"frame {number} is {frame.shape}, expected {(*first.shape, 3)} as the first label map")
        pixels = torch.from_numpy(frame).to(device)
        started = _now(device)
        positions = _step(segmenter, pixels) if number else None
        if positions is None:
            _start(segmenter, pixels, first, ids)
        clock.seconds += _now(device) - started
        clock.num_frames += 1
        yield np.where(first == VOID, np.uint8(0), first) if positions is None else names[positions.cpu().numpy()]


def object_ids(labels: LabelMap) -> NDArray[np.uint8]:
    """Ids (O,) uint8 in a label map, ascending, without background and void."""
    ids = np.unique(labels)
    return ids[(ids != 0) & (ids != VOID)]


def _start(segmenter: Segmenter, pixels: Tensor, first: LabelMap, ids: NDArray[np.uint8]) -> None:
    labels = torch.tensor(first, device=pixels.device)
    masks = torch.stack([labels == int(object_id) for object_id in ids]).float()[None]  # (1, O, H, W)
    segmenter.start(_pad(_normalised(pixels))[0], _pad(masks)[0])


def _step(segmenter: Segmenter, pixels: Tensor) -> Tensor:
    """Position (H, W) uint8 of each pixel's object among background and objects."""
    image, padding = _pad(_normalised(pixels))
    return unpad(segmenter.step(image), padding)[0].argmax(0).to(torch.uint8)


def _pad(frames: Tensor) -> tuple[Tensor, Padding]:
    return pad_to_multiple(frames, smallest=SMALLEST_SIDE)


def _normalised(pixels: Tensor) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32."""
    mean, deviation = (torch.tensor(values, device=pixels.device) for values in (IMAGE_MEAN, IMAGE_DEVIATION))
    return ((pixels / 255 - mean) / deviation).permute(2, 0, 1)[None]


def _now(device: torch.device) -> float:
    """Seconds, when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
