"""Frames over HTTP and S3, with and without local copies: equal bytes, few connections, no trust in copies."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import byte_cache
from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.byte_cache import PAGE, ByteCache, open_cache
from shards.errors import DataError
from shards.index.copies import KEPT_DAYS, copies_folder, index_copies
from shards.manifest import ShardFacts
from shards.reader import DamagedFrameError, ShardSet
from shards.shard_files import SlowStorage, open_shard
from shards.storage.paths import RemotePath
from tests.servers import RangeServer, has_nginx, nginx_server, range_server
from tests.shards.small_tree import label_maps, write_tree

LIMIT = byte_cache.LEAST_BYTES


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set in three shards."""
    out = tmp_path_factory.mktemp("sets")
    videos = {f"video{n}": label_maps(6, (1, 2), seed=n) for n in range(5)}
    request = BuildRequest("davis2017", (write_tree(out / "tree", videos),), out, shard_size=20_000)
    build(request, make_plan(request), silent)
    return out / "davis2017"


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOSFORGE_CACHE", str(tmp_path / "index-copies"))


@pytest.fixture
def server(local: Path) -> Iterator[RangeServer]:
    with range_server(local.parent) as server:
        yield server


def frames_of(shard_set: ShardSet) -> list[object]:
    return [shard_set.read(row) for row in range(shard_set.num_frames)]


@pytest.fixture(scope="module")
def frames(local: Path) -> list[object]:
    with ShardSet.open(local) as shard_set:
        return frames_of(shard_set)


def test_frames_over_http_are_those_of_the_disk_and_connections_stay_open(server, frames):
    with ShardSet.open(f"{server.url}/davis2017") as shard_set:
        before = server.connections, server.asked
        assert frames_of(shard_set) == frames
        assert server.asked - before[1] == len(frames)
        assert server.connections - before[0] <= 1
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(shard_set.read, list(range(len(frames))) * 3)) == frames * 3
        assert server.connections - before[0] <= 9


@pytest.mark.skipif(not has_nginx(), reason="no nginx installed")
def test_frames_over_nginx_are_those_of_the_disk_and_connections_stay_open(local, frames, tmp_path):
    (tmp_path / "nginx").mkdir()
    compressing = "gzip on; gzip_types *; gzip_min_length 1;"  # what it compresses has no size and no ranges
    with nginx_server(local.parent, tmp_path / "nginx", directives=compressing) as (url, log):
        with ShardSet.open(f"{url}/davis2017") as shard_set, ThreadPoolExecutor(4) as threads:
            assert list(threads.map(shard_set.read, list(range(len(frames))) * 3)) == frames * 3
        ranges = [line.split() for line in log.read_text().splitlines() if line.split()[1] == "206"]
    assert len(ranges) >= 3 * len(frames)
    assert len({connection for connection, _, _ in ranges}) <= 8


def test_a_damaged_copy_of_the_index_is_to_be_removed_and_is_made_again(server, frames, tmp_path):
    url = f"{server.url}/davis2017"
    ShardSet.open(url).close()
    (copy,) = tmp_path.rglob("videos.arrow")
    copy.write_bytes(bytes(copy.stat().st_size))
    with pytest.raises(DataError, match=rf"index as it was written.*; remove {copy.parent}, a local copy"):
        ShardSet.open(url)
    shutil.rmtree(copy.parent)
    with ShardSet.open(url) as shard_set:
        assert shard_set.read(0) == frames[0]


def test_copies_of_indexes_tell_their_size_and_go_when_nobody_opened_them_for_a_month(server, frames, tmp_path, caplog):
    caplog.set_level("INFO")
    url = f"{server.url}/davis2017"
    unused, recent = copies_folder() / "unused", copies_folder() / "recent"
    for folder, days in ((unused, KEPT_DAYS + 1), (recent, KEPT_DAYS - 1)):
        folder.mkdir(parents=True)
        (folder / "videos.arrow").write_bytes(bytes(1000))
        os.utime(folder, (time.time() - days * 86_400,) * 2)
    with ShardSet.open(url) as shard_set:
        name, begun = shard_set.fingerprint, time.time()
        copies = index_copies()
        assert [copy.folder.name for copy in copies] == ["recent", name] and copies[0].num_bytes == 1000
        assert copies[1].num_bytes == sum(path.stat().st_size for path in copies[1].folder.iterdir()) > 1000
        assert f"{url}: its index (0 MB) was copied to {copies[1].folder}; it may be removed at any time" in caplog.text
        assert f"removed {unused}: an index that nobody opened for 30 days" in caplog.text
        os.utime(copies[1].folder, (0, 0))
        shutil.rmtree(copies[1].folder)  # who has it open goes on
        assert shard_set.read(4) == frames[4]
    ShardSet.open(url).close()
    os.utime(copies[1].folder, (0, 0))
    ShardSet.open(url).close()
    assert index_copies()[-1].folder.name == name and index_copies()[-1].last_used >= begun - 1


def test_a_damaged_answer_is_asked_for_once_more(server, frames):
    with ShardSet.open(f"{server.url}/davis2017") as shard_set:
        extent = shard_set.extent(4)
        data = bytearray(shard_set.read_ranges(extent.shard, [(extent.start, extent.num_bytes)])[0])
        data[50] ^= 1
        assert shard_set.unpack(4, bytes(data)) == frames[4]


def test_copies_serve_the_second_reading_without_the_server(server, frames, tmp_path):
    cache = open_cache(tmp_path / "copies", LIMIT)
    with ShardSet.open(f"{server.url}/davis2017", cache) as shard_set:
        assert frames_of(shard_set) == frames
        asked = server.asked
        assert frames_of(shard_set) == frames
        again = pickle.loads(pickle.dumps(shard_set))
    assert frames_of(again) == frames
    assert server.asked == asked
    shards = sum(facts.bytes for facts in again.manifest.shards)
    assert 0 < cache.taken_bytes() <= shards + len(again.manifest.shards) * 8 * PAGE


def test_a_flipped_byte_in_a_copy_is_found_and_mended(server, frames, tmp_path):
    cache = ByteCache(tmp_path / "copies", LIMIT)
    with ShardSet.open(f"{server.url}/davis2017", cache) as shard_set:
        frames_of(shard_set)
        extent = shard_set.extent(7)
        path = cache.segment(shard_set.manifest.shards[extent.shard], 0)
        data = bytearray(path.read_bytes())
        data[extent.start + 60] ^= 4
        path.write_bytes(data)
        assert shard_set.read(7) == frames[7]
        asked = server.asked
        assert frames_of(shard_set) == frames and server.asked == asked


def test_damage_at_the_source_is_damage_with_copies_too(local, tmp_path, frames):
    served = tmp_path / "served"
    served.mkdir()
    for path in local.rglob("*"):
        if path.is_file():
            target = served / "davis2017" / path.relative_to(local)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    with ShardSet.open(local) as here:
        extent, name = here.extent(2), here.manifest.shards[0].name
    data = bytearray((served / "davis2017" / name).read_bytes())
    data[extent.start + 30] ^= 1
    (served / "davis2017" / name).write_bytes(data)
    with (
        range_server(served) as server,
        ShardSet.open(f"{server.url}/davis2017", ByteCache(tmp_path / "c", LIMIT)) as far,
    ):
        for _ in range(2):
            with pytest.raises(DamagedFrameError, match=rf"{name}, video video0, frame 00002.*CRC-32"):
                far.read(2)
        assert far.read(3) == frames[3]


class MemoryFile:
    """A shard of pseudo-random bytes that counts what is asked of it."""

    def __init__(self, num_bytes: int) -> None:
        self.data = np.random.default_rng(0).integers(0, 256, num_bytes, np.uint8).tobytes()
        self.asked: list[tuple[int, int]] = []

    def read(self, ranges, *, fresh=False):
        self.asked += ranges
        return [self.data[start : start + num_bytes] for start, num_bytes in ranges]


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> MemoryFile:
    file = MemoryFile((5 << 20) + 1234)
    monkeypatch.setattr(byte_cache, "open_shard_for_clips", lambda path, facts: file)
    return file


def facts_of(file: MemoryFile, name: str = "a") -> ShardFacts:
    return ShardFacts(f"{name}.tar", len(file.data), name * 64, 1, 1)


def test_copies_of_any_ranges_are_the_bytes_of_the_source(source, tmp_path):
    cached = ByteCache(tmp_path, LIMIT)(RemotePath("http://nowhere/a.tar"), facts_of(source))
    size, rng = len(source.data), np.random.default_rng(1)
    wanted = [(0, 1), (size - 1, 1), ((1 << 20) - 5, 10), (0, size)]  # across segments, and to the very end
    wanted += [(int(start), int(rng.integers(1, size - start + 1))) for start in rng.integers(0, size, 30)]
    for _ in range(2):
        for one in wanted:
            assert cached.read([one]) == [source.data[one[0] : sum(one)]]
        assert cached.read(wanted) == [source.data[a : a + n] for a, n in wanted]
    asked = len(source.asked)
    assert cached.read(wanted) and len(source.asked) == asked
    assert all(start % PAGE == 0 and (n % PAGE == 0 or start + n == size) for start, n in source.asked)


def test_a_cache_stays_within_its_limit_and_forgets_what_was_used_longest_ago(source, tmp_path, monkeypatch):
    monkeypatch.setattr(byte_cache, "_TOUCH_SECONDS", 0.0)
    cache = ByteCache(tmp_path, LIMIT)
    assert cache.segment_bytes == 1 << 20
    paths = {}
    for number in range(8):  # 8 x 5 MiB into 16 MiB
        facts = facts_of(source, "abcdefgh"[number])
        paths[number] = cache.segment(facts, 0)
        cache(RemotePath("http://nowhere/x.tar"), facts).read([(0, 5 << 20)])
        cache(RemotePath("http://nowhere/x.tar"), facts_of(source, "a")).read([(0, 100)])  # the first one stays in use
        assert cache.taken_bytes() <= LIMIT * (1 + 1 / 16) + (6 << 20)
        time.sleep(0.01)
    cache.make_room()
    assert cache.taken_bytes() <= LIMIT
    assert paths[0].exists() and not paths[1].exists() and paths[7].exists()


def test_a_full_disk_ends_copying_and_not_reading(source, tmp_path, monkeypatch, caplog):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(byte_cache, "_write_fully", no_room)
    cached = ByteCache(tmp_path, LIMIT)(RemotePath("http://nowhere/a.tar"), facts_of(source))
    assert cached.read([(10, 20)]) == [source.data[10:30]] == cached.read([(10, 20)])
    assert caplog.text.count("No space left") == 1


def read_much(folder: Path, seed: int, started: Any = None) -> list[int]:
    """Random ranges of eight shards through a cache; the starts of those that came out wrong."""
    file = MemoryFile((5 << 20) + 1234)
    rng, wrong = np.random.default_rng(seed), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_cache, "open_shard_for_clips", lambda path, facts: file)
        cache = ByteCache(folder, LIMIT)
        for number in range(80):
            start = int(rng.integers(0, len(file.data) - 200_000))
            cached = cache(RemotePath("http://nowhere/x"), facts_of(file, "abcdefgh"[number % 8]))
            if cached.read([(start, 200_000)]) != [file.data[start : start + 200_000]]:
                wrong.append(start)
            if started is not None and number == 5:
                started.set()
    return wrong


def test_processes_that_share_a_cache_and_one_that_is_killed_leave_only_right_bytes(tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    victim = context.Process(target=read_much, args=(tmp_path, 1, started))
    victim.start()
    assert started.wait(60)
    os.kill(victim.pid, signal.SIGKILL)
    with ProcessPoolExecutor(2, context) as workers:
        assert list(workers.map(read_much, [tmp_path] * 2, (2, 3))) == [[], []]
    victim.join(60)
    assert read_much(tmp_path, 1) == []


def test_a_cache_too_small_or_in_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"at least {LIMIT} bytes, got 5"):
        ByteCache(tmp_path, 5)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="a folder for copies of remote bytes"):
        open_cache(tmp_path / "file", LIMIT)


def test_local_shards_are_read_where_they_lie(local, tmp_path, frames):
    with ShardSet.open(local, ByteCache(tmp_path / "copies", LIMIT)) as shard_set:
        assert frames_of(shard_set) == frames
    assert not (tmp_path / "copies").exists()


def test_slow_storage_waits_for_each_request_and_shares_one_link(local, frames, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr("shards.shard_files.time.monotonic", lambda: 1000.0)
    monkeypatch.setattr("shards.shard_files.pause", waits.append)
    slow = SlowStorage(0.25, 1000.0)
    with ShardSet.open(local, slow) as shard_set:
        seconds = [shard_set.extent(row).num_bytes / 1000 for row in (1, 2)]
        assert [shard_set.read(row) for row in (1, 2)] == frames[1:3]
        assert waits == pytest.approx(
            [0.25 + seconds[0], 0.25 + sum(seconds)]
        )  # asked for at once: one after the other
        again = pickle.loads(pickle.dumps(shard_set))
        assert again.read(1) == frames[1] and waits[2] == pytest.approx(waits[0])  # a link of its own
    assert open_shard(local / "manifest.json").read([(0, 1), (1, 1)]) == [b"{", b"\n"]
