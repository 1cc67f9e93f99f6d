"""tools/unshard.py as people run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.shards.small_tree import build_set, files_of, label_maps, write_tree
from tools.unshard import unshard_tool

REPOSITORY = Path(__file__).resolve().parents[2]


def test_shard_and_unshard_give_the_images_and_lists_back(tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", {"bear": label_maps(3, (1, 2))}, {"val": ["bear"]})
    root = build_set(tree, tmp_path / "out").root
    assert unshard_tool([str(root), str(tmp_path / "back")]) == 0
    assert "1 video, 3 frames" in capsys.readouterr().out
    for folder in ("JPEGImages", "ImageSets"):
        assert files_of(tmp_path / "back" / folder) == files_of(tree / folder)
    assert set(files_of(tmp_path / "back")) == set(files_of(tree))


def test_a_set_that_is_not_there_is_one_message_and_status_1(tmp_path):
    command = [sys.executable, str(REPOSITORY / "tools/unshard.py"), str(tmp_path / "none"), str(tmp_path / "back")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert result.returncode == 1 and "manifest.json: expected" in result.stderr and "Traceback" not in result.stderr
