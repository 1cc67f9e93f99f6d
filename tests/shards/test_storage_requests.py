"""What goes wrong between here and a server: asked again and counted, or one message that says what to do; no hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.reader import DamagedFrameError, ShardSet
from shards.storage import requests, systems
from shards.storage.paths import RemotePath, file_size, read_ranges
from shards.storage.requests import WaitingEndedError, retries_so_far, stop_waiting_when
from shards.storage.systems import forget_systems
from tests.servers import DRIP, SHORT, TORN, Answer, RangeServer, range_server
from tests.shards.small_tree import build_set, label_maps, write_tree


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set."""
    out = tmp_path_factory.mktemp("sets")
    return build_set(write_tree(out / "tree", {"bear": label_maps(6, (1, 2), seed=0)}), out).root


@pytest.fixture
def server(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    """Serves the set; whoever reads from it is in a hurry."""
    monkeypatch.setenv("VOSFORGE_CACHE", str(tmp_path / "index"))
    monkeypatch.setattr(requests, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(requests, "_GLANCE", 0.02)
    with range_server(local.parent) as server:
        yield server


def shorten_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (requests, systems):
        monkeypatch.setattr(module, "SILENCE_SECONDS", 0.4)
    forget_systems()


@pytest.fixture
def far(server: RangeServer) -> Iterator[ShardSet]:
    """The set as it is seen through the server."""
    with ShardSet.open(f"{server.url}/davis2017") as shard_set:
        yield shard_set


@pytest.fixture(scope="module")
def frames(local: Path) -> list[object]:
    with ShardSet.open(local) as shard_set:
        return [shard_set.read(row) for row in range(shard_set.num_frames)]


@pytest.mark.parametrize(
    ("failures", "retries"),
    [([503], 1), ([500, 502], 2), ([429], 1), ([408], 1), ([TORN], 1), ([TORN, 503], 2), ([0, 0], 1)],
    ids=str,  # aiohttp itself asks again, once, where a connection that was kept open had been closed
)
def test_what_may_pass_is_asked_again_and_counted(server, far, frames, failures, retries):
    server.failures[:] = failures
    before = retries_so_far()
    assert far.read(3) == frames[3]
    assert server.failures == [] and retries_so_far() - before == retries


def test_silence_is_asked_again(server, far, frames, monkeypatch):
    shorten_silence(monkeypatch)
    server.failures[:] = [-1]
    before = retries_so_far()
    assert far.read(3) == frames[3] and retries_so_far() > before
    forget_systems()


def test_only_the_ranges_that_failed_are_asked_for_again(server, far):
    path = RemotePath(f"{server.url}/davis2017/davis2017-000000.tar")
    ranges = [(1000 * n, 500) for n in range(20)]
    whole, asked = read_ranges(path, ranges), server.asked
    server.failures[:] = [503] * 7
    assert read_ranges(path, ranges) == whole
    assert server.asked - asked == 20 + 7


@pytest.mark.parametrize("as_date", [False, True])
def test_a_server_that_says_when_to_come_back_is_not_asked_before(server, far, frames, as_date, monkeypatch):
    pauses: list[float] = []

    class Ended:
        def is_set(self):
            return False

        def wait(self, seconds):
            pauses.append(seconds)

    value = format_datetime(datetime.now(UTC) + timedelta(seconds=41)) if as_date else "40"
    server.failures[:] = [Answer(429, {"Retry-After": value}), Answer(503, {"Retry-After": "soon"})]

    def read():
        stop_waiting_when(Ended())
        return far.read(2)

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(read).result() == frames[2]
    assert 38 < pauses[0] < 42 and pauses[1] < 1


def test_a_server_that_wants_too_long_a_wait_is_given_up_at_once(server, far):
    server.failures[:] = [Answer(503, {"Retry-After": "3600"})] * 2
    with pytest.raises(ConnectionError, match=r"cannot be read: 503 .*it asks to wait for 3600 s; see that the server"):
        far.read(0)
    assert len(server.failures) == 1


def test_what_does_not_pass_ends_after_a_while_in_one_error_that_says_what_to_do(server, far, monkeypatch):
    monkeypatch.setattr(requests, "PATIENCE_SECONDS", 0.2)
    server.failures[:] = [503] * 1000
    words = (
        r"davis2017-000000\.tar: cannot be read: 503 Service Unavailable, tried \d+ times in 0 s; .*training goes on"
    )
    with pytest.raises(ConnectionError, match=words):
        far.read(0)
    assert 1 < 1000 - len(server.failures) < 20


@pytest.mark.parametrize("status", [401, 403])
def test_refusal_is_told_at_once_with_what_to_do_about_credentials(server, far, status):
    server.failures[:] = [status] * 2
    with pytest.raises(
        PermissionError, match=rf"000\.tar: the server refuses it \({status} .*credentials.*expired.*--resume"
    ):
        far.read(0)
    assert len(server.failures) == 1


@pytest.mark.parametrize("status", [400, 405, 418])
def test_other_answers_are_told_at_once(server, far, status):
    server.failures[:] = [status] * 2
    with pytest.raises(ConnectionError, match=rf"cannot be read: {status} "):
        far.read(0)
    assert len(server.failures) == 1


def test_a_shard_that_went_away_is_told_at_once(server, far):
    server.failures[:] = [404] * 2
    with pytest.raises(FileNotFoundError, match=r"000\.tar: not found; bring it back"):
        far.read(0)
    assert len(server.failures) == 1


def test_redirects_are_followed_and_circles_are_not(server, far, frames):
    shard = "/davis2017/davis2017-000000.tar"
    (server.root / "elsewhere").write_bytes((server.root / shard[1:]).read_bytes())
    server.moved[shard] = f"{server.url}/elsewhere"
    assert far.read(1) == frames[1]
    server.moved[shard] = shard
    with pytest.raises(ConnectionError, match="cannot be read: TooManyRedirects"):
        far.read(1)


def test_a_server_that_knows_no_ranges_is_told_from_damage(server, far):
    server.ranges = False
    with pytest.raises(DataError, match=r"bytes of it, as asked for .*\(status 200\); serve it by .* nginx") as caught:
        far.read(0)
    assert not isinstance(caught.value, DamagedFrameError)


def test_a_shard_cut_short_is_damage_of_the_frames_behind_the_cut(server, far, frames, local):
    path = local / "davis2017-000000.tar"
    whole, extent = path.read_bytes(), far.extent(4)
    try:
        for left, found in ((extent.start + 50, "50 bytes"), (extent.start - 700, "0 bytes")):
            path.write_bytes(whole[:left])
            assert far.read(3) == frames[3]
            with pytest.raises(
                DamagedFrameError, match=rf"000\.tar, video bear, frame 00004: .*found {found}; run tools"
            ):
                far.read(4)
            with pytest.raises(DamagedFrameError, match=r"frame 00005: .*found 0 bytes"):
                far.read(5)
    finally:
        path.write_bytes(whole)


def test_half_an_answer_is_asked_for_again_and_counted(server, far, frames):
    server.failures[:] = [SHORT]
    before = retries_so_far()
    assert far.read(3) == frames[3]
    assert retries_so_far() - before == 1


def test_a_shard_replaced_during_a_run_is_damage_that_says_so(server, far, local):
    path = local / "davis2017-000000.tar"
    whole = path.read_bytes()
    try:
        path.write_bytes(bytes(len(whole)))
        words = r"000\.tar, video bear, frame 00002: .*CRC-32.*; run tools/check\.py http.*if the set was replaced"
        with pytest.raises(DamagedFrameError, match=words):
            far.read(2)
    finally:
        path.write_bytes(whole)


def test_an_answer_that_drips_does_not_go_on_for_ever(server, far, monkeypatch):
    monkeypatch.setattr(requests, "PATIENCE_SECONDS", 0.3)
    shorten_silence(monkeypatch)
    server.failures[:] = [DRIP] * 100
    begun = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no whole answer within 0 s"):
        far.read(0)
    assert time.monotonic() - begun < 20  # the drip would take minutes
    forget_systems()


def test_who_waits_in_vain_can_be_told_to_stop(server, far, monkeypatch):
    monkeypatch.setattr(requests, "SILENCE_SECONDS", 1000.0)
    ended, waiting = threading.Event(), threading.Event()

    def read():
        stop_waiting_when(ended)
        waiting.set()
        return far.read(0)

    server.failures[:] = [-1, -1, -1]
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(read)
        assert waiting.wait(20)
        ended.set()
        with pytest.raises(WaitingEndedError):
            answer.result(20)


@pytest.mark.parametrize(("status", "kind"), [(503, ConnectionError), (403, PermissionError)])
def test_a_server_that_is_down_is_not_taken_for_an_empty_one(server, monkeypatch, status, kind):
    monkeypatch.setattr(requests, "PATIENCE_SECONDS", 0.01)
    server.failures[:] = [status] * 50
    with pytest.raises(kind, match=f"manifest.json: .*{status}"):
        ShardSet.open(f"{server.url}/davis2017")
    server.failures.clear()
    with pytest.raises(DataError, match=r"expected the manifest of a finished shard set.*give the URL"):
        ShardSet.open(f"{server.url}/nothing")


def test_a_restart_while_the_index_is_copied_is_survived(server, frames):
    server.failures[:] = [503, 503, 0, TORN, 502, TORN]
    with ShardSet.open(f"{server.url}/davis2017") as shard_set:
        assert shard_set.read(0) == frames[0]
    assert server.failures == []


def test_sizes_over_http_are_told_by_one_byte(server, local):
    place = RemotePath(f"{server.url}/davis2017")
    (local / "empty").write_bytes(b"")
    try:
        assert file_size(place / "empty") == 0 and file_size(place / "none") is None
    finally:
        (local / "empty").unlink()
    assert file_size(place / "manifest.json") == (local / "manifest.json").stat().st_size
    server.failures[:] = [Answer(206, {"Content-Range": "bytes 0-0/*"})]
    with pytest.raises(DataError, match=r"manifest.json: expected an answer with the file's size, found status 206"):
        file_size(place / "manifest.json")
    server.ranges = False
    assert file_size(place / "manifest.json") == (local / "manifest.json").stat().st_size


EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
CUT = b"<Error><Code>InvalidRange</Code><Message>not satisfiable</Message></Error>"


@pytest.fixture
def object_in_a_bucket(server, monkeypatch):
    """Our server answers as S3 would: a bucket is a folder, an object a file in it."""
    pytest.importorskip("s3fs")
    names = ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "DEFAULT_REGION")
    for name, value in zip(names, (server.url, "key", "secret", "us-east-1"), strict=True):
        monkeypatch.setenv(f"AWS_{name}", value)
    forget_systems()
    yield RemotePath("s3://davis2017/davis2017-000000.tar")
    forget_systems()


@pytest.mark.parametrize(
    ("failures", "retries"), [([503], 1), ([Answer(503, body=SLOW_DOWN)] * 3, 3), ([TORN], 1), ([500, TORN, 429], 3)]
)
def test_a_store_is_asked_again_and_counted_by_us_alone(server, object_in_a_bucket, local, failures, retries):
    data = (local / "davis2017-000000.tar").read_bytes()
    assert read_ranges(object_in_a_bucket, [(5, 100)]) == [data[5:105]]
    server.failures[:] = failures
    before, asked = retries_so_far(), server.asked
    assert read_ranges(object_in_a_bucket, [(700, 100)]) == [data[700:800]]
    assert (server.failures, retries_so_far() - before, server.asked - asked) == ([], retries, retries + 1)


@pytest.mark.parametrize("answer", [Answer(403), Answer(400, body=EXPIRED)])
def test_credentials_of_a_store_that_expired_are_told_at_once(server, object_in_a_bucket, answer):
    server.failures[:] = [answer] * 2
    with pytest.raises(PermissionError, match=r"s3://davis2017/.*000\.tar: the server refuses it .*AWS_SESSION_TOKEN"):
        read_ranges(object_in_a_bucket, [(0, 10)])
    assert len(server.failures) == 1


def test_a_range_behind_the_end_of_an_object_is_empty(server, object_in_a_bucket):
    server.failures[:] = [Answer(416, body=CUT)]
    assert read_ranges(object_in_a_bucket, [(1 << 40, 10)]) == [b""]
