"""Data sets in their original layouts, one module a layout, chosen by kind."""

from __future__ import annotations

from collections.abc import Callable

from shards.sources.bl30k import open_bl30k
from shards.sources.davis import open_davis2017
from shards.sources.davis2016 import open_davis2016
from shards.sources.own_videos import open_folder
from shards.sources.static import open_static
from shards.sources.types import Source, SourceRequest
from shards.sources.youtube_vos import open_youtube_vos

SOURCES: dict[str, Callable[[SourceRequest], Source]] = {
    "bl30k": open_bl30k,
    "davis2016": open_davis2016,
    "davis2017": open_davis2017,
    "folder": open_folder,
    "static": open_static,
    "youtube_vos": open_youtube_vos,
}
