"""What training and segmenting need to know of a method's network; its losses are in trainers/objectives."""

from __future__ import annotations

from typing import Annotated

from pydantic import Tag

from trainers.choices import chosen_by_name
from trainers.methods.mtmfi import MtmfiMethod, MtmfiNetwork
from trainers.methods.rde import RdeMethod, RdeNetwork
from trainers.methods.stm import StmMethod, StmNetwork
from trainers.methods.types import Method

METHODS: dict[str, Method] = {"rde": RdeMethod(), "stm": StmMethod(), "mtmfi": MtmfiMethod()}

NetworkOptions = Annotated[
    Annotated[RdeNetwork, Tag("rde")] | Annotated[StmNetwork, Tag("stm")] | Annotated[MtmfiNetwork, Tag("mtmfi")],
    chosen_by_name(default="rde"),
]
"""The `model` section of a config, told apart by its `name`."""
