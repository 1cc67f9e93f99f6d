"""Data sets in their original layouts, one module a layout, chosen by kind."""

from __future__ import annotations

from collections.abc import Callable

from shards.sources.davis import open_davis2017
from shards.sources.types import Source, SourceRequest

SOURCES: dict[str, Callable[[SourceRequest], Source]] = {"davis2017": open_davis2017}
