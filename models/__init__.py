"""Networks. Torch only; imports nothing of ours."""

from __future__ import annotations

from typing import Any

from models.rde import Rde

MODELS: dict[str, type[Rde]] = {"rde": Rde}


def find(name: str) -> type[Rde]:
    """The model class of that name. Raises ValueError listing the names if there is none."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(sorted(MODELS))}")
    return MODELS[name]


def build(name: str, **options: Any) -> Rde:
    """The model of that name, built with its own options. Raises ValueError listing the names if there is none."""
    return find(name)(**options)
