"""The index is what was written or a message: no flipped bit gives other data, or ends the process."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from shards.errors import DataError
from shards.index.derive import INDEX_FILES, SCHEMAS
from shards.index.files import CHECKSUMS
from shards.reader import ShardSet
from tests.shards.small_tree import build_set, files_of, label_maps, write_tree

FLIPS = 60


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    videos = {"bear": label_maps(3, (1, 2)), "cup": [*label_maps(1, (3,)), None], "eel.2": label_maps(3, (4,))}
    return build_set(write_tree(folder / "tree", videos), folder / "out", shard_size=8_000).root


@pytest.fixture
def root(built, tmp_path):
    return shutil.copytree(built, tmp_path / "set")


def everything(root: Path) -> list[object]:
    """All that a set tells of its videos, frames and objects."""
    told: list[object] = []
    with ShardSet.open(root) as shard_set:
        videos = shard_set.videos
        for video in range(shard_set.num_videos):
            told += [videos.original_names[video], videos.object_ids(video), videos.splits(video)]
            told += [shard_set.annotated(video).tolist(), videos.palette(video), int(videos.height[video])]
            for frame in shard_set.frame_rows(video):
                objects = shard_set.objects(frame)
                told += [shard_set.frame_name(frame), shard_set.file_name(frame), objects.ids.tolist()]
                told += [objects.areas.tolist(), objects.boxes.tolist(), shard_set.read(frame)]
    return told


def outcome(root: Path, expected: list[object]) -> str:
    """What reading everything in a process of its own ends in, because it may end the process."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = "same" if everything(root) == expected else "other data"
        except DataError:
            found = "DataError"
        except BaseException as error:  # a crash of any kind is what this looks for
            found = repr(error)
        os.write(write_end, found.encode())
        os._exit(0)
    os.close(write_end)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read_end) as pipe:
        return pipe.read() if status == 0 else f"ended with {status}"


@pytest.mark.parametrize("name", INDEX_FILES)
def test_a_flipped_bit_anywhere_is_a_message(root, name):
    expected = everything(root)
    path = root / "index" / name
    sound = path.read_bytes()
    generator = np.random.default_rng(4)
    outcomes = set()
    for position in generator.integers(0, len(sound), FLIPS):
        data = bytearray(sound)
        data[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(data)
        outcomes.add(outcome(root, expected))
    # White space between the numbers of the checksums may be another one.
    assert "DataError" in outcomes and outcomes <= ({"DataError", "same"} if name == CHECKSUMS else {"DataError"})


def test_only_shards_that_are_read_are_proven(root):
    path = root / "index/objects.arrow"
    pieces = json.loads((root / "index" / CHECKSUMS).read_text())["objects"]
    data = bytearray(path.read_bytes())
    data[pieces[1][0] - 20] ^= 1
    path.write_bytes(data)
    with ShardSet.open(root) as shard_set:
        assert shard_set.objects(0).ids.tolist() == [1, 2]
        with pytest.raises(DataError, match=r"objects\.arrow: .*CRC-32 differs.*--rebuild-index"):
            shard_set.objects(3)


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"videos": 3}', b'{"videos": []}', b'{"videos": [[1, "x"]]}'])
def test_checksums_that_are_none_are_refused(root, damage):
    (root / "index" / CHECKSUMS).write_bytes(damage)
    with pytest.raises(DataError, match="--rebuild-index"):
        ShardSet.open(root)
    (root / "index" / CHECKSUMS).unlink()
    with pytest.raises(DataError, match=r"checksums\.json: expected checksums of the index, found none"):
        ShardSet.open(root)


def test_videos_of_other_shards_are_refused(root, built, tmp_path):
    """An index that is sound in itself, of as many videos and frames in as many shards, but not of this set."""
    videos = {"bear": label_maps(2, (1, 2)), "cup": [*label_maps(1, (3,)), None, None], "eel.2": label_maps(3, (4,))}
    other = build_set(write_tree(tmp_path / "tree", videos), tmp_path / "out", shard_size=8_000).root
    shutil.copytree(other / "index", root / "index", dirs_exist_ok=True)
    with pytest.raises(DataError, match=r"as in the manifest, found videos of other shards or other lengths"):
        ShardSet.open(root)


def test_the_checksums_are_the_same_bytes_however_the_index_came_to_be(root):
    from shards.check import rebuild_index

    before = files_of(root)
    shutil.rmtree(root / "index")
    rebuild_index(root)
    assert files_of(root) == before


@pytest.mark.parametrize("table", SCHEMAS)
def test_the_page_for_people_who_write_their_own_reader_names_every_column(table):
    page = (Path(__file__).parents[2] / "docs/data-format.md").read_text("utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {table} |")]
    assert set(SCHEMAS[table].names) <= set(re.findall(r"\w+", row.removeprefix(f"| {table} |")))
