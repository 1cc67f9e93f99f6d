"""tools/check.py as people run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shards.small_tree import build_set, label_maps, write_tree
from tools.check import check


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tree = write_tree(tmp_path / "tree", {"bear": label_maps(3, (1, 2))})
    return build_set(tree, tmp_path / "out").root


def test_a_sound_set_gives_a_table_and_status_0(root, capsys):
    assert check([str(root), str(root), "--jobs", "1"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["set", "shards", "videos", "frames", "MB", "refused", "problems"]
    assert [line.split()[:4] for line in table[1:]] == [["davis2017", "1", "1", "3"]] * 2
    assert table[1].split()[-1] == "none"


def test_damage_gives_place_and_status_1(root, capsys):
    shard = root / "davis2017-000000.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(b"\xff\xd8") + 300] ^= 1
    shard.write_bytes(data)
    assert check([str(root), "--jobs", "1"]) == 1
    printed = capsys.readouterr().out
    assert f"{shard}: " in printed and "video bear, frame 00000" in printed


def test_a_folder_that_is_no_set_does_not_keep_the_others_from_being_checked(root, tmp_path, capsys):
    assert check([str(tmp_path / "nothing"), str(root), "--jobs", "1"]) == 1
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'nothing' / 'manifest.json'}: expected the manifest of a finished shard set" in printed
    assert [line.split()[-1] for line in printed.splitlines()[1:3]] == ["1", "none"]


def test_the_index_is_made_again_on_request(root, capsys):
    sound = (root / "index/frames.arrow").read_bytes()
    (root / "index/frames.arrow").unlink()
    assert check([str(root), "--jobs", "1"]) == 1
    assert "--rebuild-index" in capsys.readouterr().out
    assert check([str(root), "--jobs", "1", "--rebuild-index"]) == 0
    assert (root / "index/frames.arrow").read_bytes() == sound


def test_bad_usage_is_status_2(capsys):
    for arguments in ([], ["set", "--jobs", "0"]):
        with pytest.raises(SystemExit) as caught:
            check(arguments)
        assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1
