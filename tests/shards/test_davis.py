"""The DAVIS 2017 layout: lists with their quirks, files that belong together, and wrong folders."""

from __future__ import annotations

import os
import shutil

import pytest

from shards.errors import DataError
from shards.findings import read_findings
from shards.reader import ShardSet
from shards.sources import SOURCES
from shards.sources.options import SourceOptions
from shards.sources.types import SourceRequest
from tests.shards.small_tree import build_kind, label_maps, write_tree


def opened(root, splits=None, resolution="480p", **options):
    return SOURCES["davis2017"](SourceRequest((root,), splits, resolution, SourceOptions(**options)))


def reasons(source):
    return [(finding.severity, finding.reason, finding.video) for finding in source.findings]


def test_every_list_is_taken_and_a_video_of_two_lists_comes_once_with_both(tree):
    assert [(size.name, size.splits) for size in opened(tree).sizes()] == [
        ("bear", ("train", "val")),
        ("cup", ("val",)),
        ("dance", ("val",)),
        ("eel.v2 日本", ("train",)),
        ("fox", ("train",)),
    ]


def test_one_split_takes_its_videos_alone(tree):
    assert [size.name for size in opened(tree, ("train",)).sizes()] == ["bear", "eel.v2 日本", "fox"]


def test_sizes_are_those_of_the_files(tree):
    sizes = {size.name: size for size in opened(tree).sizes()}
    files = [path for path in tree.rglob("bear/*") if path.is_file()]
    assert sizes["bear"].num_frames == 6
    assert sizes["bear"].num_bytes == sum(path.stat().st_size for path in files)


def test_byte_order_marks_blanks_and_carriage_returns_do_not_count(tree):
    (tree / "ImageSets/2017/val.txt").write_bytes(b"\xef\xbb\xbfbear\r\n\r\n  cup  \r\nnone\r\nbear\r\n")
    source = opened(tree, ("val",))
    assert [size.name for size in source.sizes()] == ["bear", "cup"]
    assert reasons(source) == [("warning", "name twice in a list", "bear"), ("refused", "no such video", "none")]


def test_a_list_of_another_package_is_left_out_unless_it_was_asked_for(tree):
    (tree / "ImageSets/2017/test-dev.txt").write_text("salsa\n")
    source = opened(tree)
    assert reasons(source) == [("warning", "list without videos", "")]
    assert {split for size in source.sizes() for split in size.splits} == {"train", "val"}
    with pytest.raises(DataError, match="videos of test-dev"):
        opened(tree, ("test-dev",))


def test_a_list_of_davis_2016_is_recognised(tree):
    (tree / "ImageSets/2017/val.txt").write_text("/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png \n")
    with pytest.raises(DataError, match="DAVIS 2016"):
        opened(tree)


@pytest.mark.parametrize("missing", ["JPEGImages", "Annotations", "ImageSets"])
def test_a_folder_of_another_layout_is_refused_by_the_part_that_is_missing(tree, missing):
    shutil.rmtree(tree / missing)
    with pytest.raises(DataError, match=f"{missing}.*the layout of DAVIS 2017"):
        opened(tree)


def test_wrong_folders_splits_and_resolutions_name_what_there_is(tree):
    with pytest.raises(DataError, match=r"found no folder .*nowhere"):
        opened(tree / "nowhere")
    with pytest.raises(DataError, match=r"found only train, val; choose --split"):
        opened(tree, ("vall",))
    with pytest.raises(DataError, match=r"found only 480p beside it.*--resolution"):
        opened(tree, resolution="1080p")
    with pytest.raises(ValueError, match="takes one source folder, not 2"):
        SOURCES["davis2017"](SourceRequest((tree, tree), None, "480p"))


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    root = write_tree(tmp_path, {"one": label_maps(4, (1,))})
    folder = root / "JPEGImages/480p/one"
    for old, new in (("00000", "8"), ("00001", "9"), ("00002", "10"), ("00003", "11")):
        (folder / f"{old}.jpg").rename(folder / f"{new}.jpg")
    assert [frame.stem for frame in opened(root).video("one").frames] == ["8", "9", "10", "11"]


def test_hidden_files_are_passed_over_and_odd_names_are_listed(tmp_path):
    root = write_tree(tmp_path, {"one": label_maps(3, (1,))})
    images, masks = root / "JPEGImages/480p/one", root / "Annotations/480p/one"
    for name in (".DS_Store", "._00000.jpg", "Thumbs.db", "00001 (1).jpg", "notes.txt", "1.jpg"):
        shutil.copy(images / "00001.jpg", images / name)
    (images / "00002.jpg").rename(images / "00002.JPEG")
    shutil.copy(masks / "00001.png", masks / "00009.png")
    shutil.copy(masks / "00001.png", masks / "00001.bmp")
    video = opened(root).video("one")
    assert [(frame.stem, frame.mask is not None) for frame in video.frames] == [
        ("00000", True),
        ("00001", True),
        ("00002", True),
    ]
    assert [frame.mask.name for frame in video.frames] == ["00000.png", "00001.png", "00002.png"]
    assert [(finding.severity, finding.reason, finding.path.rpartition("/")[2]) for finding in video.findings] == [
        ("warning", "no frame name", "00001 (1).jpg"),
        ("refused", "frame number twice", "1.jpg"),
        ("warning", "no frame name", "notes.txt"),
        ("warning", "two masks for one frame", "00001.bmp"),
        ("warning", "mask without image", "00009.png"),
    ]


def test_test_dev_has_masks_of_first_frames_only_and_that_is_no_remark(tmp_path):
    maps = {name: [label_maps(1, (1, 2))[0], None, None, None] for name in ("salsa", "cats-car")}
    root = write_tree(tmp_path / "tree", maps, {"test-dev": list(maps)})
    with ShardSet.open(build_kind("davis2017", [root], tmp_path / "out").root) as shard_set:
        assert shard_set.manifest.splits == {"test-dev": 2} and read_findings(shard_set.path) == []
        assert shard_set.annotated(0).tolist() == [True, False, False, False]
        assert shard_set.starts(1) == {4: (1, 2)}


def test_unsupervised_masks_lie_in_their_own_folder_and_the_test_sets_of_2019_have_none(tmp_path):
    videos = {"bear": label_maps(3, (1, 2)), "gap": [label_maps(1, (1,))[0], *[None] * 2, label_maps(1, (1,))[0]]}
    root = write_tree(tmp_path / "tree", videos | {"new": [None] * 3}, {"train": ["bear", "gap"], "test-dev": ["bear"]})
    (root / "ImageSets/2019").mkdir()
    (root / "ImageSets/2019/test-dev.txt").write_text("new\n")
    with pytest.raises(DataError, match=r"Annotations_unsupervised/480p.*the layout of DAVIS 2017"):
        opened(root, annotations="unsupervised")
    (root / "Annotations").rename(root / "Annotations_unsupervised")
    options = SourceOptions(annotations="unsupervised")
    with ShardSet.open(build_kind("davis2017", [root], tmp_path / "out", options=options).root) as shard_set:
        # The list of 2019 wins over the one of 2017 of the same name.
        assert [shard_set.videos.splits(row) for row in range(3)] == [("train",), ("train",), ("test-dev",)]
        assert [int(shard_set.annotated(row).sum()) for row in range(3)] == [3, 2, 0]
        assert [one.video for one in read_findings(shard_set.path)] == ["gap"]
        assert shard_set.manifest.options == {"annotations": "unsupervised"}


def test_a_list_of_ones_own_chooses_videos_and_becomes_a_split(tree, tmp_path):
    names = tmp_path / "few.txt"
    names.write_text("fox\nbear\n")
    source = opened(tree, lists=(names,))
    assert [(size.name, size.splits) for size in source.sizes()] == [
        ("bear", ("few", "train", "val")),
        ("fox", ("few", "train")),
    ]


def test_names_that_are_not_utf8_are_refused_one_by_one(tree):
    folder = tree / "JPEGImages/480p"
    (folder / os.fsdecode(b"caf\xe9")).mkdir()
    shutil.copy(folder / "fox/00001.jpg", folder / "fox" / os.fsdecode(b"\xff00009.jpg"))
    source = opened(tree)
    assert reasons(source) == [("refused", "name is not UTF-8", "caf\\xe9")]
    (finding,) = source.video("fox").findings
    assert (finding.reason, finding.path) == ("name is not UTF-8", "JPEGImages/480p/fox/\\xff00009.jpg")
    finding.encode()
