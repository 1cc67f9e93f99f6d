"""Streaming segmentation of a video: a frame in, a label map out, only the model's memory is kept.

Source: RDE, Li et al. 2022, whose evaluation programs hold all frames and probabilities of a video on the device; the
label maps are the same. Ids are always those of the given label maps (its DAVIS program writes their positions 1..O).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.masks import VOID, keep_ids
from trainers.label_files import LabelMap
from trainers.segmenters import Segmenter
from trainers.views import Sight, View

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ModelClock:
    """Time as the paper counts it: from frames on the device to label maps on the device, no decoding, no files."""

    num_frames: int = 0
    seconds: float = 0.0

    @property
    def frames_per_second(self) -> float:
        """All frames, given first ones included, by all seconds; 0 before the first."""
        return self.num_frames / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Script:
    """What is asked of one video; frames are numbers from 0, ascending.

    begins: frames at which label maps are given -> ids that begin there; at least one. shown: frames the model must
    see, from the first given one on. written: frames whose label maps are wanted; those before the first given one
    are background, the others are shown.
    """

    begins: Mapping[int, tuple[int, ...]]
    shown: tuple[int, ...]
    written: tuple[int, ...]

    @property
    def first(self) -> int:
        """The frame of the first given label map."""
        return min(self.begins)

    @property
    def num_objects(self) -> int:
        """Objects of the video, late ones too."""
        return sum(map(len, self.begins.values()))


def whole_script(first: LabelMap, num_frames: int) -> Script:
    """All frames of a video whose objects are those of its first label map. Raises ValueError if it has none."""
    ids = object_ids(first)
    if not len(ids):
        raise ValueError("the first label map has no object to follow")
    frames = tuple(range(num_frames))
    return Script({0: tuple(ids.tolist())}, frames, frames)


def segment_video(
    segmenter: Segmenter,
    script: Script,
    frames: Iterable[NDArray[np.uint8]],
    read_labels: Callable[[int], LabelMap],
    *,
    device: torch.device,
    clock: ModelClock,
    sight: Sight | None = None,
) -> Iterator[tuple[int, LabelMap]]:
    """Number and label map (H, W) uint8 of every frame that is to be written, in order, as the frames come.

    frames: RGB (H, W, 3) uint8 of the frames in `script.shown`. read_labels: the given label map (H, W) uint8 of a
    frame, of which the ids that begin there count; what it shows of older ones the segmenter may use or not, and those
    that begin later are background. The first one is that frame's prediction. sight: how the
    model sees frames; None: as they are, padded. Raises ValueError for a frame whose size is not the first label map's.
    """
    first = read_labels(script.first)
    view = View((first.shape[0], first.shape[1]), device, sight or Sight())
    written = frozenset(script.written)
    yield from ((number, np.zeros_like(first)) for number in script.written if number < script.first)
    names = np.zeros(1, np.uint8)  # of background, then of the objects in the order in which they began
    before = script.first
    for number, frame in zip(script.shown, frames, strict=True):
        if frame.shape != (*first.shape, 3):
            raise ValueError(f"frame {number} is {frame.shape}, expected {(*first.shape, 3)} as the first label map")
        beginning = _given(read_labels(number), script.begins[number], number) if number in script.begins else None
        pixels = torch.from_numpy(frame).to(device)
        started = _now(device)
        positions = _advance(segmenter, view, pixels, beginning, names[1:], skipped=number - before - 1)
        clock.seconds += _now(device) - started
        clock.num_frames += 1
        before = number
        if beginning is not None:
            names = np.concatenate([names, beginning.ids])
        if number in written:
            yield number, keep_ids(first, names) if positions is None else names[positions.cpu().numpy()]


def object_ids(labels: LabelMap) -> NDArray[np.uint8]:
    """Ids (O,) uint8 in a label map, ascending, without background and void."""
    ids = np.unique(labels)
    return ids[(ids != 0) & (ids != VOID)]


@dataclass(frozen=True, slots=True)
class _Beginning:
    """Objects that begin in a frame: ids (N,) uint8 and their label map."""

    ids: NDArray[np.uint8]
    labels: LabelMap


def _advance(
    segmenter: Segmenter,
    view: View,
    pixels: Tensor,
    beginning: _Beginning | None,
    older: NDArray[np.uint8],
    *,
    skipped: int,
) -> Tensor | None:
    """Show one frame, with the objects that begin in it; None for the first, whose masks are given. older: ids (O,)."""
    image, padding = view.image(pixels)
    if skipped < 0 and beginning is not None:  # the first frame comes after none
        if not len(beginning.ids):
            raise ValueError("the first label map has none of the objects to follow")
        segmenter.start(image, view.masks(beginning.labels, beginning.ids))
        return None
    probabilities = segmenter.step(image, skipped=skipped)
    if beginning is not None and len(beginning.ids):
        new, again = view.masks(beginning.labels, beginning.ids), view.masks(beginning.labels, older)
        probabilities = segmenter.add(new, given_again=again)
    return view.positions(probabilities, padding)


def _given(labels: LabelMap, ids: tuple[int, ...], frame: int) -> _Beginning:
    present = [object_id for object_id in ids if (labels == object_id).any()]
    if len(present) < len(ids):
        missing = sorted(set(ids) - set(present))
        logger.warning("frame %d should show where objects %s begin, but they are not in its mask", frame, missing)
    return _Beginning(np.array(present, np.uint8), labels)


def _now(device: torch.device) -> float:
    """Seconds, when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
