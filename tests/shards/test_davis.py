"""The DAVIS 2017 layout: lists with their quirks, files that belong together, and wrong folders."""

from __future__ import annotations

import shutil

import pytest

from shards.errors import DataError
from shards.sources import SOURCES
from shards.sources.types import SourceRequest
from tests.shards.small_tree import label_maps, write_tree


def opened(root, splits=None, resolution="480p"):
    return SOURCES["davis2017"](SourceRequest((root,), splits, resolution))


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
