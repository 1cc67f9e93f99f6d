"""The training step of MTMFI and FRTM: target models fitted in one frame of an object, the refiner judged on others.

Source: FRTM, Robinson et al. 2020; MTMFI's own training program was never published, docs/mtmfi.md lists what is
inferred. Nothing is learnt through target models or, unless asked for, through the trunk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mtmfi import Mtmfi
from models.target_fitting import PixelWeighting, Regularisation, Weights, scores_of
from models.target_models import TargetOptions, join_weights
from pipelines.first_frame.plans import FirstFrameOptions, Hole, plan_first_frame
from pipelines.order.streams import Stream, StreamName, stream_key
from pipelines.source import ClipSource
from pipelines.types import VOID, Batch, ClipPlan
from trainers.targets.cache import LevelShape, SizeReport, Subject, TargetCache
from trainers.targets.fits import fit_targets

logger = logging.getLogger(__name__)

CACHE_FOLDER = "target_models"


@dataclass(frozen=True)
class MtmfiObjectiveOptions:
    """How target models are fitted while training; the defaults are FRTM's, with MTMFI's number of channels."""

    method: ClassVar[str] = "mtmfi"
    still: ClassVar[bool] = False
    name: Literal["mtmfi"] = "mtmfi"
    # Channels of the target models after projection (FRTM: 32).
    num_channels: int = 64
    # Samples of the first frame for a fit, with the frame itself, out of so many candidates.
    num_samples: int = 15
    num_made: int = 19
    # What is put behind the moved object; telea works on the CPU.
    hole: Hole = "telea"
    # Of projection and filter.
    regularisation: tuple[float, float] = (1e-5, 1e-4)
    init_iterations: tuple[int, ...] = (5, 10, 10, 10, 10)
    update_iterations: tuple[int, ...] = (10,)
    forgetting_rate: float = 75.0
    weighting: PixelWeighting = "none"
    # Names the random starts and augmentations, which belong to a frame and an object and not to a clip.
    target_seed: int = 0
    # Objects that are fitted together; more is faster and takes more memory.
    fit_at_once: int = 8
    # Keep fitted target models, beside the shards or in a folder.
    cache: bool = False
    cache_folder: Path | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values outside their range."""
        if self.fit_at_once < 1:
            raise ValueError(f"fit_at_once is {self.fit_at_once}; give at least 1")
        if self.cache_folder is not None and not self.cache:
            raise ValueError("cache_folder is given and cache is not; add cache: true")
        _ = self.targets, self.augmentation

    @property
    def targets(self) -> TargetOptions:
        """What fits depend on."""
        return TargetOptions(
            num_channels=self.num_channels,
            regularisation=Regularisation(*self.regularisation),
            init_iterations=tuple(self.init_iterations),
            update_iterations=tuple(self.update_iterations),
            forgetting_rate=self.forgetting_rate,
            weighting=self.weighting,
        )

    @property
    def augmentation(self) -> FirstFrameOptions:
        """What the samples of a first frame depend on."""
        return FirstFrameOptions(num_samples=self.num_samples, num_made=self.num_made, hole=self.hole)

    @staticmethod
    def require_clips(num_frames: int, size: tuple[int, int]) -> None:
        """Raise ValueError for clips the objective cannot train on. size: height and width in pixels."""
        if num_frames < 2:
            raise ValueError(f"MTMFI trains on a reference frame and others, got {num_frames} frame; set num_frames")
        if min(size) < 32:
            raise ValueError(f"MTMFI trains on frames of at least 32 pixels, got {size[0]}x{size[1]}; set recipe.size")


class MtmfiObjective(nn.Module):
    """Network and loss as one module. Target models come from `arguments`, before the step."""

    def __init__(self, model: Mtmfi, options: MtmfiObjectiveOptions | None = None) -> None:
        super().__init__()
        self.model = model
        self.options = options or MtmfiObjectiveOptions()
        if self.options.cache and model.train_trunk:
            raise ValueError("target models of a trunk that learns cannot be kept; set objective.cache: false")
        self._fingerprints: list[str] = []
        self._caches: list[TargetCache] = []

    def use_source(self, source: ClipSource) -> None:
        """Learn what clips are drawn from: fits are named by it, and kept with it."""
        sets = [entry.dataset for entry in source.mix.entries]
        self._fingerprints = [each.fingerprint for each in sets]
        if not self.options.cache:
            return
        trunk = _digest(self.model.trunk)
        for shard_set in sets:
            settings = self._settings(shard_set.fingerprint, source) | {"trunk": trunk}
            parent = self.options.cache_folder or _beside(shard_set.path)
            cache = TargetCache(parent, settings, self._level_shapes())
            logger.info("%s: %s in %s", shard_set.name, cache.report(), cache.folder)
            self._caches.append(cache)

    def keeps(self, plan: ClipPlan) -> bool:
        """Whether the cache has the target models of a clip."""
        return bool(self._caches) and _subject(plan) in self._caches[plan.dataset]

    def reports(self) -> tuple[SizeReport, ...]:
        """What the cache of each data set holds."""
        return tuple(cache.report() for cache in self._caches)

    def arguments(self, batch: Batch) -> dict[str, Any]:
        """The target models of the batch's objects, by level, and the share of them that came from the cache."""
        found: list[list[Weights] | None] = [self._find(plan) for plan in batch.plans]
        missing = [number for number, weights in enumerate(found) if weights is None]
        for start in range(0, len(missing), self.options.fit_at_once):
            self._fit(batch, missing[start : start + self.options.fit_at_once], found)
        device = batch.images.device
        by_level = zip(*(weights for weights in found if weights is not None), strict=True)
        # Plain tuples: clips of a failed step are kept in a file that holds nothing but tensors.
        targets = [tuple(join_weights(level).to(device)) for level in by_level]
        return {"targets": targets, "kept": 1 - len(missing) / len(found)}

    def forward(
        self,
        images: Tensor,
        masks: Tensor,
        num_objects: Tensor,
        first_masks: Tensor,
        *,
        targets: Sequence[tuple[Tensor, Tensor]],
        kept: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch and detached scalars.

        images (B, T, 3, H, W) normalised float; masks (B, T, H, W) uint8: slot 1 is the object, 255 is not judged;
        targets: by level, projection and filter of B objects (see Weights). num_objects and first_masks are not looked
        at: frame 0 went into the targets.
        The loss is the sum over frames 1 .. T-1 of the mean binary cross-entropy over clips and pixels, as published.
        Each frame goes through the refiner by itself, so its batch statistics are those of one frame.
        """
        losses, overlaps = [], []
        for frame in range(1, images.shape[1]):
            logits = self._segment(images[:, frame], targets)
            losses.append(_cross_entropy(logits, masks[:, frame]))
            overlaps.append(_mean_iou(logits.detach(), masks[:, frame]))
        loss = torch.stack(losses).sum()
        metrics = {f"loss_frame_{frame}": each.detach() for frame, each in enumerate(losses, start=1)}
        return loss, metrics | {"iou": torch.stack(overlaps).mean(), "targets_kept": loss.new_tensor(kept)}

    @staticmethod
    def summarise(means: dict[str, float]) -> dict[str, float]:
        """Means of `forward`'s scalars are what is reported."""
        return means

    def _segment(self, images: Tensor, targets: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Logits (B, H, W) float32 of each image's own object."""
        features = self.model.look(images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            read = self.model.target_features(features)
            scores = [
                scores_of(feature[:, None].float(), Weights(*weights))
                for feature, weights in zip(read, targets, strict=True)
            ]
        return self.model.refine(features, scores, (images.shape[2], images.shape[3]))[:, 0].float()

    def _find(self, plan: ClipPlan) -> list[Weights] | None:
        return self._caches[plan.dataset].get([_subject(plan)])[0] if self._caches else None

    def _fit(self, batch: Batch, clips: list[int], found: list[list[Weights] | None]) -> None:
        """Fit the target models of some clips, into their places in `found` and into the cache."""
        options = self.options
        plans = [batch.plans[number] for number in clips]
        starts = [plan_first_frame(self._stream(plan), plan.size, options.augmentation) for plan in plans]
        fits = fit_targets(
            self.model,
            batch.images[clips, 0],
            batch.first_masks[clips, 0],
            starts,
            augmentation=options.augmentation,
            options=options.targets,
        )
        for place, (number, plan) in enumerate(zip(clips, plans, strict=True)):
            weights = [_one(level.weights, place) for level in fits]
            found[number] = weights
            if self._caches:
                self._caches[plan.dataset].put(_subject(plan), weights)

    def _stream(self, plan: ClipPlan) -> Stream:
        fingerprint = self._fingerprints[plan.dataset] if self._fingerprints else ""
        subject = _subject(plan)
        key = stream_key(self.options.target_seed, fingerprint)
        return Stream(key, StreamName.FIRST_FRAME, subject.frame * 256 + subject.object_id)

    def _settings(self, fingerprint: str, source: ClipSource) -> dict[str, Any]:
        """All that fitted target models depend on, as JSON values, but for the trunk's weights."""
        options = self.options
        return {
            "dataset": fingerprint,
            "clips": repr(source.recipe),
            "target_levels": list(self.model.target_levels),
            "targets": dataclasses.asdict(options.targets),
            "augmentation": dataclasses.asdict(options.augmentation),
            "seed": options.target_seed,
        }

    def _level_shapes(self) -> list[LevelShape]:
        channels = self.model.trunk.num_channels
        return [LevelShape(channels[level], self.options.num_channels) for level in self.model.target_levels]


def _subject(plan: ClipPlan) -> Subject:
    return Subject(plan.frames[0], plan.object_ids[0] if plan.object_ids else 0)


def _one(weights: Weights, place: int) -> Weights:
    assert weights.project is not None
    return Weights(weights.project[place : place + 1], weights.filter[place : place + 1])


def _beside(path: Any) -> Path:
    if not isinstance(path, Path):
        raise ValueError(f"{path} cannot be written to; give objective.cache_folder for the target models")
    return path / CACHE_FOLDER


def _digest(module: nn.Module) -> str:
    """SHA-256 of all weights and buffers, in order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean over judged pixels of logits (B, H, W) against masks (B, H, W) uint8; 0 where none is."""
    judged = (masks != VOID).float()
    losses = F.binary_cross_entropy_with_logits(logits, (masks == 1).float(), reduction="none")
    return (losses * judged).sum() / judged.sum().clamp(min=1)


def _mean_iou(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean over clips of the IoU at probability one half; 1 where neither shows the object."""
    judged = masks != VOID
    found, truth = (logits > 0) & judged, masks == 1
    intersection, union = ((both).flatten(1).sum(1).float() for both in (found & truth, found | truth))
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0).mean()
