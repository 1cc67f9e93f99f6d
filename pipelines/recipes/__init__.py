"""The published ways to make a training clip out of a video, by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from pipelines.order.curriculum import Table
from pipelines.recipes.clip_length import clip_lengths, length_at
from pipelines.recipes.mtmfi import Mtmfi
from pipelines.recipes.rde import RdeBl30k, RdeVideo
from pipelines.recipes.rde_static import RdeStatic
from pipelines.recipes.request import ClipRequest, Recipe
from pipelines.recipes.stm_cycle import StmCycle, StmCycleDali, StmCyclePaper
from pipelines.types import AreaRule

__all__ = [
    "RECIPES",
    "ClipRequest",
    "Mtmfi",
    "RdeBl30k",
    "RdeStatic",
    "RdeVideo",
    "Recipe",
    "StmCycle",
    "StmCycleDali",
    "StmCyclePaper",
    "clip_lengths",
    "length_at",
    "make_recipe",
    "recipe_options",
]

RECIPES: dict[str, type[RdeVideo | RdeStatic | StmCycle | Mtmfi]] = {
    "rde_static": RdeStatic,
    "rde_bl30k": RdeBl30k,
    "rde_video": RdeVideo,
    "stm_cycle": StmCycle,
    "stm_cycle_paper": StmCyclePaper,
    "stm_cycle_dali": StmCycleDali,
    "mtmfi": Mtmfi,
    "frtm": Mtmfi,
}


def make_recipe(name: str, options: Mapping[str, Any]) -> Recipe:
    """The recipe of this name with the given fields instead of the published ones.

    options: field -> value as YAML gives it: lists for pairs, rows for tables, one number for a square size.
    Raises ValueError for an unknown name or field, listing those there are, and for a value that makes no clip.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}{_meant(name, RECIPES)}; there are: {', '.join(RECIPES)}")
    fields = [field.name for field in dataclasses.fields(RECIPES[name])]
    for option in options:
        if option not in fields:
            raise ValueError(f"recipe {name} has no {option!r}{_meant(option, fields)}; it has: {', '.join(fields)}")
    return RECIPES[name](**options)


def recipe_options(recipe: Recipe) -> dict[str, Any]:
    """Every field of a recipe as plain values: `make_recipe` with these gives the same recipe."""
    names = [field.name for field in dataclasses.fields(type(recipe))]  # type: ignore[arg-type]  # a protocol's members
    return {name: _plain(getattr(recipe, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, Table):
        return [list(row) for row in value.rows]
    if isinstance(value, AreaRule):
        return list(dataclasses.astuple(value))
    return list(value) if isinstance(value, tuple) else value


def _meant(word: str, known: Mapping[str, Any] | list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]!r}" if close else ""
