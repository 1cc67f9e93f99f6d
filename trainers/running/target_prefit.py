"""Fitting all target models of a stage before its training, so that no step has to wait for one.

Each of several processes takes its share of the (frame, object) pairs; what is in the cache already is passed over, so
a stopped run goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pipelines.assembly import make_assembly
from pipelines.executors import make_executor
from pipelines.order.sampling import annotated_frames
from pipelines.recipes import ClipRequest, Mtmfi
from pipelines.source import ClipSource
from pipelines.types import ClipPlan
from trainers.config import Config, ConfigError
from trainers.objectives.mtmfi import MtmfiObjective, MtmfiObjectiveOptions
from trainers.running.stages import Place, executor_name, open_sources
from trainers.running.starting import make_model
from trainers.targets.cache import SizeReport


@dataclass(frozen=True, slots=True)
class Prefit:
    """pairs: of this process's share; fitted: those that were not there. caches: one report per data set."""

    pairs: int
    fitted: int
    caches: tuple[SizeReport, ...]


def prefit(
    config: Config, position: int, place: Place, *, on_start: Callable[[int], object], on_fit: Callable[[int], object]
) -> Prefit:
    """Fit what stage `position` may ask for and its cache lacks.

    on_start(n): n are missing. on_fit(n): n more are in the cache. Raises ConfigError for a stage without a cache.
    """
    stage = config.stages[position]
    if not isinstance(stage.objective, MtmfiObjectiveOptions) or not stage.objective.cache:
        problem = f"stage {stage.name} keeps no target models"
        key = f"stages.{position}.objective.cache"
        raise ConfigError(config.name, problem, key=key, remedy="set it to true, of an objective mtmfi")
    with ExitStack() as stack:
        source = open_sources(config, stack)[position]
        objective = MtmfiObjective(make_model(config, None).to(place.device), stage.objective)  # type: ignore[arg-type]
        objective.use_source(source)
        pairs = list(reference_plans(source))[place.ranks.rank :: place.ranks.world_size]
        missing = [plan for plan in pairs if not objective.keeps(plan)]
        on_start(len(missing))
        executor = make_executor(
            executor_name(config, place.device), threads=place.threads.loading, device=place.device
        )
        stack.callback(executor.close)
        assembly = make_assembly(source.recipe, place.device)
        for plans in _parts(missing, stage.objective.fit_at_once):
            batch, _ = assembly(executor([source.read(plan) for plan in plans]), plans, step=0)
            objective.arguments(batch)
            on_fit(len(plans))
        return Prefit(len(pairs), len(missing), objective.reports())


def reference_plans(source: ClipSource) -> Iterator[ClipPlan]:
    """A plan of one frame for every frame and object that a clip of the stage may have as its reference."""
    recipe = source.recipe
    assert isinstance(recipe, Mtmfi)
    for dataset, (entry, selection) in enumerate(zip(source.mix.entries, source.mix.selections, strict=True)):
        for video in sorted(set(selection.videos.tolist())):
            request = ClipRequest(source.key, 0, dataset, entry.dataset, video, entry.gap_step, 0, source.steps)
            usual = recipe.plan(request)
            rows = annotated_frames(entry.dataset, video)
            for object_id, visible in recipe.visible_frames(entry.dataset, video).items():
                for row in rows[visible].tolist():
                    yield _of_reference(usual, row, object_id)


def _of_reference(usual: ClipPlan, row: int, object_id: int) -> ClipPlan:
    """The clip `usual` cut down to its frame 0, which becomes another one."""
    return dataclasses.replace(
        usual,
        frames=(row,),
        object_ids=(object_id,),
        matrices=usual.matrices[:1],
        colours=usual.colours[:1],
        label_matrices=None if usual.label_matrices is None else usual.label_matrices[:1],
    )


def _parts(plans: Sequence[ClipPlan], size: int) -> Iterator[list[ClipPlan]]:
    for start in range(0, len(plans), size):
        yield list(plans[start : start + size])
