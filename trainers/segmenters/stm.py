"""STM-Cycle follows objects with a memory of every fifth frame and the last one, whose masks may be corrected first.

Source: Li et al. 2020 and its two evaluation programs; docs/stm_cycle.md lists where we differ, and the switches.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from models.masks import aggregate
from models.stm import Memory, Stm, join_memories
from trainers.segmenters.stm_correction import Correction, CorrectionOptions, Reference

LateObjects = Literal["merge", "replace"]
Written = Literal["predicted", "corrected"]


@dataclass(frozen=True, slots=True)
class StmOptions:
    """How a video is followed; the defaults are the published ones where there is one.

    mem_every: frames shown between two that are kept, and corrected. correction: of those, None for none (published: 10
    iterations). written: the masks given out for a corrected frame, before it (`test.py`) or after it (`demo.py`).
    late_objects: where objects begin, `merge` lays them over the older ones as predicted, and keeps the frame;
    `replace` remembers the given label map and nothing else: older objects as it shows them, or empty (published).
    max_kept: frames kept at most, None for all (published); beyond it the oldest go, those with given masks last. amp:
    autocast (float16 on a GPU, bfloat16 on a CPU), but not in corrections.
    """

    mem_every: int = 5
    correction: CorrectionOptions | None = None
    written: Written = "predicted"
    late_objects: LateObjects = "merge"
    max_kept: int | None = 40
    amp: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for values outside their range."""
        if self.mem_every < 1 or (self.max_kept is not None and self.max_kept < 1):
            raise ValueError(f"mem_every {self.mem_every} and max_kept {self.max_kept} must be at least 1")
        if self.late_objects not in get_args(LateObjects) or self.written not in get_args(Written):
            raise ValueError(f"unknown late_objects {self.late_objects!r} or written {self.written!r}")

    def memorised(self, num_frames: int, starts: Collection[int]) -> frozenset[int]:
        """See SegmenterOptions: frames are counted as they are shown, so only those where objects begin are needed."""
        return frozenset(starts)


class _Shown(NamedTuple):
    """A frame as it will be remembered: image (1, 3, H, W), masks (O, H, W), given or found; probabilities with 0."""

    image: Tensor
    masks: Tensor
    probabilities: Tensor
    given: bool


class _Kept(NamedTuple):
    image: Tensor
    memory: Memory
    given: bool


@dataclass(slots=True)
class _Video:
    """What is known of the video so far. since_kept: frames after the last one that is kept, or about to be."""

    latest: _Shown
    reference: Reference | None
    kept: list[_Kept] = field(default_factory=list)
    since_kept: int = 0


class StmSegmenter:
    """STM-Cycle with a memory for each object. `model` may be shared by threads."""

    def __init__(self, model: Stm, options: StmOptions) -> None:
        self._model = model.eval()
        self._options = options
        self._video: _Video | None = None

    @property
    def num_kept(self) -> int:
        """Frames in memory, without the last one shown."""
        return 0 if self._video is None else len(self._video.kept)

    @property
    def reference(self) -> Reference | None:
        """What corrections lead back to; None without corrections."""
        return None if self._video is None else self._video.reference

    def start(self, image: Tensor, masks: Tensor) -> None:
        """See Segmenter."""
        given = torch.cat([1 - masks.amax(1, keepdim=True), masks], 1).float()
        shown = _Shown(image, given[0, 1:], given, given=True)
        self._video = _Video(shown, self._reference(image, given))

    @torch.no_grad()  # no inference_mode: corrections need gradients through what is made here
    def step(self, image: Tensor, *, skipped: int = 0) -> Tensor:
        """See Segmenter. `skipped` does not count: the memory is made of frames that were shown, as published."""
        video = self._begun()
        with self._autocast(image):
            memory = self._remember_latest(video)
            query = self._model.encode_query(image)
            clips = torch.zeros(len(video.latest.masks), dtype=torch.int64, device=image.device)
            logits = self._model.segment(query, memory, clips, (image.shape[2], image.shape[3]))
        found = _aggregate(logits)
        corrected = self._correct(video, image, found) if video.since_kept >= self._options.mem_every else found
        written = corrected if self._options.written == "corrected" else found
        video.latest = _Shown(image, corrected[0, 1:], written, given=False)
        return written

    @torch.no_grad()
    def add(self, masks: Tensor, *, given_again: Tensor) -> Tensor:
        """See Segmenter. Earlier frames are remembered with empty masks of the new objects, as published.

        What is given out is the same either way, the new masks over what was predicted: the switch is about memory.
        """
        video = self._begun()
        image, older, probabilities, _ = video.latest
        outside = 1 - masks.float().amax(1, keepdim=True)
        merged = torch.cat([probabilities * outside, masks.float()], 1)
        remembered, background = torch.cat([older * outside[0], masks[0].float()]), merged[0, :1]
        if self._options.late_objects == "replace":
            remembered = torch.cat([given_again[0], masks[0]]).float()
            background = 1 - remembered.amax(0, keepdim=True)
        with self._autocast(image):
            video.kept = [self._with_empty(frame, masks[0]) for frame in video.kept]
        video.reference = self._reference(image, torch.cat([background, remembered])[None])
        video.latest = _Shown(image, remembered, merged, given=self._options.late_objects == "merge")
        return merged

    def _begun(self) -> _Video:
        if self._video is None:
            raise ValueError("no video has begun: call start() with its first frame and masks")
        return self._video

    def _remember_latest(self, video: _Video) -> Memory:
        """Memory of all kept frames and the latest one, which is kept too if it is due or was given."""
        image, masks, _, given = video.latest
        clips = torch.zeros(len(masks), dtype=torch.int64, device=image.device)
        last = self._model.memorise(self._model.look(image), masks, clips)
        memory = join_memories([*(frame.memory for frame in video.kept), last])
        if given or video.since_kept >= self._options.mem_every:
            video.kept.append(_Kept(image, last, given))
            video.since_kept = 0
        if self._options.max_kept is not None and len(video.kept) > self._options.max_kept:
            found = [place for place, frame in enumerate(video.kept) if not frame.given]
            del video.kept[found[0] if found else 0]
        video.since_kept += 1
        return memory

    def _correct(self, video: _Video, image: Tensor, found: Tensor) -> Tensor:
        """Probabilities (1, 1+O, H, W) with corrected objects; the background stays what it was, as published."""
        if self._options.correction is None or video.reference is None:
            return found
        correction = Correction(self._model, video.reference, self._model.look(image), self._options.correction)
        return torch.cat([found[:, :1], correction.apply(found[0, 1:])[None]], 1)

    def _reference(self, image: Tensor, probabilities: Tensor) -> Reference | None:
        if self._options.correction is None:
            return None
        return make_reference(self._model, image, probabilities)

    def _with_empty(self, frame: _Kept, new: Tensor) -> _Kept:
        """A kept frame that remembers of new objects (N, H, W) that they are not there."""
        clips = torch.zeros(len(new), dtype=torch.int64, device=new.device)
        empty = self._model.memorise(self._model.look(frame.image), torch.zeros_like(new, dtype=torch.float32), clips)
        return frame._replace(memory=join_memories([frame.memory, empty], over_objects=True))

    def _autocast(self, image: Tensor) -> torch.autocast:
        dtype = torch.float16 if image.is_cuda else torch.bfloat16
        return torch.autocast(image.device.type, dtype, enabled=self._options.amp)


@torch.no_grad()
def make_reference(model: Stm, image: Tensor, probabilities: Tensor) -> Reference:
    """A frame (1, 3, H, W) as reference, each pixel labelled with the most probable of (1, 1+O, H, W)."""
    return Reference(model.encode_query(image), probabilities.argmax(1).to(torch.uint8))


def _aggregate(logits: Tensor) -> Tensor:
    """Object logits (O, H, W) -> probabilities (1, 1+O, H, W)."""
    return aggregate(logits[None]).logits.softmax(1)
