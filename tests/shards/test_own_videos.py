"""People's own videos: two folders, any image format, with or without masks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from shards.errors import DataError
from shards.findings import read_findings
from shards.reader import ShardSet
from shards.sources import SOURCES
from shards.sources.options import SourceOptions
from shards.sources.types import SourceRequest
from tests.shards.other_trees import labels_of, write
from tests.shards.small_tree import build_kind, indexed_png, jpeg, label_maps, saved

MAPS = label_maps(3, (1, 2), 4)


@pytest.fixture
def folders(tmp_path):
    """(images, masks): `cat` with one mask, `dog 2` as PNGs without any."""
    images, masks = tmp_path / "frames", tmp_path / "masks"
    for frame in range(3):
        write(images / f"cat/{frame:05d}.jpg", jpeg(frame))
        picture = Image.fromarray(np.full((40, 56, 3), 40 * frame, np.uint8))
        write(images / f"dog 2/frame_{frame}.png", saved(picture, "png"))
    write(masks / "cat/00001.png", indexed_png(MAPS[1]))
    return images, masks


def built(paths, out, **arguments):
    return ShardSet.open(build_kind("folder", paths, out, **arguments).root)


def test_videos_without_any_mask_are_taken(folders, tmp_path):
    shard_set = built(folders[:1], tmp_path / "out")
    assert shard_set.videos.original_names[:] == ["cat", "dog 2"]
    assert not shard_set.annotated(0).any() and shard_set.starts(0) == {}
    assert shard_set.manifest.splits == {"all": 2}


def test_masks_are_found_below_the_second_folder(folders, tmp_path):
    shard_set = built(folders, tmp_path / "out")
    assert shard_set.annotated(0).tolist() == [False, True, False]
    np.testing.assert_array_equal(labels_of(shard_set, "cat", 1), MAPS[1])
    assert not shard_set.annotated(1).any()


def test_frames_of_another_format_become_jpegs_and_are_listed_once(folders, tmp_path):
    shard_set = built(folders, tmp_path / "out")
    assert [(one.reason, one.video, one.found) for one in read_findings(shard_set.path)] == [
        ("image is no JPEG", "dog 2", "3 other images")
    ]
    rows = shard_set.frame_rows(1)
    assert [shard_set.file_name(row) for row in rows] == ["frame_0.jpg", "frame_1.jpg", "frame_2.jpg"]
    assert shard_set.read(rows[0]).image.startswith(b"\xff\xd8")


@pytest.mark.parametrize(("reading", "expected"), [("binary", 1), ("merged", 1)])
def test_what_values_mean_can_be_said(folders, tmp_path, reading, expected):
    grey = saved(Image.fromarray((MAPS[1] > 0).astype(np.uint8) * np.uint8(255)), "png")
    write(folders[1] / "cat/00001.png", grey)
    with pytest.raises(DataError, match="255 is the object in DAVIS 2016"):
        built(folders, tmp_path / "ids")
    shard_set = built(folders, tmp_path / "out", options=SourceOptions(masks=reading))
    np.testing.assert_array_equal(labels_of(shard_set, "cat", 1), (MAPS[1] > 0) * expected)
    assert shard_set.manifest.options == {"masks": reading}


def test_findings_hold_no_path_of_the_machine(folders, tmp_path):
    write(folders[1] / "cat/00002.png", b"no PNG")
    shard_set = built(folders, tmp_path / "out", on_bad="skip")
    (refused,) = [one for one in read_findings(shard_set.path) if one.severity == "refused"]
    assert refused.path == "../masks/cat/00002.png"
    with pytest.raises(DataError, match=r"frames/\.\./masks/cat/00002\.png: expected a PNG"):
        built(folders, tmp_path / "stop")


def test_a_list_chooses_videos(folders, tmp_path):
    names = tmp_path / "mine.txt"
    names.write_text("dog 2\n")
    shard_set = built(folders, tmp_path / "out", options=SourceOptions(lists=(names,)))
    assert shard_set.videos.original_names[:] == ["dog 2"] and shard_set.manifest.splits == {"all": 1, "mine": 1}
    names.write_text("nobody\n")
    with pytest.raises(DataError, match="none of them"):
        built(folders, tmp_path / "other", options=SourceOptions(lists=(names,)))


def test_a_folder_without_videos_is_refused(folders, tmp_path):
    with pytest.raises(DataError, match="expected a folder for each video, found none"):
        built([folders[0] / "cat"], tmp_path / "out")


def test_the_folder_above_images_and_masks_is_not_taken_for_videos(tmp_path):
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / "mine" / name / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"found JPEGImages and Annotations; give the folders that hold the videos"):
        built([tmp_path / "mine"], tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "options", "flag"),
    [
        ("davis2016", SourceOptions(masks="binary"), "--masks means nothing for davis2016"),
        ("davis2017", SourceOptions(duplicates="drop"), "--duplicates means nothing for davis2017"),
        ("youtube_vos", SourceOptions(md5="skip"), "--md5 means nothing for youtube_vos"),
        ("static", SourceOptions(annotations="unsupervised"), "--annotations means nothing for static"),
        ("folder", SourceOptions(md5="skip"), "--md5 means nothing for folder"),
        ("bl30k", SourceOptions(masks="merged"), "--masks means nothing for bl30k"),
    ],
)
def test_an_option_that_a_kind_does_not_know_is_refused(tmp_path, kind, options, flag):
    with pytest.raises(ValueError, match=flag):
        SOURCES[kind](SourceRequest((tmp_path,), None, "480p", options))


def test_a_set_is_not_put_among_the_videos_it_is_made_of(folders):
    with pytest.raises(ValueError, match=r"would lie among the images of .*give an OUT beside them"):
        built(folders[:1], folders[0] / "sets")
    assert not (folders[0] / "sets").exists()
