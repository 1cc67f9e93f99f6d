"""DAVIS 2016: lists of frame pairs, 255 as the object, and the 2017 tree with its objects merged."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from shards.errors import DataError
from shards.findings import read_findings
from shards.reader import ShardSet
from shards.source_masks import read_mask
from tests.shards.other_trees import labels_of, write, write_davis2016
from tests.shards.small_tree import build_kind, indexed_png, label_maps, saved, write_tree


@pytest.fixture
def tree(tmp_path):
    videos = {"bear": label_maps(4, (1,), 1), "surf": [np.zeros((40, 56), np.uint8), *label_maps(3, (1,), 2)]}
    splits = {"train": ["bear"], "val": ["surf"], "trainval": ["bear", "surf"]}
    return write_davis2016(tmp_path / "tree", videos, splits)


def built(tree, out, **arguments):
    return ShardSet.open(build_kind("davis2016", [tree], out, **arguments).root)


def test_255_is_the_object_and_gets_id_1(tree, tmp_path):
    shard_set = built(tree, tmp_path / "out")
    for frame, labels in enumerate(label_maps(4, (1,), 1)):
        np.testing.assert_array_equal(labels_of(shard_set, "bear", frame), labels)
    assert shard_set.manifest.splits == {"train": 1, "trainval": 2, "val": 1}
    assert shard_set.videos.splits(0) == ("train", "trainval")
    assert shard_set.videos.palette(0) is None


def test_an_all_zero_mask_is_an_annotation_without_object(tree, tmp_path):
    shard_set = built(tree, tmp_path / "out")
    assert shard_set.annotated(1).all() and not labels_of(shard_set, "surf", 0).any()


def test_only_listed_frames_are_taken_and_the_others_reported(tree, tmp_path):
    path = tree / "ImageSets/480p/train.txt"
    path.write_text("\n".join(path.read_text().splitlines()[1:3]))
    shard_set = built(tree, tmp_path / "out", splits=("train",))
    assert [shard_set.frame_name(frame) for frame in shard_set.frame_rows(0)] == ["00001", "00002"]
    found = [(finding.reason, finding.found) for finding in read_findings(shard_set.path)]
    assert ("frames in no list", "2 others, the first is 00000.jpg") in found


def test_a_listed_frame_that_is_not_there_is_refused(tree, tmp_path):
    (tree / "JPEGImages/480p/bear/00002.jpg").unlink()
    with pytest.raises(DataError, match=r"bear/00002\.jpg: expected the listed image, found none"):
        built(tree, tmp_path / "out")


@pytest.mark.parametrize(
    "line",
    [
        "bear",
        "/JPEGImages/1080p/bear/0.jpg /Annotations/480p/bear/0.png",
        "/JPEGImages/480p/../0.jpg /Annotations/480p/../0.png",
    ],
)
def test_lines_that_are_no_pairs_of_this_resolution_are_refused(tree, tmp_path, line):
    (tree / "ImageSets/480p/train.txt").write_text(line)
    with pytest.raises(DataError, match="expected lines like"):
        built(tree, tmp_path / "out")


def test_a_split_that_is_not_there_lists_those_that_are(tree, tmp_path):
    with pytest.raises(DataError, match="found only train, trainval, val"):
        built(tree, tmp_path / "out", splits=("test",))


def test_masks_of_ids_in_such_a_tree_are_refused(tree, tmp_path):
    write(tree / "Annotations/480p/bear/00001.png", indexed_png(label_maps(1, (1, 2))[0]))
    with pytest.raises(DataError, match=r"only the values 0 and 255.*davis2017"):
        built(tree, tmp_path / "out")


def test_a_2017_tree_gives_all_objects_of_a_frame_as_one(tmp_path):
    maps = label_maps(3, (1, 2, 7), 3)
    maps[1][0, 0] = 255
    root = write_tree(tmp_path / "tree", {"one": maps, "two": label_maps(3, (1,))})
    write(root / "ImageSets/2016/val.txt", b"one\n")
    shard_set = built(root, tmp_path / "out")
    assert shard_set.manifest.splits == {"val": 1}
    for frame, labels in enumerate(maps):
        np.testing.assert_array_equal(labels_of(shard_set, "one", frame), labels > 0)


IDS = label_maps(1, (1,), 8)[0]
GREY = Image.fromarray(IDS * np.uint8(255))
STORED = {
    "grey": saved(GREY, "png"),
    "grey and alpha": saved(Image.merge("LA", (GREY, Image.new("L", GREY.size, 255))), "png"),
    "1 bit": saved(Image.fromarray(IDS > 0), "png"),
    "colour": saved(GREY.convert("RGB"), "png"),
    "palette": indexed_png(IDS),
    "0 and 1": saved(Image.fromarray(IDS), "png"),
}


@pytest.mark.parametrize("reading", ["binary", "merged"])
@pytest.mark.parametrize("way", STORED)
def test_every_way_of_storing_one_object_gives_id_1(way, reading):
    mask = read_mask(STORED[way], "lz4", reading)
    assert mask.objects.ids.tolist() == [1] and mask.objects.areas.tolist() == [int(IDS.sum())]
    assert not mask.has_void and mask.palette is None


def test_the_real_pack_has_the_union_of_the_2017_objects(shared_data, tmp_path):
    source = shared_data / "davis2016_mini"
    shard_set = built(source, tmp_path / "out")
    assert shard_set.manifest.splits == {"train": 2, "trainval": 3, "val": 1}
    assert (shard_set.num_videos, shard_set.num_frames) == (3, 20)
    with Image.open(source / "Annotations/480p/bear/00077.png") as image:
        assert image.mode == "LA"
        truth = np.array(image)[..., 0]
    np.testing.assert_array_equal(labels_of(shard_set, "bear", 3), truth == 255)
    assert [shard_set.frame_name(frame) for frame in shard_set.frame_rows(0)] == ["00074", "00075", "00076", "00077"]
    assert read_findings(shard_set.path) == []


def test_real_2017_masks_merge_into_the_silhouette(shared_data, tmp_path):
    source = shared_data / "davis_mini"
    shard_set = built(source, tmp_path / "out")
    assert shard_set.manifest.splits == {"val": 2}
    with Image.open(source / "Annotations/480p/horsejump-high/00000.png") as image:
        np.testing.assert_array_equal(labels_of(shard_set, "horsejump-high", 0), np.array(image) > 0)
