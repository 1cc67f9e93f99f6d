"""Model and losses as one module per method: `forward` takes a batch's tensors and gives the loss."""

from __future__ import annotations

from trainers.objectives.rde import RdeObjective

OBJECTIVES = {"rde": RdeObjective}
