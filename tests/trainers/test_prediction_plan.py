from __future__ import annotations

import json
from pathlib import Path

import pytest

from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.errors import DataError
from tests.trainers.small_videos import label_map, save_labels, write_tree
from tests.trainers.small_youtube import listed_frames, write_youtube_tree
from trainers.prediction.plan import SEGMENTATION_PROTOCOLS, VideoPlan, plan_video, usual_protocol
from trainers.prediction.video_folders import UnknownNameError
from trainers.prediction.videos import VideoSource, first_appearances, open_videos
from trainers.segmenters.rde import RdeOptions

YOUTUBE = SEGMENTATION_PROTOCOLS["youtube_vos"]
MEMORISED = RdeOptions(mem_every=4).memorised


@pytest.fixture(params=["folder", "shards"])
def youtube(request: pytest.FixtureRequest, tmp_path: Path) -> VideoSource:
    tree = write_youtube_tree(tmp_path / "tree")
    if request.param == "folder":
        return open_videos(tree, splits=("valid_all_frames",))
    job = BuildRequest("youtube_vos", (tree,), tmp_path / "sets", splits=("valid_all_frames",))
    return open_videos(build(job, make_plan(job), silent).root)


def plan(source: VideoSource, video: str, protocol: str = "youtube_vos", *, all_frames: bool = False) -> VideoPlan:
    return plan_video(source, video, SEGMENTATION_PROTOCOLS[protocol], MEMORISED, all_frames=all_frames)


def test_only_listed_and_memorised_frames_of_all_frames_are_shown(youtube: VideoSource) -> None:
    assert youtube.kind == "youtube_vos"
    found = plan(youtube, "late")
    assert found.script.begins == {0: (2,), 5: (5,)}
    assert found.script.written == found.submitted == (0, 5, 10, 15, 20)
    assert found.script.shown == (0, 4, 5, 9, 10, 13, 15, 17, 20)  # memory: 4, then every 4 from 5 on


def test_listed_frames_before_the_first_mask_are_written_too(youtube: VideoSource) -> None:
    found = plan(youtube, "dark")
    assert found.script.begins == {10: (3,)}
    assert found.script.written == (0, 5, 10, 15, 20)
    assert found.script.shown == (10, 14, 15, 18, 20)


def test_all_frames_are_written_on_request_and_the_submission_stays(youtube: VideoSource) -> None:
    found = plan(youtube, "dark", all_frames=True)
    assert found.script.written == tuple(range(22))
    assert found.script.shown == tuple(range(10, 22))
    assert found.submitted == (0, 5, 10, 15, 20)


def test_the_plain_split_has_its_own_frames(tmp_path: Path) -> None:
    source = open_videos(write_youtube_tree(tmp_path), splits=("valid",))
    found = plan(source, "late")
    assert [found.names[frame] for frame in found.script.written] == listed_frames(0)
    assert found.script.shown == (0, 1, 2, 3, 4)


def test_folders_without_lists_start_objects_where_masks_first_show_them(tmp_path: Path) -> None:
    source = open_videos(write_tree(tmp_path, {"one": (4,)}))
    save_labels(tmp_path / "Annotations" / "480p" / "one" / "00002.png", label_map((4, 9), 2))
    assert first_appearances(source, "one") == {4: "00000", 9: "00002"}
    found = plan(source, "one")
    assert found.script.begins == {0: (4,), 2: (9,)}
    assert found.script.written == tuple(range(6))


def test_davis_asks_for_every_frame_of_the_first_frames_objects(tmp_path: Path) -> None:
    source = open_videos(write_tree(tmp_path, {"one": (4, 2)}))
    found = plan(source, "one", "davis2017")
    assert found.script.begins == {0: (2, 4)}
    assert found.script.written == found.script.shown == found.submitted == tuple(range(6))


def test_davis_2016_merges_every_id_and_void_before_the_model(tmp_path: Path) -> None:
    source = open_videos(write_tree(tmp_path, {"one": (4, 255)}))
    found = plan(source, "one", "davis2016")
    assert found.script.begins == {0: (1,)}
    assert (found.read_labels(source, 0) == (label_map((4, 255), 0) != 0)).all()


def test_davis_without_a_first_mask_names_the_protocol_that_can(tmp_path: Path) -> None:
    source = open_videos(write_tree(tmp_path, {"one": (4,)}))
    (tmp_path / "Annotations" / "480p" / "one" / "00000.png").unlink()
    with pytest.raises(DataError, match=r"found no label map; .* --protocol youtube_vos follows"):
        plan(source, "one", "davis2017")


def test_a_first_mask_of_background_is_refused(tmp_path: Path) -> None:
    source = open_videos(write_tree(tmp_path, {"one": ()}))
    for protocol in ("davis2017", "davis2016"):
        with pytest.raises(DataError, match=r"00000\.jpg: expected an object .* found background only"):
            plan(source, "one", protocol)
    with pytest.raises(DataError, match="video one: expected objects to follow, found none"):
        plan(source, "one")


def test_a_missing_mask_where_an_object_begins_is_named(tmp_path: Path) -> None:
    tree = write_youtube_tree(tmp_path)
    (tree / "valid" / "Annotations" / "late" / "00005.png").unlink()
    with pytest.raises(DataError, match=r"video late, frame 00005: expected .* object 5 begins, found no mask"):
        plan(open_videos(tree, splits=("valid",)), "late")


def test_another_split_lists_those_there_are(tmp_path: Path) -> None:
    tree = write_youtube_tree(tmp_path)
    with pytest.raises(UnknownNameError, match="no split 'test'; there are valid, valid_all_frames, valid_gt"):
        open_videos(tree, splits=("test",))


def test_a_meta_file_of_another_form_is_refused(tmp_path: Path) -> None:
    tree = write_youtube_tree(tmp_path)
    (tree / "valid" / "meta.json").write_text(json.dumps({"videos": [1]}))
    with pytest.raises(DataError, match=r"meta\.json: expected"):
        open_videos(tree, splits=("valid",)).select("valid")


def test_the_protocol_follows_the_kind_of_data_set() -> None:
    kinds = ("davis2016", "youtube_vos", "bl30k", "folder", "davis2017_unsupervised")
    assert [usual_protocol(kind) for kind in kinds] == ["davis2016", "youtube_vos", *["davis2017"] * 3]


def test_published_settings_of_each_benchmark() -> None:
    settings = {name: (item.top_k, item.mem_every, item.shorter_side) for name, item in SEGMENTATION_PROTOCOLS.items()}
    assert settings == {"davis2017": (40, 3, None), "davis2016": (40, 3, None), "youtube_vos": (20, 4, 480)}
