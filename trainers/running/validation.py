"""Segmenting and scoring a held set while a run trains, spread over its ranks; figures are those of one process."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from shards.storage import write_bytes
from trainers.config import Validation
from trainers.methods import METHODS
from trainers.prediction.files import OutputForm, segment_to_folder
from trainers.prediction.plan import SEGMENTATION_PROTOCOLS, VideoPlan, plan_video
from trainers.prediction.videos import choose_split, choose_videos, open_videos
from trainers.running.averaging import WeightAverage
from trainers.running.distributed import Ranks, gather_objects
from trainers.running.stages import Place
from trainers.scoring.protocols import PROTOCOLS, evaluate, global_scores
from trainers.scoring.types import ObjectScores, ResultFolder

logger = logging.getLogger(__name__)

MEASURE = "J&F-Mean"
BEST_FILE = "best.json"


class ValidationAbandonedError(Exception):
    """The run has been asked to stop."""


@dataclass(frozen=True, slots=True)
class Validated:
    """What a validation found: figures under their official names, and how long it took."""

    figures: dict[str, float]
    seconds: float
    num_videos: int


class Validator:
    """Scores networks on the set that `options` name. Every rank has one; all must call `score` together."""

    def __init__(self, options: Validation, method: str, place: Place) -> None:
        """Open the set. Raises DataError or ValueError for videos that cannot be segmented."""
        self._method, self._place = method, place
        self._protocol = PROTOCOLS[options.protocol]
        rules = SEGMENTATION_PROTOCOLS[options.protocol]
        self._source = open_videos(options.path, list_folders=rules.list_folders)
        split = choose_split(self._source, options.split, self._protocol.splits)
        self._videos = choose_videos(self._source, split, None)[: options.videos]
        shown = [plan_video(self._source, video, rules, _no_frames) for video in self._videos]
        self._plans = share_videos(shown, place.ranks)
        sight = options.sight or METHODS[method].sight(rules.shorter_side)
        self._form = OutputForm(place.device, sight, rules.png)

    def score(
        self,
        model: nn.Module,
        average: WeightAverage | None,
        is_stopping: Callable[[], bool],
        beat: Callable[[], object],
    ) -> Validated | None:
        """Figures of all videos, the same on every rank; None if any rank was asked to stop meanwhile.

        average: scores the averaged weights. beat is called with every frame. The network is as before afterwards.
        """
        started = time.perf_counter()
        modes = [(module, module.training) for module in model.modules()]
        weights: AbstractContextManager[None] = nullcontext() if average is None else average.in_place()
        with ExitStack() as stack:
            stack.enter_context(weights)
            stack.callback(_restore, modes)
            mine = self._score_own(model, is_stopping, beat)
        gathered = gather_objects(mine, self._place.ranks)
        if any(scores is None for scores in gathered):
            return None
        scores = [item for of_rank in gathered for item in of_rank or ()]
        order = {video: number for number, video in enumerate(self._videos)}
        scores.sort(key=lambda item: (order[item.video], item.number))
        return Validated(global_scores(scores), time.perf_counter() - started, len(self._videos))

    def _score_own(
        self, model: nn.Module, is_stopping: Callable[[], bool], beat: Callable[[], object]
    ) -> list[ObjectScores] | None:
        def on_frame() -> None:
            beat()
            if is_stopping():
                raise ValidationAbandonedError

        if not self._plans:
            return []
        segmenter = METHODS[self._method].segmenter(model)
        with tempfile.TemporaryDirectory(prefix="vosforge-validation-") as folder:
            try:
                for plan in self._plans:
                    segment_to_folder(segmenter, self._source, plan, Path(folder), self._form, on_frame=on_frame)
            except ValidationAbandonedError:
                return None
            videos = [plan.video for plan in self._plans]
            results = ResultFolder(Path(folder))
            return evaluate(self._source, results, self._protocol, videos, on_video=lambda _: beat())


def share_videos(plans: Sequence[VideoPlan], ranks: Ranks) -> list[VideoPlan]:
    """This rank's videos: the longest first, each to the rank that has least to do; frames times objects count."""
    load = [0] * ranks.world_size
    mine = []
    for plan in sorted(plans, key=lambda plan: (-_cost(plan), plan.video)):
        rank = load.index(min(load))
        load[rank] += _cost(plan)
        if rank == ranks.rank:
            mine.append(plan)
    return mine


def _cost(plan: VideoPlan) -> int:
    return len(plan.script.shown) * (1 + plan.script.num_objects)


def _no_frames(_num_frames: int, _starts: object) -> frozenset[int]:
    return frozenset()  # every frame is wanted, so all are shown


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


class Best:
    """Which checkpoint of a run has scored best so far, in `best.json`."""

    def __init__(self, folder: Path, asked: Mapping[str, Any] | None, *, step: int) -> None:
        """Go on after `step` updates: what was found later will be found again.

        asked: what is validated, as plain values; figures of something else are no standard.
        """
        self._path, self._asked = folder / BEST_FILE, asked
        found: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self._found = found if found and found["step"] <= step and found["of"] == asked else {}

    @property
    def step(self) -> int | None:
        """Updates after which it was; None before the first validation."""
        return self._found.get("step")

    def offer(self, step: int, figures: dict[str, float]) -> bool:
        """Note the figures after a step if they are better than all before; whether they are."""
        if self._found and figures[MEASURE] <= self._found[MEASURE]:
            return False
        self._found = {"checkpoint": f"checkpoint-{step}.pt", "step": step, **figures, "of": self._asked}
        write_bytes(self._path, (json.dumps(self._found, indent=2) + "\n").encode())
        return True
