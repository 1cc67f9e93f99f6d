"""tools/datasets.py as people run it."""

from __future__ import annotations

import json
import shutil

import pytest

from shards.check import check_set
from shards.errors import DataError
from shards.manifest import read_manifest
from shards.reader import ShardSet
from shards.sets.unshard import unshard
from tests.shards.small_tree import build_set, files_of, label_maps, write_tree
from tools.datasets import APPEND_FOLDER, datasets


@pytest.fixture
def parent(tmp_path):
    videos = {f"v{n}": label_maps(2, (1, 2)[: 1 + n % 2], seed=n) for n in range(8)}
    tree = write_tree(tmp_path / "tree", videos, {"train": [f"v{n}" for n in range(6)], "val": ["v6", "v7"]})
    return build_set(tree, tmp_path / "sets", shard_size=15_000).root


@pytest.fixture
def more(tmp_path):
    return write_tree(
        tmp_path / "more", {"w0": label_maps(3, (4,)), "w1": label_maps(2, (5,))}, {"extra": ["w0", "w1"]}
    )


def names_in(root):
    with ShardSet.open(root) as shard_set:
        return list(shard_set.videos.original_names)


def test_info_says_what_is_in_a_set(parent, capsys):
    assert datasets(["info", str(parent)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "videos           8",
        "frames           16, 2 a video",
        "objects          12",
        "1 in 4 videos, 2 in 4 videos",
    ):
        assert words in printed
    assert "splits           train 6, val 2\n" in printed and "image sizes      56x40 of 8 videos\n" in printed
    assert datasets(["info", "--json", str(parent)]) == 0
    facts = json.loads(capsys.readouterr().out)
    with ShardSet.open(parent) as shard_set:
        assert facts["fingerprint"] == shard_set.fingerprint
        assert facts["shard_bytes"] == sum(path.stat().st_size for path in parent.glob("*.tar"))
    assert facts["videos_by_objects"] == {"1": 4, "2": 4} and facts["splits"] == {"train": 6, "val": 2}
    assert facts["image_sizes"] == [{"width": 56, "height": 40, "videos": 8}]
    assert (facts["annotated_frames"], facts["shortest_video"], facts["longest_video"]) == (16, 2, 2)
    assert facts["parents"] == [] and facts["options"] == {}


def test_subsets_by_split_list_and_fraction(parent, tmp_path):
    assert datasets(["subset", str(parent), str(tmp_path / "val"), "--split", "val"]) == 0
    assert names_in(tmp_path / "val") == ["v6", "v7"]
    (tmp_path / "names.txt").write_text("\ufeffv5\r\n\r\nv1\r\n", encoding="utf-8")
    assert datasets(["subset", str(parent), str(tmp_path / "two"), "--list", str(tmp_path / "names.txt")]) == 0
    assert names_in(tmp_path / "two") == ["v1", "v5"]
    for name in ("half", "half again"):
        assert datasets(["subset", str(parent), str(tmp_path / name / "h"), "--fraction", "0.5", "--seed", "3"]) == 0
    assert len(names_in(tmp_path / "half/h")) == 4
    assert (tmp_path / "half/h/manifest.json").read_bytes() == (tmp_path / "half again/h/manifest.json").read_bytes()
    arguments = ["--split", "train", "--fraction", "0.5"]
    assert datasets(["subset", str(parent), str(tmp_path / "both"), *arguments]) == 0
    assert len(names_in(tmp_path / "both")) == 3 and set(names_in(tmp_path / "both")) <= {f"v{n}" for n in range(6)}


def test_a_list_with_an_unknown_name_is_refused(parent, tmp_path):
    (tmp_path / "names.txt").write_text("v1\nyak\n")
    with pytest.raises(DataError, match=r"names\.txt: expected videos of the set, found 'yak'"):
        datasets(["subset", str(parent), str(tmp_path / "two"), "--list", str(tmp_path / "names.txt")])


def test_append_converts_new_videos_into_new_shards(parent, more, tmp_path, capsys):
    arguments = ["append", str(parent), "davis2017", str(more), "--jobs", "1"]
    assert datasets(arguments) == 0
    assert "10 videos, 21 frames" in capsys.readouterr().out
    assert names_in(parent) == [*(f"v{n}" for n in range(8)), "w0", "w1"]
    assert check_set(parent, 1, lambda facts: None).problems == () and not (parent / APPEND_FOLDER).exists()
    with pytest.raises(DataError, match=r"videos of new names, found 'w0' \(and 1 more\) in both"):
        datasets(arguments)
    grown = files_of(parent)
    (more / "JPEGImages/480p/w1/00000.jpg").write_bytes(b"")
    for path in ("JPEGImages", "Annotations"):
        (more / path / "480p/w0").rename(more / path / "480p/w2")
        (more / path / "480p/w1").rename(more / path / "480p/w3")
    (more / "ImageSets/2017/extra.txt").write_text("w2\nw3\n")
    with pytest.raises(DataError, match="w3/00000"):
        datasets(arguments)
    assert {name: data for name, data in files_of(parent).items() if not name.startswith(APPEND_FOLDER)} == grown


def test_a_set_that_grows_by_another_kind_is_given_back_in_neither_layout(parent, more, tmp_path):
    images, masks = more / "JPEGImages/480p", more / "Annotations/480p"
    assert datasets(["append", str(parent), "folder", str(images), str(masks), "--jobs", "1"]) == 0
    assert check_set(parent, 1, lambda facts: None).problems == ()
    with ShardSet.open(parent) as grown, pytest.raises(DataError, match="found 'mixed'"):
        unshard(grown, tmp_path / "back", lambda frames: None)
    assert not (tmp_path / "back").exists()


def test_append_does_not_take_what_an_append_of_another_source_left(parent, more, tmp_path):
    left = write_tree(tmp_path / "left", {"x0": label_maps(2, (6,))}, {"extra": ["x0"]})
    shard_size = read_manifest(parent).shard_size
    build_set(left, parent / APPEND_FOLDER, name=read_manifest(parent).name, shard_size=shard_size)
    with pytest.raises(DataError, match="another source"):
        datasets(["append", str(parent), "davis2017", str(more), "--jobs", "1"])
    assert names_in(parent) == [f"v{n}" for n in range(8)]


def test_append_refuses_videos_that_would_be_stored_otherwise(parent, more):
    with pytest.raises(DataError, match=r"stored as the others: .*'scaling': None.*found .*'scaling': \{"):
        datasets(["append", str(parent), "davis2017", str(more), "--jobs", "1", "--shorter-side", "30"])


def test_merge_and_rebuild_index(parent, more, tmp_path, capsys):
    other = build_set(more, tmp_path / "sets", name="more").root
    assert datasets(["merge", str(parent), str(other), str(tmp_path / "all"), "--link", "hardlink"]) == 0
    assert names_in(tmp_path / "all") == [*(f"v{n}" for n in range(8)), "w0", "w1"]
    before = files_of(tmp_path / "all")
    shutil.rmtree(tmp_path / "all" / "index")
    assert datasets(["rebuild-index", str(tmp_path / "all")]) == 0
    assert files_of(tmp_path / "all") == before and "21 frames" in capsys.readouterr().out


def test_dali_indexes_are_written_for_every_shard(parent, tmp_path, capsys):
    assert datasets(["dali-index", str(parent), str(tmp_path / "dali")]) == 0
    there = sorted(path.stem for path in (tmp_path / "dali").glob("*.idx"))
    assert there == sorted(path.stem for path in parent.glob("*.tar")) and len(there) > 1
    assert f"{len(there)} files" in capsys.readouterr().out


def test_videos_that_are_there_already_are_left_out_as_their_kind_can(parent, more, tmp_path):
    folder = tmp_path / "folder"
    (folder / "v1").mkdir(parents=True)
    shutil.copy(more / "JPEGImages/480p/w0/00000.jpg", folder / "v1")
    (more / "ImageSets/2017/extra.txt").write_text("v1\n")
    (more / "JPEGImages/480p/w0").rename(more / "JPEGImages/480p/v1")
    for kind, source in (("davis2017", more), ("folder", folder)):
        with pytest.raises(DataError, match=r"found 'v1' in both; leave them out: .*--list FILE"):
            datasets(["append", str(parent), kind, str(source), "--jobs", "1"])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frob"],
        ["subset", "a"],
        ["merge", "a"],
        ["append", "a", "b", "c"],
        *(["subset", "a", "b", "--fraction", share] for share in ("1.5", "0", "-1", "nan", "half")),
    ],
)
def test_bad_usage_is_one_line_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        datasets(arguments)
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1
