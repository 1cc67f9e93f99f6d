"""The config says where data lies and how it is read; a run from a URL with damage in it trains on and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.order.pooled import Pooled
from pipelines.reading.clip_reader import NEIGHBOUR_GAP, WHOLE_SPAN
from shards.byte_cache import LEAST_BYTES, ByteCache
from shards.errors import DataError
from shards.reader import ShardSet
from shards.shard_files import open_shard_for_clips
from shards.storage.paths import RemotePath
from tests.pipelines.fake_set import FakeSet, FakeVideo
from tests.pipelines.test_reading import make_source
from tests.servers import range_server
from tests.trainers.small_runs import build_shards, plain_config
from trainers.config import ConfigError, as_plain, make_config
from trainers.reading_options import CacheOptions, ReadingOptions
from trainers.records.journal import read_journal
from trainers.running.training import train


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tmp_path_factory.mktemp("shards"), num_frames=9)


def test_places_may_be_urls_and_come_back_from_a_checkpoint_as_they_were(tmp_path):
    values = plain_config(Path("s3://bucket/sets/davis2017"), tmp_path)
    values["stages"][0]["data"] = [{"path": "s3://bucket/davis2017/"}, {"path": "data/davis2017"}]
    config = make_config(values, source="test")
    first, second = (entry.path for entry in config.stages[0].data)
    assert (first, second) == (RemotePath("s3://bucket/davis2017"), Path("data/davis2017"))
    plain = json.loads(json.dumps(as_plain(config)))
    assert [entry["path"] for entry in plain["stages"][0]["data"]] == ["s3://bucket/davis2017", "data/davis2017"]
    assert as_plain(make_config(plain, source="again")) == plain


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"plan": "whole"}, r"reading\.plan: 'whole' does not fit"),
        ({"on_corrupt": "skip"}, r"reading\.on_corrupt: 'skip' does not fit"),
        ({"thread": 4}, r"reading\.thread: unknown key; did you mean 'threads'"),
        ({"latency_ms": 3}, "reading: latency_ms and bandwidth_mb go together; give both or neither"),
        ({"cache": {"folder": "here"}}, r"reading\.cache\.size: missing"),
        ({"cache": {"folder": "here", "size": "1MB"}}, r"reading\.cache\.size: .* does not fit"),
        ({"cache": {"folder": "here", "size": "much"}}, "'much' is no size; write 1GB"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(tmp_path, reading, message):
    with pytest.raises(ConfigError, match=message):
        make_config(plain_config(tmp_path, tmp_path, reading=reading), source="test")


def test_a_place_that_is_none_is_refused(tmp_path):
    values = plain_config(tmp_path, tmp_path)
    values["stages"][0]["data"] = [{"path": 5}]
    with pytest.raises(ConfigError, match=r"stages\.0\.data\.0\.path: 5 is no place; write a folder or a URL"):
        make_config(values, source="test")


def test_a_pooled_order_is_part_of_a_stage(tmp_path):
    values = plain_config(tmp_path, tmp_path)
    values["stages"][0]["pooled"] = {"videos": 8, "uses": 4, "streams": 2}
    config = make_config(values, source="test")
    assert config.stages[0].pooled is not None and config.stages[0].pooled.order() == Pooled(8, 4, 2)
    values["stages"][0]["pooled"]["streams"] = 9
    with pytest.raises(ConfigError, match="a video for each stream, got 8 for 9"):
        make_config(values, source="test")
    values["stages"][0] |= {"pooled": {"videos": 8, "uses": 4, "streams": 3}, "batch_size": 4}
    with pytest.raises(ConfigError, match=r"stages\.0: batch_size 4 does not divide among 3 streams of pooled; give"):
        make_config(values, source="test")


def test_options_become_openers_and_plans(tmp_path):
    source = make_source(FakeSet([FakeVideo(f"v{n}", num_frames=20) for n in range(5)]))
    assert ReadingOptions().opener() is open_shard_for_clips
    cache = ReadingOptions(cache=CacheOptions(tmp_path, "20MB")).opener()
    assert cache == ByteCache(tmp_path, 20_000_000)
    given = {"latency_ms": 100, "bandwidth_mb": 50}
    assert ReadingOptions(plan="frame").reading(source, range(4)).name == "frame"
    resident = ReadingOptions(plan="resident", memory="5GB").reading(source, range(4))
    assert (resident.pool_bytes, resident.gap) == (5 * 10**9, NEIGHBOUR_GAP)  # videos that do not fit: frame by frame
    assert ReadingOptions(plan="span", **given).reading(source, range(4)).max_gap == 5_000_000 < WHOLE_SPAN
    chosen = ReadingOptions(memory=1, **given).reading(source, range(4))
    assert chosen.name == "span"


def test_a_run_from_a_url_replaces_what_is_damaged_names_it_in_the_journal_or_stops(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("VOSFORGE_CACHE", str(tmp_path / "index"))
    with ShardSet.open(shards) as shard_set:
        row = shard_set.video_row("one")
        extents = [shard_set.extent(frame) for frame in shard_set.frame_rows(row)]
    (tar,) = shards.glob("*.tar")
    whole, data = tar.read_bytes(), bytearray(tar.read_bytes())
    for extent in extents:
        data[extent.start + 40] ^= 1
    tar.write_bytes(data)
    try:
        with range_server(shards.parent) as server:
            reading = {"on_corrupt": "substitute", "cache": {"folder": str(tmp_path / "c"), "size": LEAST_BYTES}}
            values = plain_config(f"{server.url}/{shards.name}", tmp_path / "run", reading=reading)
            values["stages"][0]["steps"] = 2
            train(make_config(values, source="test"))
            with pytest.raises(DataError, match=rf"{tar.name}, video one, frame 0000\d: .*CRC-32 differs"):
                train(make_config(values | {"reading": {}, "output": str(tmp_path / "other")}, source="test"))
    finally:
        tar.write_bytes(whole)
    record = next(record for record in read_journal(tmp_path / "run") if record["kind"] == "data")
    assert record["clips"] == 4 and record["bytes_read"] >= record["bytes_used"] > 0 and record["requests"] > 0
    assert record["retries"] >= len(record["substitutes"])  # a damaged answer is asked for once more
    assert record["substitutes"] and len(record["substitutes"]) <= 4
    for substitute in record["substitutes"]:
        assert "video one" in substitute["found"] and "video two" in substitute["shown"]
        assert substitute["shown"].startswith(f"clip {substitute['number']} (step")
