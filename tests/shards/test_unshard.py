"""Back to the original layout, and the other readers that a shard is promised to."""

from __future__ import annotations

import dataclasses
import gc
import io
import json

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards.building.convert import ReadyFrame, ReadyVideo
from shards.building.writer import write_shard
from shards.errors import DataError
from shards.index.derive import IndexTables, make_batch, write_index
from shards.manifest import read_manifest
from shards.masks import MASK_CODECS
from shards.reader import ShardSet
from shards.sets.compose import merge_sets, write_subset
from shards.sets.unshard import unshard
from shards.sources.options import SourceOptions
from shards.video import VideoFacts
from tests.shards.other_trees import write, write_bl30k, write_davis2016
from tests.shards.small_tree import HEIGHT, WIDTH, build_kind, build_set, files_of, jpeg, label_maps, saved, write_tree


def silent(frames):
    pass


def given_back(root, out):
    with ShardSet.open(root) as shard_set:
        unshard(shard_set, out, silent)
    return out


def pixels_and_palette(path):
    with Image.open(path) as image:
        return np.array(image), image.palette.palette


def assert_same_tree(source, out):
    before, after = files_of(source), files_of(out)
    folders = ("JPEGImages/", "ImageSets/2017/")
    for path, data in before.items():
        if path.startswith(folders):
            assert after[path] == data, path
    assert {path for path in after if path.startswith("JPEGImages")} <= set(before)
    masks = {path for path in before if path.startswith("Annotations")}
    assert {path for path in after if path.startswith("Annotations")} == masks
    for path in masks:
        (wanted, palette), (found, kept) = pixels_and_palette(source / path), pixels_and_palette(out / path)
        np.testing.assert_array_equal(found, wanted, err_msg=path)
        assert kept == palette, path


@pytest.mark.parametrize("codec", MASK_CODECS)
def test_a_tree_comes_back_jpegs_byte_for_byte_masks_with_ids_and_palette(tree, tmp_path, codec):
    for name, new in (("fox/00001.jpg", "fox/00001.JPG"), ("bear/00002.jpg", "bear/00002.jpeg")):
        (tree / "JPEGImages/480p" / name).rename(tree / "JPEGImages/480p" / new)
    (tree / "ImageSets/2017/val.txt").write_text("bear\ncup\ndance\n")
    assert_same_tree(tree, given_back(build_set(tree, tmp_path / "out", mask_codec=codec).root, tmp_path / "back"))


def test_what_came_back_makes_the_same_shards(tree, tmp_path):
    first = build_set(tree, tmp_path / "one")
    back = given_back(first.root, tmp_path / "back")
    second = build_set(back, tmp_path / "two")
    assert [facts.sha256 for facts in second.manifest.shards] == [facts.sha256 for facts in first.manifest.shards]


def test_the_shorter_palette_of_a_video_is_kept_and_lengthened_only_where_ids_need_it(tmp_path):
    tree = write_tree(tmp_path / "tree", {"one": label_maps(2, (1, 2))})
    masks = tree / "Annotations/480p/one"
    short = Image.fromarray(label_maps(2, (1, 2))[0]).convert("P")
    short.putpalette(bytes(range(9)))
    (masks / "00000.png").write_bytes(saved(short, "png", bits=2))
    (masks / "00001.png").write_bytes(saved(Image.fromarray(label_maps(2, (1, 5))[1]), "png"))
    out = given_back(build_set(tree, tmp_path / "out").root, tmp_path / "back")
    assert pixels_and_palette(out / "Annotations/480p/one/00000.png")[1][:9] == bytes(range(9))
    np.testing.assert_array_equal(
        pixels_and_palette(out / "Annotations/480p/one/00001.png")[0], label_maps(2, (1, 5))[1]
    )


def test_real_video_comes_back(shared_data, tmp_path):
    source = shared_data / "davis_mini"
    out = given_back(build_set(source, tmp_path / "out").root, tmp_path / "back")
    for path, data in files_of(source / "JPEGImages").items():
        assert (out / "JPEGImages" / path).read_bytes() == data
    for path in files_of(source / "Annotations"):
        (wanted, palette) = pixels_and_palette(source / "Annotations" / path)
        (found, kept) = pixels_and_palette(out / "Annotations" / path)
        np.testing.assert_array_equal(found, wanted)
        assert kept == palette


def test_a_folder_with_something_in_it_is_refused(tree, tmp_path):
    root = build_set(tree, tmp_path / "out").root
    with pytest.raises(DataError, match="expected an empty or new folder"):
        given_back(root, tree)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_a_png_set(tree, tmp_path):
    root = build_set(tree, tmp_path / "out", mask_codec="png", shard_size=20_000).root
    paths = [str(root / facts.name) for facts in read_manifest(root).shards]
    found = {}
    for sample in webdataset.WebDataset(paths, shardshuffle=False, empty_check=False):
        found[sample["__key__"]] = sample
    gc.collect()  # webdataset leaves its files open: have them warn here, where that is expected
    with ShardSet.open(root) as shard_set:
        assert list(found) == [
            f"{shard_set.videos.names[video]}/{shard_set.frame_name(frame)}"
            for video in range(shard_set.num_videos)
            for frame in shard_set.frame_rows(video)
        ]
    for frame, labels in enumerate(label_maps(4, (1, 7, 254), seed=3)):
        sample = found[f"dance/{frame:05d}"]
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(sample["png"]))), labels)
        assert sample["jpg"] == (tree / f"JPEGImages/480p/dance/{frame:05d}.jpg").read_bytes()
    assert "png" not in found["cup/00001"]
    facts = json.loads(found["eel%2Ev2%20%E6%97%A5%E6%9C%AC/00000"]["video.json"])
    assert facts["name"] == "eel.v2 日本"


def build_and_give_back(kind, sources, tmp_path, **arguments):
    return given_back(build_kind(kind, sources, tmp_path / "sets", **arguments).root, tmp_path / "back")


def label_map(path):
    with Image.open(path) as image:
        return np.array(image.convert("L") if image.mode != "P" else image)


def assert_files_come_back(source, out, ignored=()):
    """JPEGs, lists and meta.json byte for byte (JSON: in meaning), PNGs pixel for pixel; no file more or less."""
    before = {path: data for path, data in files_of(source).items() if not path.startswith(ignored)}
    after = files_of(out)
    assert set(after) == set(before)
    for path, data in before.items():
        if path.endswith(".png"):
            np.testing.assert_array_equal(label_map(out / path), label_map(source / path), err_msg=path)
        elif path.endswith(".json"):
            assert json.loads(after[path]) == json.loads(data)
        else:
            assert after[path] == data, path


def test_davis_2016_comes_back_with_255_and_its_pair_lists(tmp_path):
    videos = {"bear": label_maps(3, (1,), 1), "surf": label_maps(4, (1,), 2)}
    splits = {"train": ["bear"], "val": ["surf"], "trainval": ["bear", "surf"]}
    tree = write_davis2016(tmp_path / "tree", videos, splits)
    assert_files_come_back(tree, build_and_give_back("davis2016", [tree], tmp_path))


def test_the_real_davis_2016_pack_comes_back(shared_data, tmp_path):
    source = shared_data / "davis2016_mini"
    out = build_and_give_back("davis2016", [source], tmp_path)
    with Image.open(out / "Annotations/480p/bear/00077.png") as image:
        assert image.mode == "L"  # was LA
    assert_files_come_back(source, out, ignored=("README",))


def test_unsupervised_masks_come_back_into_their_own_folder(tmp_path):
    videos = {"one": label_maps(3, (1, 2)), "two": [None] * 3}
    tree = write_tree(tmp_path / "tree", videos, {"train": ["one"]})
    write(tree / "ImageSets/2019/test-dev.txt", b"two\n")
    (tree / "Annotations").rename(tree / "Annotations_unsupervised")
    options = SourceOptions(annotations="unsupervised")
    out = build_and_give_back("davis2017", [tree], tmp_path, options=options)
    assert_files_come_back(tree, out)


def test_youtube_vos_comes_back_with_meta(tmp_path, shared_data):
    source = shared_data / "ytvos_mini"
    ignored = ("README", "valid_gt", "train_all_frames", "valid_all_frames")
    assert_files_come_back(source, build_and_give_back("youtube_vos", [source], tmp_path), ignored)


def test_all_frames_come_back_beside_the_masks_of_the_plain_split(tmp_path, shared_data):
    source = shared_data / "ytvos_mini"
    out = build_and_give_back("youtube_vos", [source], tmp_path, splits=("valid_all_frames",))
    ignored = ("README", "valid_gt", "train", "valid/JPEGImages")
    assert_files_come_back(source, out, ignored)


def test_bl30k_comes_back(tmp_path):
    tree = write_bl30k(tmp_path / "tree", {"kea00001": label_maps(3, (1, 4)), "kea00002": label_maps(4, (2,))})
    assert_files_come_back(tree, build_and_give_back("bl30k", [tree], tmp_path))


def test_still_images_come_back_with_every_level(tmp_path, shared_data):
    source = shared_data / "static_mini"
    assert_files_come_back(source, build_and_give_back("static", [source], tmp_path), ignored=("README",))


def test_own_videos_come_back_in_two_folders(tmp_path):
    tree = write_tree(tmp_path / "tree", {"cat": label_maps(3, (1,)), "dog": [None] * 3})
    sources = [tree / "JPEGImages/480p", tree / "Annotations/480p"]
    out = build_and_give_back("folder", sources, tmp_path)
    for name, source in zip(("JPEGImages", "Annotations"), sources, strict=True):
        assert_files_come_back(source, out / name)


CLIMBING = {
    "video": (VideoFacts("../../escaped", "davis2017", ("train",)), r"'JPEGImages/480p/\.\./\.\./escaped'"),
    "absolute": (VideoFacts("/../../../tmp/escaped", "davis2017", ("train",)), r"escaped'"),
    "file": (VideoFacts("one", "davis2017", ("train",), files={"00000": "../../../../escaped.jpg"}), r"escaped\.jpg'"),
    "absolute file": (
        VideoFacts("one", "davis2017", ("train",), files={"00000": "/tmp/escaped.jpg"}),
        r"/tmp/escaped\.jpg'",
    ),
    "split": (VideoFacts("one", "davis2017", ("../../../escaped",)), r"'\.\./\.\./\.\./escaped'"),
}


@pytest.mark.parametrize(("facts", "found"), CLIMBING.values(), ids=CLIMBING)
def test_a_set_whose_names_lead_out_of_the_folder_is_refused(tmp_path, facts, found):
    video = ReadyVideo(facts, (HEIGHT, WIDTH), (ReadyFrame("00000", jpeg(1), None, None),))
    root = build_set(write_tree(tmp_path / "tree", {"one": label_maps(3, (1,))}), tmp_path / "sets").root
    manifest = read_manifest(root)
    written = write_shard(root / manifest.shards[0].name, "lz4", [video])
    write_index(root / "index", [written.rows])
    splits = dict.fromkeys(facts.splits, 1)
    forged = dataclasses.replace(manifest, shards=(written.facts,), num_videos=1, num_frames=1, splits=splits)
    (root / "manifest.json").write_bytes(forged.encode())
    with pytest.raises(DataError, match=rf"found .*{found}; do not use this set"):
        given_back(root, tmp_path / "a/b/c")
    assert not (tmp_path / "a/b/c").exists() and not list(tmp_path.rglob("*escaped*"))


def test_a_mask_named_by_a_path_is_refused(tmp_path):
    """The table of videos has names of frames of its own, which a forged one need not take from the files."""
    root = build_set(write_tree(tmp_path / "tree", {"one": label_maps(3, (1,))}), tmp_path / "sets").root
    names = [["../../../../escaped", "b", "c"]]
    files = [json.dumps({names[0][0]: "00000.jpg"})]
    tables = IndexTables(root, "")
    batches = {table: tables.batch(table, 0) for table in ("videos", "frames", "objects")}
    columns = batches["videos"].to_pydict() | {"frame_names": names, "files": files}
    write_index(root / "index", [batches | {"videos": make_batch("videos", columns)}])
    with pytest.raises(DataError, match=r"escaped.*do not use this set"):
        given_back(root, tmp_path / "a/b/c/d/e")
    assert not list(tmp_path.rglob("*escaped*"))


def test_lists_of_a_union_are_those_of_the_one_tree(tmp_path):
    names = ["ant", "bee", "cat", "dog"]
    videos = {name: label_maps(2, (1,), seed) for seed, name in enumerate(names)}
    tree = write_davis2016(tmp_path / "tree", videos, {"train": names, "val": ["bee", "dog"]})
    whole = build_kind("davis2016", [tree], tmp_path, name="whole").root
    for name, chosen in (("second", ["bee", "dog"]), ("first", ["ant", "cat"])):
        write_subset(whole, tmp_path / name, chosen)
    merge_sets([tmp_path / "second", tmp_path / "first"], tmp_path / "union")
    assert files_of(given_back(tmp_path / "union", tmp_path / "out")) == files_of(given_back(whole, tmp_path / "again"))
