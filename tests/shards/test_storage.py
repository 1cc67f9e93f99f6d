"""Sets and sources in a store, over the wire: a real S3 protocol against a server of this machine."""

from __future__ import annotations

import functools
import http.server
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.building.build import Part, build, build_part, finish_build, read_listing, silent
from shards.building.plan import BuildRequest, make_plan
from shards.check import check_set
from shards.errors import DataError
from shards.reader import ShardSet
from shards.sets.compose import merge_sets, write_subset
from shards.storage import paths
from shards.storage.paths import RemotePath, list_folder, locate, replacing
from shards.storage.systems import forget_systems
from tests.shards.small_tree import build_set, files_of

moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")


@pytest.fixture(scope="module")
def bucket() -> Iterator[RemotePath]:
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        forget_systems()
        boto3.client("s3").create_bucket(Bucket="video")
        yield RemotePath("s3://video")
        forget_systems()
    server.stop()


@pytest.fixture
def place(bucket, request, tmp_path, monkeypatch) -> RemotePath:
    """A folder of the bucket for one test."""
    monkeypatch.setenv("VOSFORGE_CACHE", str(tmp_path / "cache"))
    return bucket / request.node.name


def upload(root: Path, target: RemotePath) -> RemotePath:
    for name, data in files_of(root).items():
        paths.write_bytes(target / name, data)
    return target


def objects_of(folder: RemotePath) -> dict[str, bytes]:
    client = boto3.client("s3")
    prefix = folder.url.removeprefix("s3://video/") + "/"
    listed = client.list_objects_v2(Bucket="video", Prefix=prefix).get("Contents", ())
    return {
        each["Key"].removeprefix(prefix): client.get_object(Bucket="video", Key=each["Key"])["Body"].read()
        for each in listed
    }


def test_a_set_built_into_a_store_from_a_store_is_the_same_bytes(tree, tmp_path, place):
    local = build_set(tree, tmp_path / "out", shard_size=20_000).root
    source = upload(tree, place / "DAVIS")
    result = build_set(source, place / "out", shard_size=20_000)
    assert result.root == place / "out" / "davis2017"
    assert objects_of(result.root) == files_of(local)
    assert build_set(source, place / "out", shard_size=20_000).already_there


def test_parts_meet_in_a_store(tree, tmp_path, place):
    local = build_set(tree, tmp_path / "out", shard_size=20_000).root
    request = BuildRequest("davis2017", (tree,), place, shard_size=20_000)
    for number in (2, 1):
        build_part(request, make_plan(request, read_listing(request)), silent, Part(number, 2))
    finish_build(request, make_plan(request, read_listing(request)))
    assert objects_of(request.root) == files_of(local)


def test_a_remote_set_reads_like_its_local_copy(tree, tmp_path, place):
    local = build_set(tree, tmp_path / "out", shard_size=20_000).root
    remote = upload(local, place / "davis2017")
    with ShardSet.open(local) as here, ShardSet.open(str(remote)) as there:
        rows = range(here.num_frames)
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(there.read, rows)) == [here.read(row) for row in rows]
        assert there.fingerprint == here.fingerprint and there.locate(3) == here.locate(3)
        again = pickle.loads(pickle.dumps(there))
        assert again.read(5) == here.read(5)
        assert sorted(path.name for path in (tmp_path / "cache").rglob("*.arrow")) == [
            "frames.arrow", "objects.arrow", "videos.arrow"
        ]  # fmt: skip


def test_a_changed_remote_shard_is_found_when_opened_read_and_checked(tree, tmp_path, place):
    local = build_set(tree, tmp_path / "out").root
    remote = upload(local, place / "davis2017")
    assert check_set(remote, 1, lambda facts: None).problems == ()
    tar = bytearray((local / "davis2017-000000.tar").read_bytes())
    with ShardSet.open(remote) as shard_set:
        tar[tar.index(shard_set.read(0).image) + 100] ^= 1
        paths.write_bytes(remote / "davis2017-000000.tar", bytes(tar))
        with pytest.raises(DataError, match=r"s3://video/.*davis2017-000000\.tar, video bear, frame 00000.*CRC-32"):
            shard_set.read(0)
    assert check_set(remote, 1, lambda facts: None).problems
    paths.write_bytes(remote / "davis2017-000000.tar", bytes(tar[:-512]))
    with pytest.raises(DataError, match=rf"expected a shard of {len(tar)} bytes, found {len(tar) - 512} bytes"):
        ShardSet.open(remote)


def test_views_and_unions_of_remote_sets_refer_to_them(tree, tmp_path, place):
    local = build_set(tree, tmp_path / "out", shard_size=20_000).root
    remote = upload(local, place / "davis2017")
    write_subset(remote, tmp_path / "view", ["dance"])
    write_subset(remote, place / "others", ["bear", "fox"])
    merge_sets([tmp_path / "view", place / "others"], tmp_path / "both")
    with ShardSet.open(local) as whole, ShardSet.open(tmp_path / "both") as both:
        assert list(both.videos.original_names) == ["dance", "bear", "fox"]
        for row in range(both.num_videos):
            name = both.videos.original_names[row]
            expected = [whole.read(frame) for frame in whole.frame_rows(whole.video_row(name))]
            assert [both.read(frame) for frame in both.frame_rows(row)] == expected
    with pytest.raises(ValueError, match="a set in a store refers to sets in stores"):
        write_subset(local, place / "impossible", ["bear"])


def test_a_failed_upload_shows_nothing(place):
    with pytest.raises(OSError, match="half way"), replacing(place / "torso") as file:
        file.write(bytes(40_000_000))
        raise OSError("half way")
    assert objects_of(place) == {} and not (place / "torso").exists()
    with replacing(place / "whole") as file:
        for _ in range(3):
            file.write(bytes(12_000_000))
        assert not (place / "whole").is_file()
    assert paths.file_size(place / "whole") == 36_000_000


def test_folders_of_a_store_list_like_local_ones(tree, tmp_path, place):
    remote = upload(tree, place)
    for folder in ("", "JPEGImages/480p", "JPEGImages/480p/bear", "ImageSets/2017", "no such folder"):
        assert list_folder(remote / folder) == list_folder(tree / folder)
    assert list_folder(remote / "ImageSets/2017/train.txt") == []


def test_a_set_is_read_from_a_web_server(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("VOSFORGE_CACHE", str(tmp_path / "cache"))
    local = build_set(tree, tmp_path / "out", shard_size=20_000).root
    handler = functools.partial(_RangeHandler, directory=str(tmp_path / "out"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/davis2017"
        with ShardSet.open(local) as here, ShardSet.open(url) as there:
            assert [there.read(row) for row in (0, 7, 21)] == [here.read(row) for row in (0, 7, 21)]
        with pytest.raises(DataError, match="expected the manifest of a finished shard set"):
            ShardSet.open(f"{url}/nothing")
        server.shutdown()


class _RangeHandler(http.server.SimpleHTTPRequestHandler):
    """What web servers do and Python's own does not: answer ranges."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        total = len(data)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            data = data[int(first) : int(last or total) + 1]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{total}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


def test_what_people_write_becomes_a_path_or_a_url():
    assert locate("s3://b/k/") == RemotePath("s3://b/k") and locate("data/davis") == Path("data/davis")
    assert locate("file:///data/davis") == Path("/data/davis") == locate(Path("/data/davis"))
    folder = RemotePath("s3://b/k")
    assert folder / "a/b" == folder.joinpath("a", "b") and (folder / "x.tar").stem == "x"
    assert (folder / "a" / "b").relative_to(folder).as_posix() == "a/b" and (folder / "a").parent == folder
    with pytest.raises(ValueError, match="is not below"):
        RemotePath("s3://b/kk").relative_to(folder)


def test_an_unknown_protocol_says_what_to_install():
    with pytest.raises(DataError, match=r"nfs5://: expected a protocol that is installed.*vosforge\[s3\]"):
        ShardSet.open("nfs5://host/set")


def test_a_local_file_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"before")
    with pytest.raises(OSError, match="half way") as caught, replacing(tmp_path / "file") as file:
        file.write(b"torso")
        raise OSError("half way")
    assert caught.value.__notes__ == [f"while writing {tmp_path / 'file'}"]
    assert files_of(tmp_path) == {"file": b"before"}


def test_a_build_into_a_store_can_be_killed_and_goes_on(tree, tmp_path, place, monkeypatch):
    request = BuildRequest("davis2017", (tree,), place, shard_size=20_000)
    plan = make_plan(request)
    reports: list[object] = []

    def stop_after_three(progress: object) -> None:
        reports.append(progress)
        if len(reports) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(request, plan, stop_after_three)
    assert "manifest.json" not in objects_of(request.root)
    with pytest.raises(DataError, match="run it again to finish"):
        ShardSet.open(request.root)
    build(request, plan, silent)
    assert objects_of(request.root) == files_of(build_set(tree, tmp_path / "out", shard_size=20_000).root)
