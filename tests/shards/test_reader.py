"""Reading a set: every frame by its row, as it was in the source, from any thread or process."""

from __future__ import annotations

import os
import pickle
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from shards import reader
from shards.errors import DataError
from shards.masks import MASK_CODECS, decode_label_map
from shards.reader import ShardSet
from shards.shard_files import open_shard_for_clips
from tests.shards.small_tree import HEIGHT, PALETTE, WIDTH, build_set, label_maps


@pytest.fixture
def root(tree, tmp_path):
    return build_set(tree, tmp_path / "out", shard_size=20_000).root


@pytest.mark.parametrize("codec", MASK_CODECS)
def test_every_frame_is_the_source_s_jpeg_and_the_ids_of_its_mask(tree, tmp_path, codec):
    with ShardSet.open(build_set(tree, tmp_path / "out", mask_codec=codec).root) as shard_set:
        for name, ids, seed in (("bear", (1, 2), 1), ("dance", (1, 7, 254), 3)):
            rows = shard_set.frame_rows(shard_set.video_row(name))
            for frame, labels in zip(rows, label_maps(len(rows), ids, seed), strict=True):
                encoded = shard_set.read(frame)
                image = tree / "JPEGImages/480p" / name / f"{shard_set.frame_name(frame)}.jpg"
                assert encoded.image == image.read_bytes()
                np.testing.assert_array_equal(decode_label_map(encoded.mask, codec), labels)


def test_the_video_table_says_what_the_source_holds(root):
    with ShardSet.open(root) as shard_set:
        videos = shard_set.videos
        assert len(shard_set.manifest.shards) > 1
        assert (shard_set.num_videos, shard_set.num_frames, shard_set.name) == (5, 22, "davis2017")
        assert videos.names[:] == ["bear", "cup", "dance", "eel%2Ev2%20%E6%97%A5%E6%9C%AC", "fox"]
        assert videos.original_names[3] == "eel.v2 日本"
        assert videos.num_frames.tolist() == [6, 3, 4, 5, 4] and videos.first_frame.tolist() == [0, 6, 9, 13, 18]
        assert set(videos.height.tolist()) == {HEIGHT} and set(videos.width.tolist()) == {WIDTH}
        assert [videos.object_ids(row) for row in range(5)] == [(1, 2), (3,), (1, 7, 254), (1,), (2,)]
        assert videos.splits(0) == ("train", "val") and videos.palette(0) == PALETTE
        assert videos.frame_step.tolist() == [1] * 5


def test_splits_names_and_annotated_frames_are_found(root):
    with ShardSet.open(root) as shard_set:
        assert shard_set.select("train").tolist() == [0, 3, 4] and shard_set.select("val").tolist() == [0, 1, 2]
        assert shard_set.video_row("eel.v2 日本") == shard_set.video_row("eel%2Ev2%20%E6%97%A5%E6%9C%AC") == 3
        assert shard_set.annotated(1).tolist() == [True, False, False]
        assert shard_set.read(7).mask is None and shard_set.objects(7).ids.size == 0
        assert (
            shard_set.locate(7)
            == f"{shard_set.manifest.shards[int(shard_set.videos.shard[1])].name}, video cup, frame 00001"
        )
        with pytest.raises(ValueError, match="no split 'test'; there are: train, val"):
            shard_set.select("test")
        with pytest.raises(ValueError, match="no video 'bare' among 5"):
            shard_set.video_row("bare")
        with pytest.raises(IndexError, match="frame row 22 of 22"):
            shard_set.read(22)


def test_objects_of_every_frame_are_those_of_its_mask(root):
    with ShardSet.open(root) as shard_set:
        for row, (ids, seed) in {0: ((1, 2), 1), 2: ((1, 7, 254), 3)}.items():
            rows = shard_set.frame_rows(row)
            for frame, labels in zip(rows, label_maps(len(rows), ids, seed), strict=True):
                found = shard_set.objects(frame)
                assert found.ids.tolist() == [label for label in ids if (labels == label).any()]
                for label, area, (y0, x0, y1, x1) in zip(found.ids, found.areas, found.boxes, strict=True):
                    inside = labels == label
                    assert inside.sum() == area and inside[y0:y1, x0:x1].sum() == area
                    assert inside[[y0, y1 - 1]].any(1).all() and inside[:, [x0, x1 - 1]].any(0).all()


def test_threads_read_what_one_thread_reads_with_few_descriptors(root, monkeypatch):
    monkeypatch.setattr(reader, "MAX_OPEN_SHARDS", 1)
    with ShardSet.open(root) as shard_set, ThreadPoolExecutor(8) as threads:
        rows = list(range(shard_set.num_frames)) * 20
        assert list(threads.map(shard_set.read, rows)) == [shard_set.read(row) for row in rows]


def test_a_pickled_set_opens_again_and_a_closed_one_reads_on(root):
    with ShardSet.open(root) as shard_set:
        again = pickle.loads(pickle.dumps(shard_set))
        assert again.read(4) == shard_set.read(4) and again.fingerprint == shard_set.fingerprint
    assert shard_set.read(4) == again.read(4)


def test_one_read_covers_image_and_mask(root, monkeypatch):
    with ShardSet.open(root) as shard_set:
        calls = []
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda *arguments: calls.append(arguments) or pread(*arguments))
        assert shard_set.read(0).mask is not None
        assert len(calls) == 1


def test_the_kernel_reads_ahead_of_whoever_reads_in_order_and_not_of_clips(root, monkeypatch):
    advice = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: advice.append(arguments[1:]))
    with ShardSet.open(root) as in_order:
        in_order.read(0)
    assert advice == []
    with ShardSet.open(root, open_shard_for_clips) as clips:
        assert clips.read(0) == in_order.read(0)
    assert advice == [(0, 0, os.POSIX_FADV_RANDOM)]


def test_changed_bytes_are_refused_with_shard_video_and_frame(root):
    with ShardSet.open(root) as shard_set:
        frame = shard_set.frame_rows(2)[1]
        facts = shard_set.manifest.shards[int(shard_set.videos.shard[2])]
        data = bytearray((root / facts.name).read_bytes())
        place = data.index(shard_set.read(frame).image) + 100
        data[place] ^= 4
        (root / facts.name).write_bytes(data)
        with pytest.raises(DataError, match=rf"{facts.name}, video dance, frame 00001: .*CRC-32 differs.*check.py"):
            shard_set.read(frame)


def test_a_shard_that_went_away_after_opening_is_one_message(root):
    with ShardSet.open(root) as shard_set:
        last = root / shard_set.manifest.shards[-1].name
        last.unlink()
        with pytest.raises(DataError, match=rf"{last}: expected the shard that was there .*found no such file"):
            shard_set.read(shard_set.num_frames - 1)
        assert shard_set.read(0).image


def test_a_set_opened_by_a_relative_path_is_read_from_anywhere(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root.parent)
    with ShardSet.open(root.name) as shard_set:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert shard_set.read(0) == pickle.loads(pickle.dumps(shard_set)).read(0)


def test_an_incomplete_set_is_refused_with_what_to_do(root, tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json: .*no such folder"):
        ShardSet.open(tmp_path / "nothing")
    shard = root / ShardSet.open(root).manifest.shards[0].name
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(DataError, match=rf"{shard.name}: expected a shard of {len(data)} bytes, found {len(data) - 1}"):
        ShardSet.open(root)
    shard.unlink()
    with pytest.raises(DataError, match="found no file"):
        ShardSet.open(root)


@pytest.mark.parametrize("table", ["videos", "frames", "objects"])
def test_a_missing_or_foreign_index_is_refused_with_the_way_to_make_it_again(root, table):
    path = root / "index" / f"{table}.arrow"
    path.unlink()
    with pytest.raises(DataError, match=rf"{table}\.arrow: .*--rebuild-index"):
        ShardSet.open(root)
    shutil.copy(root / "manifest.json", path)
    with pytest.raises(DataError, match=rf"{table}\.arrow: expected the index as it was written"):
        ShardSet.open(root)


def test_an_index_of_another_set_is_refused(root, tree, tmp_path):
    other = build_set(tree, tmp_path / "other", splits=("train",)).root
    shutil.copytree(other / "index", root / "index", dirs_exist_ok=True)
    with pytest.raises(DataError, match=r"as in the manifest.*--rebuild-index"):
        ShardSet.open(root)


def test_a_shard_is_a_plain_tar_with_image_and_mask_side_by_side(root):
    names = []
    for facts in ShardSet.open(root).manifest.shards:
        with tarfile.open(root / facts.name) as archive:
            names += archive.getnames()
    assert names[:5] == [
        "bear/00000.video.json", "bear/00000.jpg", "bear/00000.lz4", "bear/00001.jpg", "bear/00001.lz4",
    ]  # fmt: skip
    assert [name for name in names if name.startswith("cup/")] == [
        "cup/00000.video.json", "cup/00000.jpg", "cup/00000.lz4", "cup/00001.jpg", "cup/00002.jpg",
    ]  # fmt: skip
