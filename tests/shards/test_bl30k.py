"""BL30K from folders and from tars read where they lie: the same shards, in any order of members, unpacked nowhere."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import random
import tarfile
import tracemalloc

import numpy as np
import pytest

from shards.building.build import WORK_FOLDER
from shards.errors import DataError
from shards.findings import read_findings
from shards.reader import ShardSet
from shards.sources import bl30k, tar_members
from shards.sources.bl30k import PUBLISHED_MD5, open_bl30k
from shards.sources.options import SourceOptions
from shards.sources.tar_members import index_tar, read_remarks, video_members, video_sizes
from shards.sources.types import SourceRequest
from tests.shards.other_trees import labels_of, write_bl30k
from tests.shards.small_tree import build_kind, files_of, label_maps

VIDEOS = {
    "kea00001": label_maps(4, (1, 4), 1),
    "kea00002": label_maps(3, (2,), 2),
    "zoo00417": label_maps(5, (1, 2, 3), 3),
}


@pytest.fixture
def folder(tmp_path):
    return write_bl30k(tmp_path / "BL30K", VIDEOS)


def write_tar(path, files, prefix="BL30K/", form=tarfile.GNU_FORMAT):
    """Tar of {relative path: bytes} in the given order, folders as members of their own."""
    with tarfile.open(path, "w", format=form) as tar:
        folders = tarfile.TarInfo(prefix.rstrip("/") or "JPEGImages")
        folders.type = tarfile.DIRTYPE
        tar.addfile(folders)
        for name, data in files:
            entry = tarfile.TarInfo(prefix + name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def add_member(path, name, kind=tarfile.REGTYPE, link="", size=0):
    """Append a member without content to a tar."""
    with tarfile.open(path, "a") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.size = kind, link, size
        tar.addfile(entry, io.BytesIO(bytes(size)))


def shards_of(result):
    return {path.name: path.read_bytes() for path in result.root.glob("*.tar")}


def built(paths, out, **arguments):
    return build_kind("bl30k", paths, out, shard_size=30_000, **arguments)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("num_tars", [1, 3])
def test_tars_in_any_order_of_members_give_the_bytes_of_the_folder(folder, tmp_path, seed, num_tars):
    """Members of one video, and image and mask of one frame, end up anywhere, in any of the tars, below any prefix."""
    files = list(files_of(folder).items())
    random.Random(seed).shuffle(files)
    prefixes = ["BL30K/", "", "BL30K/a/BL30K/", "./x/"]
    tars = [
        write_tar(tmp_path / f"part_{number}.tar", files[number::num_tars], prefixes[(seed + number) % 4])
        for number in range(num_tars)
    ]
    plain = built([folder], tmp_path / "plain")
    streamed = built(tars, tmp_path / "streamed")
    assert len(shards_of(plain)) > 1
    assert shards_of(streamed) == shards_of(plain)
    assert streamed.manifest.fingerprint == plain.manifest.fingerprint
    assert files_of(streamed.root) == files_of(plain.root)


def test_folders_and_tars_can_be_mixed(folder, tmp_path):
    files = files_of(folder)
    masks = [(name, data) for name, data in files.items() if name.startswith("Annotations/kea")]
    tar = write_tar(tmp_path / "masks.tar", masks)
    for name, _ in masks:
        (folder / name).unlink()
    mixed = built([folder, tar], tmp_path / "mixed")
    whole = built([write_bl30k(tmp_path / "whole", VIDEOS)], tmp_path / "plain")
    assert shards_of(mixed) == shards_of(whole)


@pytest.mark.parametrize("same", [True, False])
def test_a_frame_with_two_masks_is_refused_even_if_they_are_equal(folder, tmp_path, same):
    """Images that come twice are refused too: the tars overlap or were joined, and which one is right is a guess."""
    files = list(files_of(folder).items())
    name, data = next((name, data) for name, data in files if name.startswith("Annotations/kea"))
    other = data if same else next(one for path, one in files if path.startswith("Annotations/kea") and one != data)
    tars = [write_tar(tmp_path / "a.tar", files), write_tar(tmp_path / "b.tar", [(name, other)])]
    with pytest.raises(DataError, match=rf"b\.tar:.*{name}: expected one PNG, found also .*a\.tar"):
        built(tars, tmp_path / "stop")
    result = built(tars, tmp_path / "skip", on_bad="skip")
    video = name.split("/")[1]
    assert [(one.reason, one.video) for one in read_findings(result.root)] == [("two masks for one frame", video)]
    with ShardSet.open(result.root) as shard_set:
        assert video not in shard_set.videos.original_names[:]


def test_a_tree_below_odd_folders_is_found(folder, tmp_path):
    (tmp_path / "unpacked/BL30K/a").mkdir(parents=True)
    folder.rename(tmp_path / "unpacked/BL30K/a/BL30K")
    with ShardSet.open(built([tmp_path / "unpacked"], tmp_path / "out").root) as shard_set:
        assert shard_set.videos.original_names[:] == sorted(VIDEOS)
        for name, maps in VIDEOS.items():
            for frame, labels in enumerate(maps):
                np.testing.assert_array_equal(labels_of(shard_set, name, frame), labels)


def test_a_video_without_its_masks_is_listed_and_skipped(folder, tmp_path):
    files = [(name, data) for name, data in files_of(folder).items() if not name.startswith("Annotations/kea00002")]
    tar = write_tar(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=r"kea00002.*a mask for at least one frame"):
        built([tar], tmp_path / "stop")
    result = built([tar], tmp_path / "skip", on_bad="skip")
    assert [(one.reason, one.video) for one in read_findings(result.root)] == [("no masks", "kea00002")]


def test_the_sum_of_a_published_tar_is_checked_on_the_way(folder, tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "BL30K_a.tar", files_of(folder).items())
    with pytest.raises(DataError, match=f"published MD5 {PUBLISHED_MD5['BL30K_a.tar']}, found .*--md5 skip"):
        built([tar], tmp_path / "bad")
    skipped = built([tar], tmp_path / "skipped", options=SourceOptions(md5="skip"))
    monkeypatch.setitem(bl30k.PUBLISHED_MD5, "BL30K_a.tar", hashlib.md5(tar.read_bytes()).hexdigest())
    assert shards_of(built([tar], tmp_path / "good")) == shards_of(skipped)


def test_the_six_published_sums_are_known():
    assert sorted(PUBLISHED_MD5) == [f"BL30K_{letter}.tar" for letter in "abcdef"]
    assert all(len(value) == 32 for value in PUBLISHED_MD5.values())


def test_a_listed_tar_is_not_walked_again_unless_it_changed(folder, tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "a.tar", files_of(folder).items())
    database = tmp_path / "a.members"
    index_tar(tar, database, "a.tar", None)
    walks = []
    walk = tar_members._fill
    monkeypatch.setattr(tar_members, "_fill", lambda *arguments: walks.append(1) or walk(*arguments))
    index_tar(tar, database, "a.tar", None)
    assert walks == []
    add_member(tar, "BL30K/JPEGImages/new00001/00000.jpg")
    index_tar(tar, database, "a.tar", None)
    assert walks == [1] and "new00001" in {row[0] for row in video_sizes(database)}
    database.write_bytes(database.read_bytes()[:100])
    index_tar(tar, database, "a.tar", None)
    assert walks == [1, 1]


def test_nothing_stays_but_the_set(folder, tmp_path):
    tar = write_tar(tmp_path / "a.tar", files_of(folder).items())
    result = built([tar], tmp_path / "out")
    assert not (result.root / WORK_FOLDER).exists()
    assert built([tar], tmp_path / "out").already_there and not (result.root / WORK_FOLDER).exists()


@pytest.mark.parametrize("start", [b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"])
def test_compressed_tars_are_refused_with_a_word(tmp_path, start):
    tar = tmp_path / "a.tar.gz"
    tar.write_bytes(gzip.compress(bytes(2000)) if start == b"\x1f\x8b" else start + bytes(2000))
    with pytest.raises(DataError, match=r"expected a plain tar.*uncompress it first"):
        built([tar], tmp_path / "out")


def test_a_cut_off_tar_is_refused(folder, tmp_path):
    whole = write_tar(tmp_path / "whole.tar", files_of(folder).items()).read_bytes()
    tar = tmp_path / "a.tar"
    for keep in (len(whole) // 2, len(whole) // 1024 * 512, 700, 100):
        tar.write_bytes(whole[:keep])
        with pytest.raises(DataError, match="expected a whole tar, found"):
            built([tar], tmp_path / "out")


def test_a_bad_tar_stops_the_reading_of_the_others_and_is_the_one_named(folder, tmp_path, monkeypatch):
    """The good one never ends by itself here."""
    good = write_tar(tmp_path / "good.tar", files_of(folder).items())
    (tmp_path / "bad.tar").write_bytes(b"BZh" + bytes(2000))
    read = tar_members._Walk.read

    def reread(self, num_bytes):
        if self.size != good.stat().st_size:
            return read(self, num_bytes)
        read(self, 0)
        return tarfile.TarInfo("x").tobuf()

    monkeypatch.setattr(tar_members._Walk, "read", reread)
    with pytest.raises(DataError, match=r"bad\.tar: expected a plain tar"):
        built([good, tmp_path / "bad.tar"], tmp_path / "out", jobs=2)


def test_links_special_files_and_paths_out_of_the_tar_are_passed_over(folder, tmp_path):
    tar = write_tar(tmp_path / "a.tar", files_of(folder).items())
    add_member(tar, "BL30K/JPEGImages/kea00001/00009.jpg", tarfile.SYMTYPE, "/etc/passwd")
    add_member(tar, "BL30K/JPEGImages/kea00001/00010.jpg", tarfile.LNKTYPE, "BL30K/JPEGImages/kea00001/00000.jpg")
    add_member(tar, "BL30K/JPEGImages/kea00001/00011.jpg", tarfile.FIFOTYPE)
    add_member(tar, "../JPEGImages/kea00001/00012.jpg")
    add_member(tar, "JPEGImages/../JPEGImages/../00013.jpg")
    add_member(tar, "BL30K/README.md", size=20)
    add_member(tar, "BL30K/JPEGImages/kea00001/._00000.jpg", size=20)
    result = built([tar], tmp_path / "out")
    assert shards_of(result) == shards_of(built([folder], tmp_path / "plain"))
    assert [(one.reason, one.path.rpartition("/")[2]) for one in read_findings(result.root)] == [
        ("link or special file in the tar", "00009.jpg"),
        ("link or special file in the tar", "00010.jpg"),
        ("link or special file in the tar", "00011.jpg"),
        ("path that leaves the tar", "00012.jpg"),
        ("path that leaves the tar", "00013.jpg"),
        ("member of no video", "README.md"),
    ]


@pytest.mark.parametrize("name", [f"kea00001/{'9' * 5000}.jpg", f"kea00001/{'0' * 252}.jpg", f"{'v' * 256}/00000.jpg"])
def test_names_that_no_file_can_have_are_passed_over(folder, tmp_path, name):
    files = files_of(folder) | {f"JPEGImages/{name}": b"an image, perhaps"}
    result = built([write_tar(tmp_path / "a.tar", files.items(), form=tarfile.PAX_FORMAT)], tmp_path / "out")
    assert shards_of(result) == shards_of(built([folder], tmp_path / "plain"))
    assert [one.reason for one in read_findings(result.root)] == ["name longer than a file can have"]


def test_a_header_that_claims_an_absurd_size_is_refused(folder, tmp_path):
    tar = write_tar(tmp_path / "a.tar", files_of(folder).items())
    data = bytearray(tar.read_bytes())
    entry = tarfile.TarInfo("BL30K/JPEGImages/kea00001/00000.jpg")
    for size in (1 << 40, -1):
        entry.size = size
        data[512:1024] = entry.tobuf(tarfile.GNU_FORMAT)
        tar.write_bytes(data)
        with pytest.raises(DataError, match="expected a whole tar, found member"):
            built([tar], tmp_path / "out")


def test_a_huge_member_is_refused_without_reading_it(folder, tmp_path):
    tar = write_tar(tmp_path / "a.tar", files_of(folder).items())
    entry = tarfile.TarInfo("BL30K/JPEGImages/kea00001/00099.jpg")
    entry.size = 1 << 29
    data = tar.read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % 512) + entry.tobuf(tarfile.GNU_FORMAT)
    with tar.open("wb") as file:  # sparse: half a gigabyte of nothing
        file.write(data)
        file.truncate(len(data) + entry.size + 1024)
    with pytest.raises(DataError, match=r"00099\.jpg: expected at most 268435456 bytes, found 536870912"):
        built([tar], tmp_path / "out")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_both_kinds_of_tar_are_read(folder, tmp_path, form):
    prefix = "é/" + "long/" * 60
    tar = write_tar(tmp_path / "a.tar", files_of(folder).items(), prefix, form)
    assert shards_of(built([tar], tmp_path / "out")) == shards_of(built([folder], tmp_path / "plain"))


def test_names_that_are_not_utf8_are_listed(tmp_path):
    tar = write_tar(tmp_path / "a.tar", [("JPEGImages/x\udcff/00000.jpg", b"1"), ("JPEGImages/a/00000.jpg", b"2")])
    index_tar(tar, tmp_path / "a.members", "a.tar", None)
    assert [one.reason for one in read_remarks(tmp_path / "a.members")] == ["name is not UTF-8"]
    assert [row[0] for row in video_sizes(tmp_path / "a.members")] == ["a"]


def test_the_same_frame_in_two_tars_is_refused(folder, tmp_path):
    tars = [write_tar(tmp_path / f"{name}.tar", files_of(folder).items()) for name in "ab"]
    with pytest.raises(DataError, match=r"one image for each frame number, found 0 also in a\.tar"):
        built(tars, tmp_path / "out")


def test_the_source_goes_to_workers_as_a_few_bytes(folder, tmp_path):
    tar = write_tar(tmp_path / "a.tar", files_of(folder).items())
    source = open_bl30k(SourceRequest((tar,), None, "480p", scratch=tmp_path / "scratch"))
    assert len(pickle.dumps(source)) < 2000
    again = pickle.loads(pickle.dumps(source))
    assert again.video("kea00002") == source.video("kea00002")
    assert shards_of(built([tar], tmp_path / "two", jobs=2)) == shards_of(built([tar], tmp_path / "one"))


def test_listing_holds_no_object_for_each_member(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_members, "_BATCH", 200)

    def peak(num_videos):
        files = (
            (f"JPEGImages/v{video:05d}/{frame:05d}.jpg", b"") for video in range(num_videos) for frame in range(50)
        )
        tar = write_tar(tmp_path / f"{num_videos}.tar", files)
        tracemalloc.start()
        index_tar(tar, tmp_path / f"{num_videos}.members", "a.tar", None)
        assert sum(1 for _ in video_sizes(tmp_path / f"{num_videos}.members")) == 50 * num_videos
        assert len(video_members(tmp_path / f"{num_videos}.members", "v00003")) == 50
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    # One Python object for each of the 4500 members more would be 50 bytes each at the least.
    assert peak(100) - peak(10) < 8 * 4500


def test_wrong_sources_say_what_is_wanted(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected JPEGImages/<video> and Annotations/<video>"):
        built([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(DataError, match="no such file"):
        built([tmp_path / "nothing.tar"], tmp_path / "out")


def test_the_real_pack_from_folder_and_from_its_tar(shared_data, tmp_path):
    source = shared_data / "bl30k_mini"
    files = [(name, data) for name, data in files_of(source).items() if name.endswith(("jpg", "png"))]
    random.Random(5).shuffle(files)
    plain = built([source], tmp_path / "plain")
    assert shards_of(built([write_tar(tmp_path / "a.tar", files)], tmp_path / "out")) == shards_of(plain)
    with ShardSet.open(plain.root) as shard_set:
        assert shard_set.videos.original_names[:] == ["aaa00000", "kea00417"]
        assert [shard_set.videos.object_ids(row) for row in (0, 1)] == [(1, 2, 3, 4), (1, 2, 4)]
        assert shard_set.videos.num_frames.tolist() == [10, 10]
        assert int(shard_set.objects(0).areas[3]) == 22
        starts = {shard_set.frame_name(row): ids for row, ids in shard_set.starts(1).items()}
        assert starts == {"00000": (1, 2), "00004": (4,)}


def joined(folder, *contents):
    """One file of several tars, each a list of (name, type, size in the header, content)."""
    import io
    import tarfile

    data = b""
    for members in contents:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, kind, content in members:
                header = tarfile.TarInfo(name)
                header.type, header.size, header.linkname = kind, len(content), "elsewhere" if kind != b"0" else ""
                if kind == tarfile.REGTYPE:
                    tar.addfile(header, io.BytesIO(content))
                else:
                    header.size = 1000  # as some writers leave it, with no content behind
                    file.write(header.tobuf(tarfile.USTAR_FORMAT))
                    tar.offset = file.tell()
        data += file.getvalue()
    path = folder / "odd.tar"
    path.write_bytes(data)
    return path


def walked(path):
    import threading

    from shards.sources.tar_members import _members, _Walk

    with path.open("rb") as file:
        walk = _Walk(file, path.stat().st_size, hashed=False, stop=threading.Event())
        return [member.path for member in _members(walk, path)]


def test_a_link_that_claims_content_hides_nothing_behind_it(tmp_path):
    import tarfile

    path = joined(
        tmp_path, [("a/1.jpg", tarfile.REGTYPE, b"x" * 700), ("a/l", tarfile.LNKTYPE, b""), ("a/2.jpg", b"0", b"y")]
    )
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert walked(path) == names == ["a/1.jpg", "a/l", "a/2.jpg"]


def test_a_second_tar_joined_behind_the_first_is_refused(tmp_path):
    path = joined(tmp_path, [("a/1.jpg", b"0", b"x")], [("a/2.jpg", b"0", b"y")])
    with pytest.raises(DataError, match="more than padding, behind the end of the archive"):
        walked(path)
