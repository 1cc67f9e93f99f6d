"""What a second run of the same command takes over from the first: finished shards of the same files, nothing else."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shards import locks
from shards.building import build as building
from shards.building import jobs
from shards.building.build import WORK_FOLDER, Part, build, build_part, finish_build, read_listing, silent
from shards.building.plan import BuildRequest, make_plan
from shards.errors import DataError
from shards.findings import read_findings
from shards.locks import hold_build, hold_worker
from shards.reader import ShardSet
from tests.shards.other_trees import write_bl30k
from tests.shards.small_tree import build_kind, build_set, files_of, label_maps, write_tree
from tests.shards.test_bl30k import write_tar

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", {f"v{n}": label_maps(3, (1, 2), seed=n) for n in range(6)})


@pytest.fixture
def converted(monkeypatch) -> list[str]:
    """Names of the videos that are converted, in order."""
    names = []
    convert = jobs.convert_video
    monkeypatch.setattr(jobs, "convert_video", lambda video, *rest: names.append(video.name) or convert(video, *rest))
    return names


def cut(path: Path) -> bytes:
    """Halve a file; returns what it held."""
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    return good


def test_a_mended_file_is_taken_by_the_same_command(many, tmp_path, converted):
    whole = files_of(build_set(many, tmp_path / "whole", shard_size=10_000).root)
    bad = many / "JPEGImages/480p/v4/00001.jpg"
    good = cut(bad)
    with pytest.raises(DataError, match=r"v4/00001\.jpg: expected a JPEG with every pixel"):
        build_set(many, tmp_path / "out", shard_size=10_000)
    bad.write_bytes(good)
    converted.clear()
    assert files_of(build_set(many, tmp_path / "out", shard_size=10_000).root) == whole
    assert converted == ["v4", "v5"]


def test_masks_exchanged_between_two_runs_are_noticed(many, tmp_path, converted, caplog):
    bad = many / "JPEGImages/480p/v4/00001.jpg"
    good = cut(bad)
    with pytest.raises(DataError):
        build_set(many, tmp_path / "out", shard_size=10_000)
    bad.write_bytes(good)
    first, second = (many / f"Annotations/480p/v1/0000{n}.png" for n in (1, 2))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    converted.clear()
    caplog.set_level(logging.INFO)
    root = build_set(many, tmp_path / "out", shard_size=10_000).root
    assert converted == ["v1", "v4", "v5"] and "1 finished shards are made again" in caplog.text
    assert files_of(root) == files_of(build_set(many, tmp_path / "whole", shard_size=10_000).root)


def test_a_source_that_now_fills_fewer_shards_leaves_none_behind(many, tmp_path):
    bad = many / "JPEGImages/480p/v5/00002.jpg"
    for frame in range(3):  # so large that each of these videos fills a shard
        for video in range(6):
            path = many / f"JPEGImages/480p/v{video}/0000{frame}.jpg"
            path.write_bytes(path.read_bytes() + b"x" * 8000)
    good = bad.read_bytes()
    bad.write_bytes(b"")
    with pytest.raises(DataError):
        build_set(many, tmp_path / "out", shard_size=30_000)
    assert len(list(tmp_path.glob("out/*/*.tar"))) == 5
    bad.write_bytes(good)
    for path in many.rglob("*.jpg"):
        path.write_bytes(path.read_bytes().removesuffix(b"x" * 8000))
    whole = files_of(build_set(many, tmp_path / "whole", shard_size=30_000).root)
    assert sum(name.endswith(".tar") for name in whole) < 5
    assert files_of(build_set(many, tmp_path / "out", shard_size=30_000).root) == whole


def test_a_list_that_puts_a_video_into_another_split_is_noticed(many, tmp_path, converted):
    good = cut(many / "JPEGImages/480p/v5/00001.jpg")
    with pytest.raises(DataError):
        build_set(many, tmp_path / "out", shard_size=10_000)
    (many / "JPEGImages/480p/v5/00001.jpg").write_bytes(good)
    (many / "ImageSets/2017/val.txt").write_text("v2\n")
    converted.clear()
    manifest = build_set(many, tmp_path / "out", shard_size=10_000).manifest
    assert converted == ["v2", "v5"] and manifest.splits == {"train": 6, "val": 1}


def test_a_tar_of_the_source_that_was_replaced_is_noticed(tmp_path, converted):
    folder = write_bl30k(tmp_path / "BL30K", {f"kea{n}": label_maps(3, (1,), seed=n) for n in range(3)})
    bad = folder / "JPEGImages/kea2/00001.jpg"
    good = cut(bad)
    tar = write_tar(tmp_path / "a.tar", files_of(folder).items())
    with pytest.raises(DataError, match="kea2"):
        build_kind("bl30k", [tar], tmp_path / "out", shard_size=10_000)
    bad.write_bytes(good)
    write_tar(tar, files_of(folder).items())
    converted.clear()
    root = build_kind("bl30k", [tar], tmp_path / "out", shard_size=10_000).root
    assert converted == ["kea0", "kea1", "kea2"]
    assert files_of(root) == files_of(build_kind("bl30k", [tar], tmp_path / "whole", shard_size=10_000).root)


def test_a_part_run_again_makes_changed_files_again(many, tmp_path, converted):
    request = BuildRequest("davis2017", (many,), tmp_path / "out", shard_size=10_000)
    build_part(request, make_plan(request), silent, Part(1, 2))
    mask = many / "Annotations/480p/v2/00001.png"
    mask.write_bytes((many / "Annotations/480p/v2/00002.png").read_bytes())
    converted.clear()
    build_part(request, make_plan(request, read_listing(request)), silent, Part(1, 2))
    assert converted == ["v2"]


def test_parts_of_another_source_are_refused(many, tmp_path):
    request = BuildRequest("davis2017", (many,), tmp_path / "out", shard_size=10_000)
    build_part(request, make_plan(request), silent, Part(1, 2))
    other = write_tree(tmp_path / "other", {"w": label_maps(3, (1,))})
    request = BuildRequest("davis2017", (other,), tmp_path / "out", shard_size=10_000)
    with pytest.raises(DataError, match="parts of a build whose source was another one"):
        build_part(request, make_plan(request), silent, Part(1, 2))


def test_a_shard_made_with_a_video_left_out_is_made_again_where_that_must_stop(many, tmp_path, converted):
    good = cut(many / "JPEGImages/480p/v1/00001.jpg")
    request = BuildRequest("davis2017", (many,), tmp_path / "out", shard_size=10_000, on_bad="skip")
    build_part(request, make_plan(request), silent, Part(1, 1))
    converted.clear()
    with pytest.raises(DataError, match=r"v1/00001\.jpg: expected a JPEG"):
        build_set(many, tmp_path / "out", shard_size=10_000)
    assert converted == ["v1"]
    stopping = BuildRequest("davis2017", (many,), tmp_path / "out", shard_size=10_000)
    build_part(request, make_plan(request), silent, Part(1, 1))
    with pytest.raises(DataError, match=r"v1/00001\.jpg: expected a JPEG"):
        finish_build(stopping, make_plan(stopping))
    assert finish_build(request, make_plan(request)).manifest.refused == 1
    with pytest.raises(DataError, match=r"a finished set that leaves out 1 refused inputs \(--on-bad skip\)"):
        build_set(many, tmp_path / "out", shard_size=10_000)
    assert good


def test_skip_leaves_out_the_whole_video_and_lists_all_that_is_refused_of_it(many, tmp_path):
    cut(many / "JPEGImages/480p/v1/00001.jpg")
    cut(many / "Annotations/480p/v1/00002.png")
    root = build_set(many, tmp_path / "out", on_bad="skip").root
    with ShardSet.open(root) as shard_set:
        assert shard_set.videos.original_names[:] == ["v0", "v2", "v3", "v4", "v5"]
    found = [(one.path, one.what_was_done) for one in read_findings(root)]
    assert found == [
        ("JPEGImages/480p/v1/00001.jpg", "video dropped"),
        ("Annotations/480p/v1/00002.png", "video dropped"),
    ]


def test_a_list_without_its_video_leaves_no_record_behind(many, tmp_path):
    (many / "ImageSets/2017/train.txt").write_text("v0\nmissing\n")
    with pytest.raises(DataError, match="none for 'missing'"):
        build_set(many, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_claim_that_comes_second_never_gets_the_folder_of_other_arguments(many, tmp_path, monkeypatch):
    """Both builds saw no record; the one that got the lock keeps the folder, whatever the other would have written."""
    requests = [BuildRequest("davis2017", (many,), tmp_path / "out", mask_codec=codec) for codec in ("lz4", "png")]
    plans = [make_plan(request) for request in requests]
    write = building.write_bytes
    refused = []

    def meeting(path, data):
        if path.name == "plan.json" and not refused:
            refused.append(None)
            with pytest.raises(DataError) as caught:
                build(requests[1], plans[1], silent)
            refused.append(caught.value.found)
        write(path, data)

    monkeypatch.setattr(building, "write_bytes", meeting)
    assert build(requests[0], plans[0], silent).manifest.mask_codec == "lz4"
    assert refused == [None, "another one running"]


def test_two_parts_of_other_arguments_do_not_both_claim_the_folder(many, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "ORPHAN_SECONDS", 0.2)
    requests = [BuildRequest("davis2017", (many,), tmp_path / "out", mask_codec=codec) for codec in ("lz4", "png")]
    plans = [make_plan(request) for request in requests]
    write = building.write_bytes
    met = []

    def meeting(path, data):
        if path.name == "plan.json" and not met:
            met.append(None)
            with pytest.raises(DataError, match="another one that does not begin"):
                build_part(requests[1], plans[1], silent, Part(1, 1))
        write(path, data)

    monkeypatch.setattr(building, "write_bytes", meeting)
    build_part(requests[0], plans[0], silent, Part(1, 1))
    assert met and finish_build(requests[0], plans[0]).manifest.mask_codec == "lz4"


def test_a_build_waits_for_the_workers_a_killed_one_has_left(tmp_path):
    begun, left = threading.Event(), []

    def orphan():
        with hold_worker(tmp_path):
            begun.set()
            time.sleep(0.4)
            left.append(True)

    worker = threading.Thread(target=orphan)
    worker.start()
    begun.wait()
    with hold_build(tmp_path, alone=False):
        assert not left  # a part need not wait
    with hold_build(tmp_path, alone=True):
        assert left
    worker.join()


def test_a_build_does_not_begin_beside_workers_that_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "ORPHAN_SECONDS", 0.2)
    message = "found worker processes of a stopped one; wait for it or stop it"
    with hold_worker(tmp_path), pytest.raises(DataError, match=message), hold_build(tmp_path, alone=True):
        pass


_PARENT = """
import os, sys, time
from pathlib import Path
from shards.building import work
from shards.building.plan import BuildRequest, make_plan
from shards.building.build import plan_jobs, silent
from tests.shards.test_resuming import BornLate

if __name__ == "__main__":
    request = BuildRequest("davis2017", (Path(sys.argv[1]),), Path(sys.argv[2]), shard_size=10_000, jobs=2)
    jobs = plan_jobs(request, make_plan(request))
    jobs[0].work.mkdir(parents=True)
    work.run_jobs(jobs, BornLate(make_plan(request).source), request, silent)
"""


class BornLate:
    """A source that arrives in a worker only when the worker's parent has been killed."""

    def __init__(self, source: object) -> None:
        self.source = source

    def __reduce__(self) -> tuple[object, ...]:
        return _wait_for_the_end_of, (os.getpid(), self.source)


def _wait_for_the_end_of(parent: int, source: object) -> object:
    os.write(1, b"begun\n")
    while os.getppid() == parent:
        time.sleep(0.01)
    return source


def test_a_worker_whose_parent_was_killed_before_it_began_writes_nothing(many, tmp_path):
    (tmp_path / "parent.py").write_text(_PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(many), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
    )
    late = []
    watchdog = threading.Timer(30, lambda: late.append(True) or os.killpg(parent.pid, signal.SIGKILL))
    watchdog.start()
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == "begun\n"
        parent.kill()
        parent.wait()
        parent.stdout.read()  # workers share the pipe: it ends when the last of them does
    watchdog.cancel()
    assert not late
    root = tmp_path / "out/davis2017"
    assert [path.name for path in root.rglob("*") if path.suffix in (".tar", ".tmp", ".json")] == []
    assert build_set(many, tmp_path / "out", shard_size=10_000).manifest.num_videos == 6


def test_a_build_does_not_go_on_with_shards_of_a_version_that_writes_other_bytes(many, tmp_path, monkeypatch):
    request = BuildRequest("davis2017", (many,), tmp_path / "out", shard_size=10_000)
    with monkeypatch.context() as older:
        older.setattr("shards.building.plan.CREATED_BY", "vosforge shards 0")
        older.setattr("shards.building.build.CREATED_BY", "vosforge shards 0")
        build_part(request, make_plan(request), silent, Part(1, 2))
    with pytest.raises(DataError, match=r"an unfinished build of another version.*remove this one"):
        build_part(request, make_plan(request), silent, Part(2, 2))
    shutil.rmtree(request.root)
    assert build(request, make_plan(request), silent).manifest.num_videos == 6


def test_the_record_tells_the_arguments_apart_but_not_the_sizes(many, tmp_path):
    request = BuildRequest("davis2017", (many,), tmp_path / "out", shard_size=10_000)
    build_part(request, make_plan(request), silent, Part(1, 2))
    record = json.loads((tmp_path / "out/davis2017" / WORK_FOLDER / "plan.json").read_bytes())
    cut(many / "JPEGImages/480p/v1/00001.jpg")
    plan = make_plan(request)
    assert plan.digest != record["digest"] and plan.arguments == record["arguments"]
