"""Read plans change how bytes come and nothing about them; the cost model picks by two numbers; damage has rules."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly import make_assembly
from pipelines.executors import make_executor
from pipelines.loader import ClipLoader
from pipelines.order.curriculum import Table
from pipelines.order.pooled import Pooled
from pipelines.order.sampling import MixEntry
from pipelines.reading.clip_reader import (
    NEIGHBOUR_GAP,
    READ_PLANS,
    WHOLE_SPAN,
    ClipReader,
    ReadPlan,
    coalesce,
    cut_out,
    split_range,
    video_range,
)
from pipelines.reading.cost import Demand, choose_reading, known_speed, measure_demands, probe_source, span_gap
from pipelines.reading.video_pool import VideoPool
from pipelines.recipes import make_recipe
from pipelines.source import ClipSource
from pipelines.types import Batch
from shards.byte_cache import LEAST_BYTES, ByteCache
from shards.reader import DamagedFrameError, ShardSet
from shards.sets.sparse_set import SparseSet, write_sparse_set
from shards.shard_files import SlowStorage
from shards.speed import StorageSpeed
from tests.pipelines.fake_set import STRIDE, FakeSet, FakeVideo
from tests.servers import range_server
from tests.shards.small_tree import build_set, label_maps, write_tree

FAST = StorageSpeed(1e-4, 2e9)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of seven videos in a few shards."""
    out = tmp_path_factory.mktemp("set")
    videos = {f"video{n}": label_maps(9 + n, (1, 2, 200 + n), seed=n) for n in range(7)}
    return build_set(write_tree(out / "tree", videos), out, shard_size=60_000).root


@pytest.fixture
def shard_set(root: Path) -> Iterator[ShardSet]:
    with ShardSet.open(root) as opened:
        yield opened


def make_source(shard_set: ShardSet | FakeSet, *, pooled: Pooled | None = None, **numbers: int) -> ClipSource:
    recipe = make_recipe("rde_video", {"size": 32, "num_frames": 3, "max_gap": [[0, 2], [0.5, 4]]})
    numbers = {"seed": 1, "steps": 6, "batch_size": 4} | numbers
    return ClipSource([MixEntry(shard_set, "train")], recipe, pooled=pooled, **numbers)


def load(source: ClipSource, **options: object) -> tuple[list[Batch], ClipLoader]:
    executor = make_executor("cpu", threads=1, device=torch.device("cpu"))
    try:
        with ClipLoader(source, executor, make_assembly(source.recipe, torch.device("cpu")), **options) as loader:
            return list(loader), loader
    finally:
        executor.close()


def same(first: list[Batch], second: list[Batch]) -> bool:
    names = ("images", "masks", "num_objects", "first_masks", "annotated")
    return len(first) == len(second) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(first, second, strict=True) for name in names
    )


READINGS = [
    ReadPlan("frame"),
    ReadPlan("span"),
    ReadPlan("span", 3000),
    ReadPlan("resident"),
    ReadPlan("resident", pool_bytes=50_000),
]


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_every_read_plan_gives_the_same_bytes_as_reading_frame_by_frame(shard_set, reading):
    source = make_source(shard_set)
    reader = ClipReader(source, reading)
    plans = [source.plan(number) for number in range(24)]
    with ThreadPoolExecutor(4) as threads:
        for plan, read in zip(plans, threads.map(reader.read, plans), strict=True):
            assert read.clip.frames == source.read(plan).frames
            assert read.clip.plan is plan and read.substitute is None


def test_batches_are_equal_bit_for_bit_whatever_the_storage_and_the_way_to_read_it(
    root, shard_set, tmp_path, monkeypatch
):
    monkeypatch.setenv("VOSFORGE_CACHE", str(tmp_path / "index"))
    whole, _ = load(make_source(shard_set))
    for reading, threads, look_ahead in [(READINGS[1], 1, 1), (READINGS[4], 5, 3)]:
        found, _ = load(make_source(shard_set), reading=reading, threads=threads, look_ahead=look_ahead)
        assert same(whole, found)
    with ShardSet.open(root, SlowStorage(1e-4, 1e9)) as slow:
        assert same(whole, load(make_source(slow))[0])
    with range_server(root.parent) as server:
        cache = ByteCache(tmp_path / "copies", LEAST_BYTES)
        for opener in ({}, {"opener": cache}, {"opener": cache}):
            with ShardSet.open(f"{server.url}/{root.name}", **opener) as remote:
                assert same(whole, load(make_source(remote), reading=READINGS[2])[0])


def test_clips_come_from_a_bucket_as_from_the_disk(root, shard_set, tmp_path, monkeypatch):
    moto_server, boto3 = pytest.importorskip("moto.server"), pytest.importorskip("boto3")
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("VOSFORGE_CACHE", str(tmp_path / "index"))
    environment = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing"}
    for name, value in (environment | {"DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket="clips")
        for path in (path for path in root.rglob("*") if path.is_file()):
            client.upload_file(str(path), "clips", f"set/{path.relative_to(root)}")
        with ShardSet.open("s3://clips/set", ByteCache(tmp_path / "copies", LEAST_BYTES)) as remote:
            assert same(load(make_source(shard_set))[0], load(make_source(remote), reading=ReadPlan("resident"))[0])
    finally:
        server.stop()


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 40)), min_size=1, max_size=12),
    st.integers(0, 200),
)
def test_coalesced_ranges_cover_everything_and_bridge_no_larger_gap(ranges, max_gap):
    ranges = sorted(set(ranges))
    merged = coalesce(ranges, max_gap)
    wanted = {byte for start, length in ranges for byte in range(start, start + length)}
    read = [byte for start, length in merged for byte in range(start, start + length)]
    assert wanted <= set(read) and len(read) == len(set(read))
    for (start, length), (after, _) in pairwise(merged):
        assert after - (start + length) > max_gap
    extra = sorted(set(read) - wanted)
    runs = [n for n, byte in enumerate(extra) if not n or byte != extra[n - 1] + 1] + [len(extra)]
    assert all(after - before <= max_gap for before, after in pairwise(runs))


def test_the_frame_plan_reads_neighbours_by_one_request_and_nothing_but_tar_headers_along(shard_set):
    source = make_source(shard_set)
    for number in range(24):
        plan = source.plan(number)
        count = ClipReader(source).read(plan).count
        rows = sorted(set(plan.frames))
        breaks = sum(after != before + 1 for before, after in pairwise(rows))
        assert count.requests == 1 + breaks
        used = sum(len(frame.image) + len(frame.mask) for frame in map(shard_set.read, rows))
        assert count.bytes_used == used
        assert count.bytes_read - used <= NEIGHBOUR_GAP * len(rows)


def test_a_span_is_one_request_from_the_first_frame_to_the_last():
    fake = FakeSet([FakeVideo(num_frames=20)])
    source = make_source(fake)
    plan = source.plan(5)
    count = ClipReader(source, ReadPlan("span", WHOLE_SPAN)).read(plan).count
    first, last = min(plan.frames), max(plan.frames)
    assert count.requests == 1
    assert count.bytes_read == (last - first) * STRIDE + fake.extent(last).num_bytes


def test_a_resident_video_is_read_once(shard_set):
    source = make_source(shard_set, steps=14)
    _, loader = load(source, reading=ReadPlan("resident"))
    videos = {source.plan(number).video for number in range(56)}
    assert loader.statistics.requests == len(videos) == 7
    assert loader.statistics.bytes_read == sum(video_range(shard_set, video)[1] for video in videos)


def test_large_videos_are_read_in_chunks(monkeypatch):
    monkeypatch.setattr("pipelines.reading.clip_reader.CHUNK_BYTES", 100)
    assert split_range((7, 250)) == [(7, 100), (107, 100), (207, 50)]


@given(st.integers(0, 249), st.integers(1, 250))
def test_what_lies_in_several_chunks_is_put_together(start, num_bytes):
    data = bytes(range(250))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.reading.clip_reader.CHUNK_BYTES", 100)
        chunks = [data[first : first + length] for first, length in split_range((0, 250))]
        assert cut_out(chunks, start, num_bytes) == data[start : start + num_bytes]


def test_the_pool_loads_each_video_once_for_all_threads_and_stays_within_its_limit():
    pool, loads, held = VideoPool[bytes](1000), [], []
    barrier = threading.Barrier(6)

    def load_video(name: int) -> bytes:
        loads.append(name)
        time.sleep(0.02)
        return bytes([name]) * 300

    def get(_: int) -> tuple[bytes, bool]:
        barrier.wait()
        return pool.get(1, 300, partial(load_video, 1))

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(get, range(6)))
    assert loads == [1] and [ours for _, ours in found].count(True) == 1
    assert {data for data, _ in found} == {b"\1" * 300}
    for name in (2, 3, 1, 4):  # 1 was used last but one: 2 goes
        pool.get(name, 300, partial(load_video, name))
        held.append(pool._taken)
    assert max(held) <= 1000
    assert [pool.get(name, 300, partial(load_video, name))[1] for name in (1, 3, 4, 2)] == [False, False, False, True]


def test_a_video_that_does_not_fit_beside_those_being_read_waits_for_them():
    pool, started, go_on = VideoPool[bytes](500), threading.Event(), threading.Event()
    at_once, most = [0], []

    def load_slowly(_: int) -> bytes:
        at_once[0] += 1
        most.append(at_once[0])
        started.set()
        assert go_on.wait(10)
        at_once[0] -= 1
        return b"x" * 300

    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(pool.get, name, 300, partial(load_slowly, name)) for name in range(4)]
        assert started.wait(10)
        go_on.set()
        assert [future.result() for future in found] == [(b"x" * 300, True)] * 4
    assert max(most) == 1 and pool._taken == 300
    with pytest.raises(ValueError, match="a video of 501 bytes does not fit into a pool of 500"):
        pool.get("large", 501, lambda: b"")


def test_a_video_that_is_being_read_is_not_dropped_for_another():
    pool, started, go_on, loads = VideoPool[bytes](700), threading.Event(), threading.Event(), []

    def load_slowly() -> bytes:
        loads.append(1)
        started.set()
        assert go_on.wait(10)
        return b"1" * 300

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(pool.get, 1, 300, load_slowly)
        assert started.wait(10)
        assert pool.get(2, 300, lambda: b"2" * 300)[1]
        again = threads.submit(pool.get, 1, 300, load_slowly)
        go_on.set()
        assert first.result() == (b"1" * 300, True) and again.result() == (b"1" * 300, False)
    assert loads == [1]
    assert pool.get(3, 300, lambda: b"3" * 300)[1] and pool._taken == 600


def test_an_error_of_loading_a_video_reaches_all_and_is_not_kept():
    pool = VideoPool[bytes](1000)

    def fail() -> bytes:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        pool.get("a", 10, fail)
    assert pool.get("a", 2, lambda: b"ok") == (b"ok", True)


@pytest.mark.parametrize(
    ("speed", "threads", "expected"),
    [
        (StorageSpeed(0.010, 1e6), 1, 5 * 0.010 + 0.1),  # one thread: everything one after the other
        (StorageSpeed(0.010, 1e6), 4, 0.1),  # the link is full
        (StorageSpeed(0.100, 1e6), 4, (0.5 + 0.1) / 4),  # the threads wait
    ],
)
def test_the_cost_of_a_clip_is_that_of_its_requests_or_of_the_link(speed, threads, expected):
    assert Demand(5, 100_000, 0).seconds(speed, threads) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("latency", "threads", "expected"),
    [
        (1e-6, 64, 0.004 + 5 * 0.003 + 0.02 + 0.4e-9 * 90_000),  # one core is busy: more threads would not help
        (0.1, 2, (5 * 0.1 + 0.0001 + 0.039036) / 2),  # the threads wait, and work in between
    ],
)
def test_the_cost_of_a_clip_is_at_least_its_work_on_one_core(latency, threads, expected):
    speed = StorageSpeed(latency, 1e9, request_cpu=0.003, byte_cpu=0.02 / 100_000)
    assert Demand(5, 100_000, 90_000, planning=0.004).seconds(speed, threads) == pytest.approx(expected)


def test_requests_that_cost_much_of_a_core_make_the_model_bridge_gaps():
    fakes = FakeSet([FakeVideo(f"v{n}", num_frames=40) for n in range(20)])
    source = make_source(fakes, steps=5000)
    picked = {}
    for cost in (0.0, 0.004):
        speed = StorageSpeed(0.004, 1e9, request_cpu=cost)
        choice = choose_reading(source, speed, range(4), threads=16, pool_bytes=10**5)
        picked[cost] = choice.reading.name
    assert picked == {0.0: "frame", 0.004: "span"}
    assert "4.00 ms of CPU a request" in choice.describe()


def test_planning_is_part_of_what_a_clip_costs(shard_set):
    demands = measure_demands(make_source(shard_set), FAST, range(4), pool_bytes=10**9)
    assert len({demand.planning for demand in demands.values()}) == 1
    assert 0 < demands["frame"].planning < demands["frame"].seconds(FAST, 1)


def test_known_speeds_come_with_what_requests_usually_cost(root, shard_set, tmp_path, monkeypatch):
    monkeypatch.setenv("VOSFORGE_CACHE", str(tmp_path / "index"))
    near = known_speed(make_source(shard_set), 0.01, 1e8)
    with range_server(root.parent) as server, ShardSet.open(f"{server.url}/{root.name}") as remote:
        far = known_speed(make_source(remote), 0.01, 1e8)
    assert (near.latency, near.bandwidth) == (far.latency, far.bandwidth) == (0.01, 1e8)
    assert 0 < near.request_cpu < far.request_cpu and 0 < near.byte_cpu < far.byte_cpu


@pytest.mark.parametrize(
    ("speed", "pool_bytes", "expected"),
    [
        (StorageSpeed(1e-4, 2e9), 10**9, "frame"),  # fast: reads least
        (StorageSpeed(0.1, 1e8), 10**5, "span"),  # each request costs ten megabytes
        (StorageSpeed(0.1, 1e8), 10**9, "resident"),  # and everything fits into memory
        (StorageSpeed(1e-3, 2e6), 10**5, "frame"),  # a thin link: what is read along costs more
    ],
)
def test_the_model_picks_what_suits_the_storage(speed, pool_bytes, expected):
    fakes = FakeSet([FakeVideo(f"v{n}", num_frames=40) for n in range(20)])
    source = make_source(fakes, steps=5000)
    choice = choose_reading(source, speed, range(4), threads=4, pool_bytes=pool_bytes)
    assert choice.reading.name == expected
    assert choice.reading.max_gap == max(NEIGHBOUR_GAP, round(speed.latency * speed.bandwidth))
    assert set(choice.clips_per_second) == set(READ_PLANS)
    assert choice.describe().startswith(f"read plan {expected}, ")
    others = [name for name in READ_PLANS if name != expected]
    assert [name in choice.describe().split("other plans: ")[1] for name in (expected, *others)] == [False, True, True]


def test_a_mix_that_changes_costs_what_its_parts_cost():
    """Whole videos of 80 frames are many times those of 8, and the pool holds a few of either."""
    sets = [FakeSet([FakeVideo(f"{n}", num_frames=frames) for n in range(30)], name=f"{frames}") for frames in (8, 80)]
    halves = [[[0, 1], [0.5, 0]], [[0, 0], [0.5, 1]]]
    entries = [MixEntry(one, "train", Table(rows)) for one, rows in zip(sets, halves, strict=True)]
    recipe = make_recipe("rde_video", {"num_frames": 3, "size": 32})
    demands = [
        measure_demands(ClipSource(mix, recipe, seed=1, steps=5000, batch_size=4), FAST, range(4), pool_bytes=10**8)
        for mix in (entries, [MixEntry(sets[0], "train")], [MixEntry(sets[1], "train")])
    ]
    changing, short, long = (demand["resident"].bytes_read for demand in demands)
    assert changing == pytest.approx((short + long) / 2, rel=0.05)
    assert long > 5 * short


def test_demands_are_what_the_reader_then_counts(shard_set):
    source = make_source(shard_set, steps=16)
    speed = StorageSpeed(1e-3, 3e6)
    demands = measure_demands(source, speed, range(4), pool_bytes=10**9)
    for name in READ_PLANS:
        _, loader = load(source, reading=ReadPlan(name, span_gap(speed)))
        seen, demand = loader.statistics, demands[name]
        assert (seen.requests / 64, seen.bytes_read / 64) == pytest.approx((demand.requests, demand.bytes_read))
    assert demands["frame"].bytes_used == pytest.approx(seen.bytes_used / 64)


def test_a_probe_measures_the_slowed_storage(root):
    with ShardSet.open(root, SlowStorage(0.03, 5e6)) as slow:
        speed = probe_source(make_source(slow))
    assert 0.03 <= speed.latency < 0.3
    assert 0 < speed.request_cpu < speed.latency  # waiting is no work
    assert 5e5 < speed.bandwidth < 5.5e6


def test_a_probe_measures_the_server_and_not_the_local_copies(root, tmp_path, monkeypatch):
    monkeypatch.setenv("VOSFORGE_CACHE", str(tmp_path / "index"))
    with range_server(root.parent) as server:
        cache = ByteCache(tmp_path / "copies", LEAST_BYTES)
        with ShardSet.open(f"{server.url}/{root.name}", cache) as remote:
            asked = []
            for _ in range(3):
                probe_source(make_source(remote))
                asked.append(server.asked)
    assert asked[2] - asked[1] == asked[1] - asked[0] > 0


def damaged_source(**broken: int) -> tuple[FakeSet, ClipSource]:
    fakes = FakeSet([FakeVideo(f"v{n}", num_frames=20) for n in range(7)])
    fakes.broken.update(frame for video in broken.values() for frame in fakes.frame_rows(video))
    return fakes, make_source(fakes, steps=12)


class NoPixels:
    """An executor that makes nothing."""

    def __call__(self, clips):
        return None

    def close(self):
        """Nothing to close."""


def load_plans(source: ClipSource, **options: object) -> tuple[list, ClipLoader]:
    def assemble(_pixels, plans, *, step):
        none = torch.zeros(0)
        return Batch(step, none, none, none, none, none, plans), 0

    with ClipLoader(source, NoPixels(), assemble, **options) as loader:
        return [plan for batch in loader for plan in batch.plans], loader


def test_damage_stops_by_default_and_says_which_clip():
    _, source = damaged_source(first=3)
    number = next(n for n in range(48) if source.plan(n).video == 3)
    with pytest.raises(DamagedFrameError, match=rf"frame row {min(source.plan(number).frames)}: ") as caught:
        load_plans(source)
    assert caught.value.__notes__ == [f"while reading {source.describe(source.plan(number))}"]


@pytest.mark.parametrize("reading", ["frame", "resident"])
def test_a_damaged_video_is_replaced_by_the_same_clip_in_every_process_and_counted(reading):
    _, source = damaged_source(first=3, second=4)
    options = {"on_corrupt": "substitute", "reading": ReadPlan(reading)}
    whole, loader = load_plans(source, **options)
    intact = [source.plan(number) for number in range(48)]
    bad = [plan.number for plan in intact if plan.video in (3, 4)]
    assert [found.number for found in whole] == list(range(48))
    for before, found in zip(intact, whole, strict=True):
        assert found.video not in (3, 4)
        assert (found.number, found.dataset, found.damage_key) == (before.number, before.dataset, before.damage_key)
        assert (found.frames == before.frames) == (before.number not in bad)
    assert [substitute.number for substitute in loader.statistics.substitutes] == bad
    first = loader.statistics.substitutes[0]
    assert "fake-000000.tar, frame row" in first.found and f"clip {bad[0]} (step" in first.shown
    for world_size in (2, 4):
        parts = [load_plans(source, rank=r, world_size=world_size, threads=3, **options) for r in range(world_size)]
        together = {plan.number: plan for plans, _ in parts for plan in plans}
        assert [(together[n].video, together[n].frames) for n in range(48)] == [(p.video, p.frames) for p in whole]
        numbers = sorted(s.number for _, loader in parts for s in loader.statistics.substitutes)
        assert numbers == bad


def test_where_everything_is_damaged_substitution_ends_too():
    fakes, source = damaged_source()
    fakes.broken.update(range(fakes.num_frames))
    with pytest.raises(DamagedFrameError) as caught:
        load_plans(source, on_corrupt="substitute")
    assert "the next videos in its place are damaged, too (at most 16 are tried)" in caught.value.__notes__


def test_substitutes_are_other_videos_even_where_an_order_stays_with_one_for_long():
    fakes = FakeSet([FakeVideo(f"v{n}", num_frames=20) for n in range(7)])
    source = make_source(fakes, pooled=Pooled(videos=1, uses=100, streams=1), steps=50)
    plan = source.plan(3)
    assert sorted([plan.video, *(other.video for other in source.substitutes(3))]) == list(range(7))


def test_a_missing_shard_is_no_damage_to_be_replaced(root, tmp_path):
    copy = build_set(write_tree(tmp_path / "tree", {"a": label_maps(9, (1,), 1)}), tmp_path).root
    with ShardSet.open(copy) as shard_set:
        next(copy.glob("*.tar")).unlink()
        with pytest.raises(ValueError, match="expected the shard that was there"):
            load_plans(make_source(shard_set), on_corrupt="substitute")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_pooled_order_shows_each_video_as_often_and_a_few_at_a_time(data):
    streams = data.draw(st.integers(1, 4), "streams")
    uses, per_stream = data.draw(st.integers(1, 5), "uses"), data.draw(st.integers(1, 3), "per stream")
    count, share = data.draw(st.integers(streams, 17), "videos"), data.draw(st.integers(1, 3), "clips of a stream")
    fakes = FakeSet([FakeVideo(f"v{n}", num_frames=20) for n in range(count)])
    pooled = Pooled(streams * per_stream, uses, streams)
    batch_size = streams * share
    source = make_source(fakes, pooled=pooled, steps=200, batch_size=batch_size)
    seen: dict[int, list[int]] = {stream: [] for stream in range(streams)}
    for number in range(200 * batch_size):
        pick = source.mix.pick(source.key, number)
        seen[number % batch_size // share].append(pick.video)
    assert sorted(video for videos in seen.values() for video in set(videos)) == list(range(count))  # no video in two
    for videos in seen.values():
        own = len(set(videos))
        for start in range(0, len(videos) - own * uses + 1, own * uses):  # whole passes
            one_pass = videos[start : start + own * uses]
            assert all(one_pass.count(video) == uses for video in set(one_pass))
            for pool in range(0, own, per_stream):
                clips = one_pass[pool * uses : (pool + per_stream) * uses]
                assert len(set(clips)) == min(per_stream, own - pool)


def test_a_pooled_order_lets_a_small_pool_read_each_video_once(shard_set):
    pooled = Pooled(videos=2, uses=6, streams=2)
    source = make_source(shard_set, pooled=pooled, steps=21, batch_size=4)
    largest = max(video_range(shard_set, video)[1] for video in range(7))
    reading = ReadPlan("resident", pool_bytes=2 * largest)
    whole, _ = load_plans(source)
    for rank in range(2):
        plans, loader = load_plans(source, rank=rank, world_size=2, reading=reading)
        videos = [plan.video for plan in plans]
        visits = 1 + sum(before != after for before, after in pairwise(videos))
        assert len(set(videos)) <= loader.statistics.requests <= visits == 7
        assert [plan.number for plan in plans] == [p.number for p in whole if p.number % 4 // 2 == rank]


@pytest.mark.parametrize(
    ("pooled", "batch_size", "message"),
    [
        ((4, 2, 3), 4, "batch_size 4 does not divide among 3 streams"),
        ((9, 2, 8), 8, "7 videos cannot be divided among 8 streams of the pooled order; use at most 7"),
        ((1, 2, 2), 4, "a video for each stream"),
        ((0, 2, 1), 4, "at least 1"),
    ],
)
def test_pools_that_cannot_be_are_refused(pooled, batch_size, message):
    fakes = FakeSet([FakeVideo(f"v{n}", num_frames=20) for n in range(7)])
    with pytest.raises(ValueError, match=message):
        make_source(fakes, pooled=Pooled(*pooled), batch_size=batch_size)  # not first where its first clip is drawn


@pytest.mark.parametrize("arguments", [{"name": "whole"}, {"name": "span", "max_gap": -1}])
def test_read_plans_that_are_none_are_refused(arguments):
    with pytest.raises(ValueError, match=r"frame, span, resident|at least 0"):
        ReadPlan(**arguments)


FRAME_BYTES = 3_000_000
"""Of a video of 4K, on average; up to half as much again."""


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 12 frames of 4K; zeros that take no disk."""
    facts = SparseSet(num_videos=8, num_frames=12, image_bytes=FRAME_BYTES, mask_bytes=20_000)
    return write_sparse_set(tmp_path_factory.mktemp("huge"), facts)


@pytest.mark.parametrize(("name", "pool_bytes"), [("frame", 0), ("span", 0), ("resident", 110_000_000)])
def test_memory_stays_within_what_the_options_allow(huge, name, pool_bytes):
    threads, look_ahead, batch_size, max_gap = 3, 2, 2, 4_000_000
    with ShardSet.open(huge) as shard_set:
        recipe = make_recipe("rde_video", {"size": 32, "num_frames": 3, "max_gap": [[0, 4]]})
        source = ClipSource([MixEntry(shard_set, "train")], recipe, seed=1, steps=12, batch_size=batch_size)
        videos = [video_range(shard_set, video)[1] for video in range(8)]
        assert all(30_000_000 < num_bytes < 55_000_000 for num_bytes in videos)
        tracemalloc.start()
        try:
            load_plans(source, threads=threads, look_ahead=look_ahead, reading=ReadPlan(name, max_gap, pool_bytes))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    clip = 3 * 1.5 * FRAME_BYTES
    encoded = (look_ahead + 1) * batch_size * clip  # and those of the batch that is being made
    read = threads * (clip + (2 * max_gap if name == "span" else 0))  # before its frames are cut out of it
    assert 2 * clip < peak < encoded + read + pool_bytes + 5_000_000
