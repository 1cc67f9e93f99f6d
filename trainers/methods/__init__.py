"""What training and segmenting need to know of a method's network; its losses are in trainers/objectives."""

from __future__ import annotations

from trainers.methods.rde import RdeMethod, RdeNetwork
from trainers.methods.types import Method

METHODS: dict[str, Method] = {"rde": RdeMethod()}

NetworkOptions = RdeNetwork
"""The `model` section of a config, told apart by its `name`."""
