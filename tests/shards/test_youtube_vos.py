"""YouTube-VOS: sparse masks, objects that begin late, meta.json that may disagree with the masks."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from shards.errors import DataError
from shards.findings import read_findings
from shards.masks import keep_ids
from shards.object_facts import MaskIds, ObjectFacts, reconcile
from shards.reader import ShardSet
from tests.shards.other_trees import labels_of, write_youtube
from tests.shards.small_tree import build_kind, label_maps

BOTH, LATE = label_maps(4, (1, 2), 1), label_maps(4, (1,), 1)
FRAMES = ["00000", "00005", "00010", "00015"]


@pytest.fixture
def tree(tmp_path):
    """train: object 2 begins at 00005. valid: masks only where an object begins, the first video's not at 00000."""
    root = tmp_path / "tree"
    maps = dict(zip(FRAMES, [LATE[0], *BOTH[1:]], strict=True))
    objects = {"1": {"category": "dog", "frames": FRAMES}, "2": {"category": "cat", "frames": FRAMES[1:]}}
    write_youtube(root, "train", {"0a0a0a0a0a": maps}, {"0a0a0a0a0a": {**objects}})
    sparse = {"00000": None, "00005": LATE[1], "00010": BOTH[2], "00015": None}
    hidden = {"1": {"frames": FRAMES[1:]}, "2": {"frames": FRAMES[2:]}}
    write_youtube(root, "valid", {"1b1b1b1b1b": sparse}, {"1b1b1b1b1b": hidden})
    return root


def built(tree, out, **arguments):
    return ShardSet.open(build_kind("youtube_vos", [tree], out, **arguments).root)


def reasons(shard_set):
    return [(finding.severity, finding.reason, finding.video) for finding in read_findings(shard_set.path)]


def test_all_plain_splits_are_taken_and_sparse_masks_are_no_remark(tree, tmp_path):
    shard_set = built(tree, tmp_path / "out")
    assert shard_set.manifest.splits == {"train": 1, "train_rde": 1, "valid": 1}
    assert reasons(shard_set) == []
    assert shard_set.annotated(1).tolist() == [False, True, True, False]


def test_what_meta_says_of_objects_is_kept(tree, tmp_path):
    videos = built(tree, tmp_path / "out").videos
    assert videos.object_facts(0) == {1: ObjectFacts(tuple(FRAMES), "dog"), 2: ObjectFacts(tuple(FRAMES[1:]), "cat")}
    assert videos.object_facts(1) == {1: ObjectFacts(tuple(FRAMES[1:])), 2: ObjectFacts(tuple(FRAMES[2:]))}


def test_each_object_begins_at_its_own_first_frame_where_the_others_are_to_be_ignored(tree, tmp_path):
    shard_set = built(tree, tmp_path / "out")
    first = shard_set.frame_rows(1).start
    assert shard_set.starts(1) == {first + 1: (1,), first + 2: (2,)}
    given = keep_ids(labels_of(shard_set, "1b1b1b1b1b", 2), (2,))
    np.testing.assert_array_equal(given, np.where(BOTH[2] == 2, 2, 0))


def test_without_a_list_objects_begin_where_a_mask_first_shows_them(tree, tmp_path):
    path = tree / "train/meta.json"
    path.write_text('{"videos": {}}')
    shard_set = built(tree, tmp_path / "out", splits=("train",))
    assert shard_set.videos.object_facts(0) == {}
    assert shard_set.starts(0) == {0: (1,), 1: (2,)}
    assert reasons(shard_set) == [("warning", "no objects in meta.json", "0a0a0a0a0a")]


def test_all_frames_take_masks_and_meta_of_the_plain_split(tree, tmp_path):
    images = tree / "valid/JPEGImages/1b1b1b1b1b"
    every = tree / "valid_all_frames/JPEGImages/1b1b1b1b1b"
    shutil.copytree(images, every)
    for number in (1, 2, 3, 4):
        shutil.copy(images / "00000.jpg", every / f"{number:05d}.jpg")
    shard_set = built(tree, tmp_path / "out", splits=("valid_all_frames",))
    assert [shard_set.frame_name(frame) for frame in shard_set.frame_rows(0)] == [
        *(f"{number:05d}" for number in range(6)),
        "00010",
        "00015",
    ]
    assert shard_set.annotated(0).tolist() == [False] * 5 + [True, True, False]
    assert shard_set.starts(0) == {5: (1,), 6: (2,)}
    with pytest.raises(ValueError, match="valid and valid_all_frames are the same videos"):
        built(tree, tmp_path / "both", splits=("valid", "valid_all_frames"))
    (tree / "valid_all_frames").rename(tree / "moved")
    (tree / "all_frames").mkdir()
    (tree / "moved").rename(tree / "all_frames/valid_all_frames")
    again = built(tree, tmp_path / "moved", splits=("valid_all_frames",))
    assert [facts.sha256 for facts in again.manifest.shards] == [facts.sha256 for facts in shard_set.manifest.shards]


def test_the_split_of_rde_leaves_out_its_seven_videos(tmp_path):
    names = ["01e64dd36a", "0a0a0a0a0a", "f8af30d4b6"]
    maps = dict(zip(FRAMES, BOTH, strict=True))
    objects = {"1": {"category": "a", "frames": FRAMES}, "2": {"category": "b", "frames": FRAMES}}
    tree = write_youtube(tmp_path / "tree", "train", dict.fromkeys(names, maps), dict.fromkeys(names, objects))
    shard_set = built(tree, tmp_path / "out")
    assert shard_set.manifest.splits == {"train": 3, "train_rde": 1}
    assert [shard_set.videos.original_names[int(row)] for row in shard_set.select("train_rde")] == ["0a0a0a0a0a"]


def test_a_list_becomes_a_split_and_leaves_the_rest_out(tree, tmp_path):
    from shards.sources.options import SourceOptions

    names = tmp_path / "mine.txt"
    names.write_text("0a0a0a0a0a\n")
    shard_set = built(tree, tmp_path / "out", options=SourceOptions(lists=(names,)))
    assert shard_set.manifest.splits == {"mine": 1, "train": 1, "train_rde": 1}
    names.write_text("0a0a0a0a0a\nnobody\n")
    with pytest.raises(DataError, match=r"mine\.txt: expected a folder of images, found none for 'nobody'"):
        built(tree, tmp_path / "other", options=SourceOptions(lists=(names,)))


def test_wrong_folders_say_what_would_be_right(tree, tmp_path):
    with pytest.raises(DataError, match="this is one split; give the folder above it"):
        built(tree / "train", tmp_path / "out")
    with pytest.raises(DataError, match="found only train, valid"):
        built(tree, tmp_path / "out", splits=("test",))
    (tree / "train/meta.json").unlink()
    with pytest.raises(DataError, match=r"train/meta\.json: expected meta\.json of the split, found none"):
        built(tree, tmp_path / "out")


@pytest.mark.parametrize(
    "meta",
    ["[]", "{", '{"videos": {"v": {}}}', '{"videos": {"v": {"objects": {"one": {"frames": []}}}}}',
     '{"videos": {"v": {"objects": {"0": {"frames": []}}}}}', '{"videos": {"v": {"objects": {"1": {}}}}}',
     '{"videos": {"v": {"objects": {"1": {"frames": []}, "01": {"frames": []}}}}}',
     '{"videos": {"v": {"objects": {"1": {"frames": []}, "1": {"frames": []}}}}}',
     '{"videos": {"v": {"objects": {"1": {"frames": "00000"}}}}}',
     '{"videos": {"v": {"objects": {"1": {"frames": [0, 5]}}}}}',
     '{"videos": {"v": {"objects": {"1": {"frames": [], "category": "half a pair \\ud800"}}}}}', "[" * 100_000],
)  # fmt: skip
def test_a_meta_file_of_another_form_ends_the_build(tree, tmp_path, meta):
    (tree / "train/meta.json").write_text(meta)
    with pytest.raises(DataError, match=r"train/meta\.json: expected \{"):
        built(tree, tmp_path / "out", on_bad="skip")


def test_frames_listed_in_disorder_are_sorted_and_told(tree, tmp_path):
    path = tree / "valid/meta.json"
    meta = json.loads(path.read_text())
    objects = meta["videos"]["1b1b1b1b1b"]["objects"]
    objects["1"]["frames"] = [*FRAMES[:0:-1], FRAMES[1]]
    path.write_text(json.dumps(meta))
    shard_set = built(tree, tmp_path / "out", splits=("valid",))
    assert shard_set.videos.object_facts(0)[1] == ObjectFacts(tuple(FRAMES[1:]))
    assert list(shard_set.starts(0).values()) == [(1,), (2,)]
    (finding,) = read_findings(shard_set.path)
    assert (finding.severity, finding.reason, finding.path) == (
        "repaired",
        "listed frames out of order",
        "valid/meta.json",
    )
    assert finding.found == "object 1: 00015 00010 00005 00005" and finding.what_was_done == "sorted"


def test_a_video_in_two_splits_is_left_out_of_both_and_counted_once(tree, tmp_path):
    for folder in ("JPEGImages", "Annotations"):
        shutil.copytree(tree / f"train/{folder}/0a0a0a0a0a", tree / f"valid/{folder}/0a0a0a0a0a")
    with pytest.raises(DataError, match="valid/JPEGImages/0a0a0a0a0a: expected each video once, found train"):
        built(tree, tmp_path / "stop")
    shard_set = built(tree, tmp_path / "skip", on_bad="skip")
    assert shard_set.videos.original_names[:] == ["1b1b1b1b1b"] and shard_set.manifest.refused == 1
    assert reasons(shard_set) == [("refused", "video in two splits", "0a0a0a0a0a")]


def test_the_part_of_rde_belongs_to_train_alone(tree, tmp_path):
    shutil.copytree(tree / "train/JPEGImages", tree / "train_all_frames/JPEGImages")
    shard_set = built(tree, tmp_path / "all", splits=("train_all_frames",))
    assert shard_set.manifest.splits == {"train_all_frames": 1}
    with pytest.raises(ValueError, match="train_rde is a part of train: give --split train"):
        built(tree, tmp_path / "part", splits=("train_rde",))


def ids(*values):
    return np.array(values, np.uint8)


def test_masks_decide_which_objects_there_are_and_the_list_where_they_begin():
    listed = {
        1: ObjectFacts(("00000", "00005", "00099")),
        3: ObjectFacts(("00000",)),
        4: ObjectFacts(("00005",)),
    }
    found = MaskIds(FRAMES, {"00000": ids(1, 2), "00005": ids(1)})
    kept, findings = reconcile(listed, found, "all")
    assert kept == {1: ObjectFacts(("00000", "00005"))}
    assert [finding.reason for finding in findings] == [
        "listed frame missing",
        "listed object in no mask",
        "listed object in no mask",
        "object not listed",
    ]


def test_where_only_first_masks_are_given_an_object_must_be_in_its_own():
    listed = {1: ObjectFacts(("00000", "00010")), 2: ObjectFacts(("00005",))}
    found = MaskIds(FRAMES, {"00000": ids(1, 2), "00005": ids(1)})
    kept, findings = reconcile(listed, found, "first")
    assert set(kept) == {1}
    assert [finding.reason for finding in findings] == ["listed object in no mask"]


def test_the_real_pack_keeps_every_trap(shared_data, tmp_path):
    source = shared_data / "ytvos_mini"
    shard_set = built(source, tmp_path / "out")
    assert reasons(shard_set) == []
    assert (shard_set.num_videos, shard_set.num_frames) == (5, 38)
    videos = shard_set.videos
    rows = {name: shard_set.video_row(name) for name in videos.original_names[:]}
    for split in ("train", "valid"):
        meta = json.loads((source / split / "meta.json").read_text())["videos"]
        for name, entry in meta.items():
            facts = videos.object_facts(rows[name])
            assert {str(key): list(one.frames) for key, one in facts.items()} == {
                key: one["frames"] for key, one in entry["objects"].items()
            }
    starts = shard_set.starts(rows["4f1c0ffee0"])
    assert {shard_set.frame_name(row): ids for row, ids in starts.items()} == {"00000": (1,), "00005": (2,)}
    assert {1, 2} <= set(np.unique(labels_of(shard_set, "4f1c0ffee0", 1)).tolist())
    assert [shard_set.frame_name(row) for row in shard_set.starts(rows["e2d00d0b02"])] == ["00005"]
    assert videos.object_ids(rows["7c40d21e9b"]) == (2,)
    assert (videos.height[rows["7c40d21e9b"]], videos.width[rows["7c40d21e9b"]]) == (360, 270)
    assert videos.frame_step[rows["7c40d21e9b"]] == 5


def test_all_frames_of_the_real_pack(shared_data, tmp_path):
    source = shared_data / "ytvos_mini"
    shard_set = built(source, tmp_path / "out", splits=("train_all_frames", "valid_all_frames"), on_bad="skip")
    counts = {
        path.name: len(list(path.iterdir()))
        for split in ("train", "valid")
        for path in (source / f"{split}_all_frames/JPEGImages").iterdir()
    }
    found = dict(zip(shard_set.videos.original_names[:], shard_set.videos.num_frames.tolist(), strict=True))
    assert found == counts
    # meta.json lists two more videos, of which the pack has no such images.
    assert sorted(reasons(shard_set)) == [
        ("refused", "no such video", "0a1d09d0c1"),
        ("refused", "no such video", "7c40d21e9b"),
    ]
