"""Sources that lie behind URLs give the same sets as local ones."""

from __future__ import annotations

import fsspec
import numpy as np
import pytest
from PIL import Image

from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.sources.own_videos import open_folder
from shards.sources.types import SourceRequest
from shards.storage.paths import locate
from tests.shards.other_trees import write, write_bl30k, write_davis2016, write_youtube
from tests.shards.small_tree import build_kind, files_of, jpeg, label_maps, saved, write_tree
from tests.shards.test_bl30k import write_tar

MAPS = label_maps(3, (1, 2), 6)
NAMES = ["00000", "00005", "00010"]


def write_stills(root):
    write(root / "fss/cat/1.jpg", jpeg(1))
    write(root / "fss/cat/1.png", saved(Image.fromarray(MAPS[0] * np.uint8(100)), "png"))
    return root


def write_kind(kind, root):
    objects = {"1": {"category": "a", "frames": NAMES}, "2": {"category": "b", "frames": NAMES}}
    return {
        "davis2016": lambda: write_davis2016(root, {"one": label_maps(3, (1,))}, {"train": ["one"]}),
        "davis2017": lambda: write_tree(root, {"one": MAPS, "two": MAPS}),
        "youtube_vos": lambda: write_youtube(root, "train", {"v": dict(zip(NAMES, MAPS, strict=True))}, {"v": objects}),
        "static": lambda: write_stills(root),
        "bl30k": lambda: write_bl30k(root, {"kea00001": MAPS}),
    }[kind]()


@pytest.fixture
def store():
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/data", recursive=True)


@pytest.mark.parametrize("kind", ["davis2016", "davis2017", "youtube_vos", "static", "bl30k"])
def test_every_kind_reads_urls(kind, store, tmp_path):
    tree = write_kind(kind, tmp_path / "tree")
    for name, data in files_of(tree).items():
        store.pipe(f"/data/{name}", data)
    near = build_kind(kind, [tree], tmp_path / "near")
    far = build_kind(kind, [locate("memory://data")], tmp_path / "far")
    assert files_of(far.root) == files_of(near.root)


def test_masks_behind_urls_may_lie_beside_their_images(store, tmp_path):
    tree = write_tree(tmp_path / "tree", {"one": MAPS, "two": [*MAPS[:2], None]})
    (tree / "Annotations/480p/one/00009.png").write_bytes(b"")  # its path is told in rejected.jsonl
    for name, data in files_of(tree).items():
        store.pipe(f"/data/{name}", data)
    near = build_kind("folder", [tree / "JPEGImages/480p", tree / "Annotations/480p"], tmp_path / "near")
    urls = [locate(f"memory://data/{folder}/480p") for folder in ("JPEGImages", "Annotations")]
    far = build_kind("folder", urls, tmp_path / "far")
    assert near.manifest.warnings and far.manifest.num_frames == 6
    assert files_of(far.root) == files_of(near.root)


def test_images_and_masks_in_two_stores_are_refused(tmp_path):
    for other in ("s3://data/masks", str(tmp_path)):
        with pytest.raises(ValueError, match="both in one store"):
            open_folder(SourceRequest((locate("memory://data/images"), locate(other)), None, ""))


def test_tars_behind_urls_are_read_where_they_lie(store, tmp_path):
    tree = write_bl30k(tmp_path / "tree", {"kea00001": MAPS, "kea00002": MAPS})
    tar = write_tar(tmp_path / "a.tar", files_of(tree).items())
    store.pipe("/data/a.tar", tar.read_bytes())
    far = build_kind("bl30k", [locate("memory://data/a.tar")], tmp_path / "far")
    assert files_of(far.root) == files_of(build_kind("bl30k", [tree], tmp_path / "near").root)


def test_a_build_into_a_store_leaves_nothing_on_this_machine(store, tmp_path, monkeypatch):
    monkeypatch.setenv("VOSFORGE_CACHE", str(tmp_path / "cache"))
    tree = write_bl30k(tmp_path / "tree", {"kea00001": MAPS, "kea00002": MAPS})
    tar = write_tar(tmp_path / "a.tar", files_of(tree).items())
    request = BuildRequest("bl30k", (tar,), locate("memory://data/sets"))
    plan = make_plan(request)
    assert list((tmp_path / "cache").rglob("*.members"))
    build(request, plan, silent)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [name for name in store.find("/data/sets") if "building" in name]
