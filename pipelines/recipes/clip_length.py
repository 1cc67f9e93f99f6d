"""How many frames the clips of a step have: the same all through a stage, or by a table of progress."""

from __future__ import annotations

from typing import Any

from pipelines.recipes.limits import Limits, table_of
from pipelines.recipes.request import Recipe


def length_at(recipe: Recipe, step: int, steps: int) -> int:
    """Frames of the clips of a step of a stage of `steps` steps."""
    return recipe.num_frames if recipe.clip_length is None else int(recipe.clip_length.at(step, steps))


def clip_lengths(recipe: Recipe) -> list[int]:
    """All lengths that clips of a recipe may have, ascending."""
    if recipe.clip_length is None:
        return [recipe.num_frames]
    return sorted({int(length) for _, length in recipe.clip_length.rows})


def set_clip_length(recipe: Recipe, *, shortest: int) -> None:
    """Make a table of the rows in the field clip_length of a frozen recipe; ValueError for lengths that make no clip.

    shortest: frames that the recipe's clips have at least.
    """
    rows: Any = recipe.clip_length
    if rows is not None:
        table = table_of("clip_length", rows, Limits(1, shortest, recipe.num_frames, whole=True))
        object.__setattr__(recipe, "clip_length", table)
