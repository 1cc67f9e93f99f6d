"""The options of single kinds as people type them."""

from __future__ import annotations

import json

import pytest

from shards.scaling import Scaling
from shards.sources.options import SourceOptions
from tests.shards.other_trees import write_bl30k
from tests.shards.small_tree import files_of, label_maps, write_tree
from tests.shards.test_bl30k import write_tar
from tools.cli import Parser
from tools.shard import shard
from tools.source_arguments import add_source_arguments, source_options


def parsed(*arguments):
    parser = Parser(prog="shard.py")
    add_source_arguments(parser)
    return source_options(parser.parse_args(list(arguments)))


def test_nothing_given_is_the_default():
    assert parsed() == SourceOptions()


def test_every_option_arrives(tmp_path):
    assert parsed("--annotations", "unsupervised").annotations == "unsupervised"
    assert parsed("--masks", "merged").masks == "merged"
    assert parsed("--duplicates", "drop").duplicates == "drop"
    assert parsed("--md5", "skip").md5 == "skip"
    lists = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert [str(path) for path in parsed("--list", lists[0], "--list", lists[1]).lists] == lists
    given = ("--shorter-side", "480", "--enlarge", "--rounding", "nearest", "--jpeg-quality", "90")
    assert parsed(*given).scaling == Scaling(480, enlarge=True, rounding="nearest", jpeg_quality=90)


def test_a_scaled_set_is_built_and_says_so(tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", {"one": label_maps(3, (1,))})
    assert shard(["davis2017", str(tree), str(tmp_path / "out"), "--shorter-side", "20", "--jobs", "1"]) == 0
    manifest = json.loads((tmp_path / "out/davis2017/manifest.json").read_text())
    assert manifest["options"]["scaling"]["shorter_side"] == 20


def test_options_of_other_kinds_are_bad_usage_by_name(tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", {"one": label_maps(3, (1,))})
    with pytest.raises(SystemExit) as caught:
        shard(["davis2017", str(tree), str(tmp_path / "out"), "--md5", "skip"])
    assert caught.value.code == 2 and "--md5 means nothing for davis2017" in capsys.readouterr().err


def test_a_dry_run_over_tars_leaves_nothing_behind(tmp_path, capsys):
    folder = write_bl30k(tmp_path / "BL30K", {"kea00001": label_maps(3, (1, 4))})
    tar = write_tar(tmp_path / "a.tar", files_of(folder).items())
    assert shard(["bl30k", str(tar), str(tmp_path / "out"), "--dry-run", "--jobs", "1"]) == 0
    assert "1 video, 3 frames" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
