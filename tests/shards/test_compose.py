"""Sets made of sets: the same frames, not one pixel copied, another fingerprint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.check import check_set, rebuild_index
from shards.errors import DataError
from shards.manifest import format_places, parse_places, read_manifest
from shards.reader import ShardSet
from shards.sets.compose import append_set, choose_fraction, merge_sets, write_subset
from tests.shards.other_trees import write
from tests.shards.small_tree import build_kind, build_set, files_of, jpeg, label_maps, saved, write_tree


@pytest.fixture
def parent(tree, tmp_path):
    return build_set(tree, tmp_path / "sets", shard_size=30_000).root


@pytest.fixture
def other(tmp_path):
    videos = {"goat": label_maps(4, (1, 3), seed=8), "hare": [*label_maps(1, (2,), seed=9), None]}
    tree = write_tree(tmp_path / "other tree", videos, {"val": ["goat", "hare"]})
    return build_set(tree, tmp_path / "sets", name="other", shard_size=5_000).root


def content(shard_set: ShardSet) -> dict[str, list[tuple[object, ...]]]:
    """Everything a reader can ask about every frame, by video."""
    found = {}
    for video in range(shard_set.num_videos):
        table = shard_set.videos
        facts = (table.names[video], table.splits(video), table.object_ids(video), int(table.height[video]))
        rows = []
        for row in shard_set.frame_rows(video):
            objects = [column.tolist() for column in shard_set.objects(row)]
            rows.append((shard_set.frame_name(row), shard_set.file_name(row), shard_set.read(row), *objects))
        found[table.original_names[video]] = [facts, shard_set.annotated(video).tolist(), *rows]
    return found


def assert_sound(root: Path) -> None:
    assert check_set(root, 1, lambda facts: None).problems == ()
    before = files_of(root / "index")
    rebuild_index(root)
    assert files_of(root / "index") == before


@pytest.mark.parametrize("link", ["reference", "hardlink"])
def test_a_view_equals_its_parent_frame_for_frame(parent, tmp_path, link):
    chosen = ["bear", "dance", "fox"]
    manifest = write_subset(parent, tmp_path / "sets" / "some", chosen, link)
    with ShardSet.open(parent) as whole, ShardSet.open(tmp_path / "sets" / "some") as view:
        all_videos = content(whole)
        assert content(view) == {name: all_videos[name] for name in chosen}
        assert view.fingerprint != whole.fingerprint and view.manifest.parents == (whole.fingerprint,)
        assert (view.name, view.num_videos, view.num_frames) == ("some", 3, 14)
        assert view.manifest.splits == {"train": 2, "val": 2} and manifest == view.manifest
    assert_sound(tmp_path / "sets" / "some")


def test_a_view_holds_no_pixels_and_moves_with_its_parent(parent, tmp_path):
    write_subset(parent, tmp_path / "sets" / "some", ["cup"])
    assert not list((tmp_path / "sets" / "some").glob("*.tar"))
    shutil.move(tmp_path / "sets", tmp_path / "elsewhere")
    with ShardSet.open(tmp_path / "elsewhere" / "some") as view:
        assert view.read(0).image.startswith(b"\xff\xd8")
    shutil.rmtree(tmp_path / "elsewhere" / "davis2017")
    with pytest.raises(DataError, match=r"found no file; .*links\.json"):
        ShardSet.open(tmp_path / "elsewhere" / "some")


def test_hard_links_outlive_the_parent(parent, tmp_path):
    write_subset(parent, tmp_path / "some", ["cup"], "hardlink")
    (tar,) = (tmp_path / "some").glob("*.tar")
    assert tar.stat().st_nlink == 2
    shutil.rmtree(parent)
    assert_sound(tmp_path / "some")


def test_a_view_of_a_view_refers_to_the_tars_and_counts_in_them(parent, tmp_path):
    write_subset(parent, tmp_path / "three", ["bear", "eel.v2 日本", "fox"])
    write_subset(tmp_path / "three", tmp_path / "two", ["eel.v2 日本", "fox"])
    shutil.rmtree(tmp_path / "three")
    with ShardSet.open(parent) as whole, ShardSet.open(tmp_path / "two") as view:
        expected = content(whole)
        assert content(view) == {name: expected[name] for name in ("eel.v2 日本", "fox")}
    assert_sound(tmp_path / "two")


def test_a_changed_byte_of_the_parent_is_found_through_the_view(parent, tmp_path):
    write_subset(parent, tmp_path / "some", ["bear"])
    with ShardSet.open(tmp_path / "some") as view:
        tar = parent / view.manifest.shards[0].name
    data = bytearray(tar.read_bytes())
    data[-700] ^= 1
    tar.write_bytes(data)
    assert any(problem.place == str(tar) for problem in check_set(tmp_path / "some", 1, lambda facts: None).problems)


def test_subsets_that_cannot_be_are_refused(parent, tmp_path):
    with pytest.raises(DataError, match="no video 'yak'"):
        write_subset(parent, tmp_path / "some", ["bear", "yak"])
    with pytest.raises(ValueError, match="a subset of no videos"):
        write_subset(parent, tmp_path / "some", [])
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"expected a new folder, found thesis\.tex"):
        write_subset(parent, tmp_path / "some", ["bear"])
    with pytest.raises(DataError, match="expected a new folder, found"):
        write_subset(parent, parent, ["bear"])


def test_fractions_are_seeded_nested_and_blind_to_order():
    names = [f"video{n:03d}" for n in range(200)]
    half = choose_fraction(names, 0.5, seed=0)
    assert len(half) == 100 and half == sorted(half) == choose_fraction(names, 0.5, seed=0)
    assert set(choose_fraction(names, 0.25, seed=0)) < set(half) != set(choose_fraction(names, 0.5, seed=1))
    assert set(choose_fraction(names[::-1], 0.5, seed=0)) == set(half)
    assert choose_fraction(names, 0.001, seed=0) and choose_fraction(names, 1, seed=3) == names
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        choose_fraction(names, 1.5, seed=0)


def test_places_are_written_as_ranges():
    for places, text in (((0, 1, 2, 3, 7), "0-3,7"), ((5,), "5"), ((0, 2, 4, 5), "0,2,4-5")):
        assert format_places(places) == text and parse_places(text) == places
    with pytest.raises(ValueError, match="do not ascend"):
        parse_places("3,1")


@pytest.mark.parametrize("link", ["reference", "hardlink"])
def test_a_merged_set_holds_the_videos_of_all(parent, other, tmp_path, link):
    merge_sets([parent, other], tmp_path / "both", link)
    with ShardSet.open(parent) as first, ShardSet.open(other) as second, ShardSet.open(tmp_path / "both") as both:
        assert content(both) == content(first) | content(second)
        assert both.manifest.parents == (first.fingerprint, second.fingerprint)
        assert both.manifest.splits == {"train": 3, "val": 5}
        assert both.manifest.warnings == first.manifest.warnings + second.manifest.warnings
    assert_sound(tmp_path / "both")


def test_sets_that_share_a_name_or_differ_in_codec_are_not_merged(parent, tree, tmp_path):
    again = build_set(tree, tmp_path, name="again", splits=("val",)).root
    with pytest.raises(DataError, match=r"'bear' \(and 2 more\), also in"):
        merge_sets([parent, again], tmp_path / "both")
    as_png = build_set(tree, tmp_path, name="png", mask_codec="png").root
    with pytest.raises(DataError, match=r"masks stored as lz4.* found png"):
        merge_sets([parent, as_png], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_levels_of_grey_and_ids_are_told_to_stay_apart(parent, tmp_path):
    write(tmp_path / "still/ecssd/1.jpg", jpeg(1))
    write(tmp_path / "still/ecssd/1.png", saved(Image.new("L", (56, 40), 255), "png"))
    still = build_kind("static", [tmp_path / "still"], tmp_path).root
    with pytest.raises(
        DataError, match=r"found soft\.lz4: levels of grey and object ids are no one set; keep them apart"
    ):
        merge_sets([parent, still], tmp_path / "both")


def test_a_view_whose_parent_was_moved_says_how_to_find_it(parent, tmp_path):
    write_subset(parent, tmp_path / "views" / "some", ["bear"])
    moved = parent.rename(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"put the set it belongs to back, or correct .*views/some/links\.json, or make"
    ):
        ShardSet.open(tmp_path / "views" / "some")
    next(moved.glob("*.tar")).unlink()
    with pytest.raises(DataError, match="found no file; copy it again from where the set was built"):
        ShardSet.open(moved)


def test_an_appended_set_keeps_its_rows_and_gains_shards(parent, other, tmp_path):
    with ShardSet.open(parent) as before, ShardSet.open(other) as new:
        old_content, new_content, shards = content(before), content(new), before.manifest.shards
        fingerprints = before.fingerprint, new.fingerprint
    append_set(parent, other)
    shutil.rmtree(other)
    with ShardSet.open(parent) as grown:
        assert content(grown) == old_content | new_content
        assert grown.manifest.shards[: len(shards)] == shards
        assert grown.manifest.shards[-1].name == f"davis2017-{len(grown.manifest.shards) - 1:06d}.tar"
        assert grown.fingerprint != fingerprints[0] and grown.manifest.parents == fingerprints[1:]
        assert list(grown.videos.original_names)[-2:] == ["goat", "hare"]
    assert_sound(parent)


@pytest.mark.parametrize("last_written", ["tars", "index", "rejected.jsonl"])
def test_an_append_killed_on_the_way_is_done_again(parent, other, tmp_path, last_written):
    shutil.copytree(parent, tmp_path / "undisturbed")
    append_set(tmp_path / "undisturbed", other)
    killed, done = tmp_path / "killed", tmp_path / "undisturbed"
    shutil.copytree(parent, killed)
    for path in done.glob("*.tar"):
        if not (killed / path.name).exists():
            os.link(path, killed / path.name)
    if last_written != "tars":
        shutil.rmtree(killed / "index")
        shutil.copytree(done / "index", killed / "index")
    if last_written == "rejected.jsonl":
        shutil.copy(done / "rejected.jsonl", killed / "rejected.jsonl")
    append_set(killed, other)
    assert files_of(killed) == files_of(done)
    append_set(killed, other)
    assert files_of(killed) == files_of(done)


def test_a_view_of_many_videos_takes_the_right_objects(tmp_path):
    videos = {f"v{n:02d}": label_maps(3, tuple(range(1, 1 + n % 4)) or (1,), seed=n) for n in range(24)}
    root = build_set(write_tree(tmp_path / "tree", videos), tmp_path / "out", shard_size=25_000).root
    generator = np.random.default_rng(0)
    with ShardSet.open(root) as whole:
        expected = content(whole)
    for round_number in range(5):
        chosen = sorted(generator.choice(list(videos), 9, replace=False).tolist())
        write_subset(root, tmp_path / f"view{round_number}", chosen)
        with ShardSet.open(tmp_path / f"view{round_number}") as view:
            assert content(view) == {name: expected[name] for name in chosen}
    assert read_manifest(tmp_path / "view0").num_videos == 9


def test_a_damaged_links_file_is_named(parent, tmp_path):
    view = tmp_path / "sets" / "some"
    write_subset(parent, view, ["bear"])
    (view / "links.json").write_text("[1")
    with pytest.raises(DataError, match=r"links\.json: expected the place of each shard"):
        ShardSet.open(view)
