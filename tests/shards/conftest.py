"""Fixtures of the shard tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shards.small_tree import label_maps, write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of five videos: one without most masks, one with an odd name, one in two splits."""
    videos = {
        "bear": label_maps(6, (1, 2), seed=1),
        "cup": [label_maps(1, (3,), seed=2)[0], None, None],
        "dance": label_maps(4, (1, 7, 254), seed=3),
        "eel.v2 日本": label_maps(5, (1,), seed=4),
        "fox": label_maps(4, (2,), seed=5),
    }
    splits = {"train": ["bear", "eel.v2 日本", "fox"], "val": ["cup", "dance", "bear"]}
    return write_tree(tmp_path / "tree", videos, splits)
