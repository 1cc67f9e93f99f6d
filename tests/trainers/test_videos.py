from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.errors import DataError
from shards.masks import MASK_CODECS, MaskCodec
from shards.palettes import voc_palette
from tests.trainers.small_videos import label_map, write_results, write_tree
from trainers.prediction.video_folders import UnknownNameError, read_split_list
from trainers.prediction.videos import VideoSource, choose_split, choose_videos, open_videos
from trainers.scoring.protocols import PROTOCOLS, evaluate
from trainers.scoring.types import find_results

VIDEOS = {"one": (1,), "vidéo 2": (1, 2)}


def build_set(tree: Path, out: Path, codec: MaskCodec = "lz4") -> Path:
    request = BuildRequest("davis2017", (tree,), out, mask_codec=codec)
    return build(request, make_plan(request), silent).root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", VIDEOS)


@pytest.fixture(params=["folder", *MASK_CODECS])
def source(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> VideoSource:
    if request.param == "folder":
        return open_videos(tree)
    return open_videos(build_set(tree, tmp_path / "sets", request.param))


def test_shards_and_folder_hold_the_same_videos_under_their_own_names(source: VideoSource, tree: Path) -> None:
    assert sorted(source.select("val")) == sorted(VIDEOS)
    for video, ids in VIDEOS.items():
        names = tuple(f"{frame:05d}" for frame in range(6))
        assert source.frame_names(video) == source.annotated_names(video) == names
        for frame, name in enumerate(names):
            np.testing.assert_array_equal(source.read_labels(video, name), label_map(ids, frame))
            image = tree / "JPEGImages" / "480p" / video / f"{name}.jpg"
            assert source.read_image(video, name) == image.read_bytes()
        assert video in source.locate(video, "00003")
        assert "00003" in source.locate(video, "00003")


def test_both_sources_score_alike_also_in_processes(source: VideoSource, tmp_path: Path) -> None:
    results = find_results(write_results(tmp_path / "results", VIDEOS), list(VIDEOS))
    for jobs in (1, 2):
        scores = evaluate(source, results, PROTOCOLS["davis2017"], list(VIDEOS), jobs=jobs)
        assert [item.region.tolist() for item in scores] == [[10 / 14] * 4] * 3


def test_a_source_survives_the_trip_to_a_process(source: VideoSource) -> None:
    copy = pickle.loads(pickle.dumps(source))
    assert copy.identity == source.identity
    np.testing.assert_array_equal(copy.read_labels("one", "00002"), label_map((1,), 2))


def test_the_palette_of_the_source_is_kept(tree: Path, tmp_path: Path) -> None:
    shards = open_videos(build_set(tree, tmp_path / "sets"))
    palette = shards.palette("one")
    assert palette is not None
    assert palette[: 3 * 3] == voc_palette()[: 3 * 3]


def test_a_frame_without_annotation_is_not_an_empty_one(tree: Path, tmp_path: Path) -> None:
    (tree / "Annotations" / "480p" / "one" / "00002.png").unlink()
    shards = open_videos(build_set(tree, tmp_path / "sets"))
    assert "00002" in shards.frame_names("one")
    assert "00002" not in shards.annotated_names("one")
    with pytest.raises(DataError, match=r"frame 00002: expected a label map, found a frame without annotation"):
        shards.read_labels("one", "00002")


def test_unknown_videos_are_named(source: VideoSource) -> None:
    with pytest.raises(ValueError, match="nobody"):
        source.frame_names("nobody")


@pytest.mark.parametrize(("content", "found"), [(b"\n \n", "none"), (b"\xff\xfe\x00", "'utf-8' codec can't decode")])
def test_a_list_without_names_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "val.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"val\.txt: expected .* found {found}"):
        read_split_list(path)


def test_a_misspelt_split_or_video_is_answered_with_the_nearest_name(source: VideoSource) -> None:
    with pytest.raises(UnknownNameError, match="no split 'vall'; did you mean 'val'") as split:
        choose_split(source, "vall", ("val",))
    with pytest.raises(UnknownNameError, match="no video 'onne'; did you mean 'one'") as video:
        choose_videos(source, "val", ["one", "onne"])
    with pytest.raises(UnknownNameError, match="no video 'zebra'; there are one, vidéo 2"):
        choose_videos(source, "val", ["zebra"])
    assert split.value.exit_status == video.value.exit_status == 2


def test_named_videos_come_once_each_and_none_named_means_the_split(source: VideoSource) -> None:
    assert choose_videos(source, "val", ["vidéo 2", "one", "vidéo 2"]) == ("vidéo 2", "one")
    assert sorted(choose_videos(source, "val", None)) == sorted(VIDEOS)


def test_without_a_wish_the_first_usual_split_is_taken_or_the_only_one(source: VideoSource) -> None:
    assert choose_split(source, None, ("valid", "val")) == "val"
    assert choose_split(source, None, ("valid",)) == "val", "the only one there is"


def test_of_several_splits_of_other_names_one_has_to_be_named() -> None:
    source = cast(VideoSource, SimpleNamespace(splits=("train", "val")))
    with pytest.raises(UnknownNameError, match="no split 'dev'; there are train, val"):
        choose_split(source, None, ("dev", "test"))
