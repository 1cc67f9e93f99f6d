"""Model and losses as one module per method: `forward` takes a batch's tensors and gives the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.rde import Rde
from trainers.objectives.rde import RdeObjective
from trainers.objectives.rde_still import RdeStillObjective

OBJECTIVES: dict[str, Callable[[Rde, Any], RdeObjective | RdeStillObjective]] = {
    "rde": RdeObjective,
    "rde_still": RdeStillObjective,
}
