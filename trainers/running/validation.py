"""Segmenting and scoring a held set while a run trains, spread over its ranks; figures are those of one process."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from shards.storage.paths import write_bytes
from trainers.config import Validation
from trainers.methods import METHODS
from trainers.prediction.files import OutputForm, file_digest, segment_to_folder
from trainers.prediction.plan import SEGMENTATION_PROTOCOLS, VideoPlan, plan_video, usual_protocol
from trainers.prediction.videos import VideoSource, choose_split, choose_videos, open_videos
from trainers.running.averaging import WeightAverage
from trainers.running.distributed import Ranks, gather_objects
from trainers.running.stages import Place
from trainers.scoring.protocols import PROTOCOLS, evaluate
from trainers.scoring.types import ObjectScores, ResultFolder
from trainers.scoring.youtube import Categories, read_categories

logger = logging.getLogger(__name__)

BEST_FILE = "best.json"

RESULTS_FOLDER = "validating"
"""In a run's folder, while it validates: the label maps of each rank's videos."""

WARNING_OF_VIDEOS = (
    "trainers.prediction.following",
    "trainers.scoring.davis",
    "trainers.scoring.youtube",
    "trainers.segmenters.rde",
)
"""Loggers that say of a video what they would say of it in every validation."""


class ValidationAbandonedError(Exception):
    """The run has been asked to stop."""


@dataclass(frozen=True, slots=True)
class Validated:
    """What a validation found: figures under their official names, and how long it took."""

    figures: dict[str, float]
    seconds: float
    num_videos: int


class Validator:
    """Scores networks on the set that `options` name. Every rank has one; all must call `score` together.

    measure: name of the figure by which networks are compared. standard: what figures depend on beside the network, as
    plain values; those of another standard are not to be compared.
    """

    def __init__(self, options: Validation, method: str, model: nn.Module, place: Place, folder: Path) -> None:
        """Open the set. Raises DataError or ValueError for videos that cannot be segmented or scored.

        folder: the run's, in which label maps lie until they are scored.
        """
        self._method, self._place = METHODS[method], place
        self._results = folder / RESULTS_FOLDER / f"rank-{place.ranks.rank}"
        self._repetitions = Repetitions()
        self._source, name = _open(options)
        self._protocol, self._rules = PROTOCOLS[name], SEGMENTATION_PROTOCOLS[name]
        self.measure = self._protocol.measure
        if options.categories is not None and name != "youtube_vos":
            raise ValueError(f"{options.path} is scored by {name}, which knows no categories; leave them out")
        split = choose_split(self._source, options.split, self._protocol.splits)
        self._videos = choose_videos(self._source, split, None)[: options.videos]
        self._categories = Categories() if options.categories is None else read_categories(options.categories)
        self._require_truth()
        follows, sight = self._method.published(model, self._rules)
        self._form = OutputForm(place.device, options.sight or sight, self._rules.png)
        plans = [plan_video(self._source, video, self._rules, follows.memorised) for video in self._videos]
        self._plans = share_videos(plans, place.ranks)
        self.standard: dict[str, Any] = {
            "dataset": self._source.identity,
            "split": split,
            "videos": len(self._videos),
            "protocol": name,
            "categories": None if options.categories is None else file_digest(options.categories),
            "sight": self._form.sight.settings(),
        }

    def _require_truth(self) -> None:
        """Raise DataError for what could not be scored: found now, not after the first thousands of steps."""
        for video in self._videos:
            self._protocol.scored(self._source, video)
            for object_id in self._source.object_facts(video) if self._protocol.name == "youtube_vos" else ():
                self._categories.is_unseen(self._source, video, object_id)

    def score(
        self,
        model: nn.Module,
        average: WeightAverage | None,
        is_stopping: Callable[[], bool],
        on_phase: Callable[[str], object],
    ) -> Validated | None:
        """Figures of all videos, the same on every rank; None if any rank was asked to stop meanwhile.

        average: scores the averaged weights. on_phase: see Hooks. The network is as before afterwards.
        """
        started = time.perf_counter()
        modes = [(module, module.training) for module in model.modules()]
        weights: AbstractContextManager[None] = nullcontext() if average is None else average.in_place()
        with ExitStack() as stack:
            stack.enter_context(weights)
            stack.enter_context(self._repetitions.left_out())
            stack.callback(_restore, modes)
            mine = self._score_own(model, is_stopping, on_phase)
        on_phase("")  # ranks with longer videos go on; each watches itself
        gathered = gather_objects(mine, self._place.ranks)
        if self._place.ranks.is_first:
            shutil.rmtree(self._results.parent, ignore_errors=True)  # empty by now
        if any(scores is None for scores in gathered):
            return None
        scores = [item for of_rank in gathered for item in of_rank or ()]
        order = {video: number for number, video in enumerate(self._videos)}
        scores.sort(key=lambda item: (order[item.video], item.number))
        figures = self._protocol.figures(self._source, scores, self._categories)
        return Validated(figures, time.perf_counter() - started, len(self._videos))

    def _score_own(
        self, model: nn.Module, is_stopping: Callable[[], bool], on_phase: Callable[[str], object]
    ) -> list[ObjectScores] | None:
        def on_frame() -> None:
            on_phase(f"validating on {plan.video}")
            if is_stopping():
                raise ValidationAbandonedError

        def on_scored(video: str) -> None:
            on_phase(f"scoring a validation, {video} done")
            if is_stopping():
                raise ValidationAbandonedError

        if not self._plans:
            return []
        segmenter = self._method.segmenter(model, self._method.published(model, self._rules)[0])
        shutil.rmtree(self._results, ignore_errors=True)  # of a run that was killed
        try:
            for plan in self._plans:
                on_frame()
                segment_to_folder(segmenter, self._source, plan, self._results, self._form, on_frame=on_frame)
            on_phase("scoring a validation")
            videos = [plan.video for plan in self._plans]
            return evaluate(self._source, ResultFolder(self._results), self._protocol, videos, on_video=on_scored)
        except ValidationAbandonedError:
            return None
        finally:
            shutil.rmtree(self._results, ignore_errors=True)


def remove_results(folder: Path) -> None:
    """Remove what a validation that was killed, on however many ranks, has left in a run's folder."""
    shutil.rmtree(folder / RESULTS_FOLDER, ignore_errors=True)


class Repetitions(logging.Filter):
    """Leaves out what was said in an earlier block, so that one validation after the other does not repeat it."""

    def __init__(self) -> None:
        super().__init__()
        self._before: set[str] = set()
        self._now: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is new, or of this block."""
        text = record.getMessage()
        self._now.add(text)
        return text not in self._before

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """For the length of the block."""
        loggers = [logging.getLogger(name) for name in WARNING_OF_VIDEOS]
        for one in loggers:
            one.addFilter(self)
        try:
            yield
        finally:
            for one in loggers:
                one.removeFilter(self)
            self._before |= self._now


def _open(options: Validation) -> tuple[VideoSource, str]:
    """The set, and the name of its protocol: that of its kind where none is asked for."""
    splits = PROTOCOLS["youtube_vos"].splits if options.split is None else (options.split,)
    name = options.protocol or usual_protocol(open_videos(options.path, splits=splits).kind)
    lists = SEGMENTATION_PROTOCOLS[name].list_folders
    return open_videos(options.path, splits=splits, list_folders=lists), name


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


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


def _read(path: Path) -> dict[str, Any]:
    """What best.json holds; nothing where it is not there or was not written by us."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get("step"), int) and "of" in found:
        return found
    logger.warning("%s is damaged: the best validation so far is forgotten", path)
    return {}


class Best:
    """Which checkpoint of a run has scored best so far, in `best.json`."""

    def __init__(self, folder: Path, measure: str, standard: Mapping[str, Any], *, step: int) -> None:
        """Go on after `step` updates: what was found later will be found again.

        measure: name of the figure that decides. standard: see Validator; figures of another one do not count.
        """
        self._path, self._measure, self._standard = folder / BEST_FILE, measure, dict(standard)
        found = _read(self._path)
        counts = found and found["step"] <= step and found["of"] == self._standard and measure in found
        self._found = found if counts else {}

    @property
    def step(self) -> int | None:
        """Updates after which it was; None before the first validation."""
        return self._found.get("step")

    def offer(self, step: int, figures: dict[str, float]) -> bool:
        """Note the figures after a step if they are better than all before; whether they are."""
        # A run killed before its journal had the figures finds them again: then they are its own.
        if self._found and self._found["step"] != step and figures[self._measure] <= self._found[self._measure]:
            return False
        self._found = {"checkpoint": f"checkpoint-{step}.pt", "step": step, **figures, "of": self._standard}
        write_bytes(self._path, (json.dumps(self._found, indent=2) + "\n").encode())
        return True
