"""Every YouTube-VOS and static case of shared/data/broken_mini: what is done about it, as docs/data-format.md says."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from shards.check import check_set
from shards.errors import DataError
from shards.findings import read_findings
from shards.masks import decode_soft_mask
from shards.reader import ShardSet
from shards.sources.options import SourceOptions
from tests.shards.small_tree import build_kind

# case -> findings as "severity: reason: what was done".
YOUTUBE = {
    "aaaa000001": (),
    "aaaa000002": ("warning: listed frame missing: kept",) * 2,
    "aaaa000003": ("warning: listed object in no mask: kept",),
    "aaaa000004": ("warning: object not listed: kept",),
    "aaaa000005": ("warning: no objects in meta.json: kept",),
    "aaaa000006": ("warning: no objects in meta.json: kept",),
    "aaaa000009": ("refused: no such video: video dropped",),
}
STATIC = {
    "DUTS-TR/no_mask": ("refused: no masks: video dropped",),
    "DUTS-TR/no_image": ("warning: mask without image: ignored",),
    "DUTS-TR/all_black": ("refused: no object: video dropped",),
    "DUTS-TR/all_white": ("warning: mask covers everything: kept",),
    "DUTS-TR/mask01": ("repaired: 0/1 mask: multiplied by 255",),
    "DUTS-TR/two.jpg": (),
    "DUTS-TR/dup_a": (),
    "DUTS-TR/dup_b": (),
    "DUTS-TE/dup_a": (),
    "DUTS-TR/gif_inside": ("repaired: image is no JPEG: re-encoded",),
}


@pytest.fixture(scope="module")
def broken(shared_data):
    return shared_data / "broken_mini"


def outcomes(shard_set):
    found = {}
    for one in read_findings(shard_set.path):
        found.setdefault(one.video, []).append(f"{one.severity}: {one.reason}: {one.what_was_done}")
    return {name: tuple(lines) for name, lines in found.items()}


@pytest.fixture(scope="module")
def youtube(broken, tmp_path_factory):
    root = build_kind("youtube_vos", [broken / "ytvos"], tmp_path_factory.mktemp("y"), on_bad="skip").root
    with ShardSet.open(root) as shard_set:
        yield shard_set


@pytest.fixture(scope="module")
def static(broken, tmp_path_factory):
    root = build_kind("static", [broken / "static"], tmp_path_factory.mktemp("s"), on_bad="skip").root
    with ShardSet.open(root) as shard_set:
        yield shard_set


def test_every_case_is_decided(broken):
    cases = json.loads((broken / "cases.json").read_text())
    assert {case["video"] for case in cases["ytvos"]} == {*YOUTUBE, "meta_truncated.json"}
    assert {stem for case in cases["static"] for stem in expanded(case["stem"])} == set(STATIC)


def expanded(stem):
    return [f"DUTS-TR/{name}" for name in ("dup_a", "dup_b")] if stem == "DUTS-TR/dup_a, dup_b" else [stem]


def test_every_youtube_case_ends_as_decided(youtube):
    assert outcomes(youtube) == {name: lines for name, lines in YOUTUBE.items() if lines}
    assert youtube.videos.original_names[:] == [f"aaaa00000{number}" for number in range(1, 7)]
    assert youtube.annotated(0).all() and youtube.num_frames == 18
    listed = [sorted(youtube.videos.object_facts(row)) for row in range(6)]
    assert listed == [[1, 2], [1, 2], [1, 2], [1], [], []]
    assert all("00015" not in facts.frames for facts in youtube.videos.object_facts(1).values())
    # Not in meta.json, but in the masks: training sees it, evaluation does not follow it.
    assert youtube.videos.object_ids(3) == (1, 2) and set(youtube.starts(3).values()) == {(1,)}
    assert set(youtube.starts(4).values()) == {(1, 2)}


def test_a_truncated_meta_file_ends_the_build_in_either_mode(broken, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(broken / "ytvos", tree)
    shutil.move(tree / "train/meta_truncated.json", tree / "train/meta.json")
    for on_bad in ("stop", "skip"):
        with pytest.raises(DataError, match=r"train/meta\.json: expected .* found JSONDecodeError"):
            build_kind("youtube_vos", [tree], tmp_path / on_bad, on_bad=on_bad)


def test_stop_names_the_entry_without_a_folder(broken, tmp_path):
    with pytest.raises(
        DataError, match=r"ytvos/train/meta\.json: expected a folder of images, found none for 'aaaa000009'"
    ):
        build_kind("youtube_vos", [broken / "ytvos"], tmp_path)


def twins(broken):
    """Images with a mask whose bytes an image of a smaller name has; several cases were made of one photo."""
    paths = {
        path.relative_to(broken / "static").with_suffix("").as_posix(): path for path in broken.rglob("DUTS*/*.jpg")
    }
    images = {name: path.read_bytes() for name, path in sorted(paths.items()) if path.with_suffix(".png").exists()}
    return {name for name in images if any(other < name and images[other] == images[name] for other in images)}


def test_every_static_case_ends_as_decided(broken, static):
    same = ("warning: same image twice: kept",)
    expected = {name: same * (name in twins(broken)) + lines for name, lines in STATIC.items()}
    assert {"DUTS-TR/dup_a", "DUTS-TR/dup_b"} <= twins(broken)
    assert outcomes(static) == {name: lines for name, lines in expected.items() if lines}
    kept = {name for name, lines in STATIC.items() if "dropped" not in str(lines) and name != "DUTS-TR/no_image"}
    assert set(static.videos.original_names[:]) == kept


def test_a_0_1_mask_is_not_empty(static):
    row = static.frame_rows(static.video_row("DUTS-TR/mask01"))[0]
    levels = decode_soft_mask(static.read(row).mask, static.mask_codec)
    assert set(np.unique(levels).tolist()) == {0, 255}
    assert static.objects(row).areas.tolist() == [int((levels == 255).sum())]


def test_duplicates_go_only_if_asked(broken, tmp_path):
    options = SourceOptions(duplicates="drop")
    root = build_kind("static", [broken / "static"], tmp_path, on_bad="skip", options=options).root
    with ShardSet.open(root) as shard_set:
        assert twins(broken).isdisjoint(shard_set.videos.original_names[:])
        assert "DUTS-TE/dup_a" in shard_set.videos.original_names[:]
        assert outcomes(shard_set)["DUTS-TR/dup_b"] == ("warning: same image twice: video dropped",)


@pytest.mark.parametrize("case", ["no_mask", "all_black"])
def test_stop_names_the_image_of_a_refused_case(broken, tmp_path, case):
    for ending in ("jpg", "png"):
        source = broken / f"static/DUTS-TR/{case}.{ending}"
        if source.exists():
            (tmp_path / "tree/DUTS-TR").mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tmp_path / "tree/DUTS-TR")
    with pytest.raises(DataError, match=rf"DUTS-TR/{case}\.jpg: expected .*--on-bad skip"):
        build_kind("static", [tmp_path / "tree"], tmp_path / "out")


def test_both_sets_are_sound(youtube, static):
    for shard_set in (youtube, static):
        assert check_set(shard_set.path, 1, lambda facts: None).problems == ()
