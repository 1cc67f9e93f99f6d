"""Model and losses as one module per method: `forward` takes a batch's tensors and gives the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import Tag

from pipelines.source import ClipSource
from trainers.choices import chosen_by_name
from trainers.objectives.mtmfi import MtmfiObjective, MtmfiObjectiveOptions
from trainers.objectives.rde import RdeObjective, RdeObjectiveOptions
from trainers.objectives.rde_still import RdeStillObjective, RdeStillOptions
from trainers.objectives.stm_cycle import StmCycleObjective, StmCycleOptions

OBJECTIVES: dict[str, Callable[[Any, Any], Any]] = {
    "rde": RdeObjective,
    "rde_still": RdeStillObjective,
    "stm_cycle": StmCycleObjective,
    "mtmfi": MtmfiObjective,
}
"""(network, options) -> a module that is an Objective of trainers.running.loop."""


@runtime_checkable
class UsesSource(Protocol):
    """An objective that wants to know what its clips are drawn from, before the first batch."""

    def use_source(self, source: ClipSource) -> None:
        """Called once, with the clips of the stage."""


ObjectiveOptions = Annotated[
    Annotated[RdeObjectiveOptions, Tag("rde")]
    | Annotated[RdeStillOptions, Tag("rde_still")]
    | Annotated[StmCycleOptions, Tag("stm_cycle")]
    | Annotated[MtmfiObjectiveOptions, Tag("mtmfi")],
    chosen_by_name(default="rde"),
]
"""A stage's `objective` section, told apart by its `name`."""
