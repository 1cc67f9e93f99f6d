"""What is no regular file in the folders of a source: listed, never opened."""

from __future__ import annotations

import os
import socket

import pytest

from shards.errors import DataError
from shards.findings import read_findings
from shards.reader import ShardSet
from tests.shards.other_trees import write_bl30k
from tests.shards.small_tree import build_kind, build_set, label_maps, write_tree


def make_fifo(path):
    os.mkfifo(path)


def make_loop(path):
    path.symlink_to(path.name)


def make_broken_link(path):
    path.symlink_to("/nowhere/at all")


def make_socket(path):
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # names of sockets must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def make_folder(path):
    path.mkdir()


KINDS = {
    make_folder: "a folder",
    make_fifo: "a FIFO",
    make_loop: "a link that leads to itself",
    make_broken_link: r"a link to nothing \(/nowhere/at all\)",
    make_socket: "a socket",
}


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree", {"bear": label_maps(3, (1,)), "cup": label_maps(3, (2,))})


@pytest.mark.parametrize(("make", "found"), KINDS.items())
@pytest.mark.parametrize("file", ["JPEGImages/480p/bear/00001.jpg", "Annotations/480p/bear/00001.png"])
def test_it_is_refused_in_the_place_of_a_frame_or_mask(tree, tmp_path, make, found, file):
    (tree / file).unlink()
    make(tree / file)
    with pytest.raises(DataError, match=rf"bear/00001\.\w+: expected a regular file, found {found}; restore the file"):
        build_set(tree, tmp_path / "stop")
    root = build_set(tree, tmp_path / "skip", on_bad="skip").root
    assert [(one.path, one.reason, one.what_was_done) for one in read_findings(root)] == [
        (file, "no regular file", "video dropped")
    ]
    with ShardSet.open(root) as shard_set:
        assert shard_set.videos.original_names[:] == ["cup"]


def test_a_link_to_a_file_counts_as_the_file(tree, tmp_path):
    image = tree / "JPEGImages/480p/bear/00001.jpg"
    whole = build_set(tree, tmp_path / "whole").manifest
    image.rename(tmp_path / "elsewhere.jpg")
    image.symlink_to(tmp_path / "elsewhere.jpg")
    assert build_set(tree, tmp_path / "linked").manifest == whole


@pytest.mark.parametrize("make", [make_fifo, make_loop, make_broken_link])
def test_a_list_that_cannot_be_read_ends_the_build(tree, tmp_path, make):
    make(tree / "ImageSets/2017/val.txt")
    with pytest.raises(DataError, match=r"val\.txt: expected a list of videos, found a "):
        build_set(tree, tmp_path / "out", on_bad="skip")


def test_a_folder_of_a_video_that_is_a_broken_link_is_no_smaller_set(tmp_path):
    folder = write_bl30k(tmp_path / "BL30K", {name: label_maps(3, (1,)) for name in ("kea0", "kea1")})
    (folder / "JPEGImages/kea1").rename(tmp_path / "moved")
    (folder / "JPEGImages/kea1").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"JPEGImages/kea1: expected the folder of a video, found a link to nothing"):
        build_kind("bl30k", [folder], tmp_path / "out")


@pytest.mark.parametrize("make", [make_fifo, make_broken_link])
def test_still_images_that_are_no_files_are_refused_and_compared_with_nothing(tmp_path, make):
    videos = {"a": label_maps(1, (1,)), "b": label_maps(1, (1,))}
    tree = write_tree(tmp_path / "tree", videos)
    (tmp_path / "static/ecssd").mkdir(parents=True)
    for name in videos:
        (tree / f"JPEGImages/480p/{name}/00000.jpg").rename(tmp_path / f"static/ecssd/{name}.jpg")
        (tree / f"Annotations/480p/{name}/00000.png").rename(tmp_path / f"static/ecssd/{name}.png")
    (tmp_path / "static/ecssd/a.jpg").unlink()
    (tmp_path / "static/ecssd/b.jpg").unlink()
    make(tmp_path / "static/ecssd/a.jpg")
    make(tmp_path / "static/ecssd/b.jpg")
    with pytest.raises(DataError, match=r"ecssd/a\.jpg: expected a regular file"):
        build_kind("static", [tmp_path / "static"], tmp_path / "out")
