"""Building: the same bytes whatever happened on the way, and no set that only looks complete."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.building import jobs, work
from shards.building.build import WORK_FOLDER, build, silent
from shards.building.plan import BuildRequest, fill_shards, make_plan, parse_size
from shards.check import rebuild_index
from shards.errors import DataError
from shards.findings import read_findings
from shards.manifest import read_manifest
from shards.reader import ShardSet
from shards.sources.types import VideoSize
from tests.shards.small_tree import build_set, files_of, label_maps, write_tree

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_set_is_the_same_bytes_for_any_number_of_jobs_and_any_place(tree, tmp_path):
    one = build_set(tree, tmp_path / "one", shard_size=20_000, jobs=1).root
    moved = shutil.copytree(tree, tmp_path / "moved tree")
    two = build_set(moved, tmp_path / "two", shard_size=20_000, jobs=2).root
    assert files_of(one) == files_of(two)
    assert len(read_manifest(one).shards) > 2
    assert not list(one.rglob("*.tmp")) and not (one / WORK_FOLDER).exists()


def test_threads_within_one_shard_change_nothing(tree, tmp_path):
    assert files_of(build_set(tree, tmp_path / "one").root) == files_of(build_set(tree, tmp_path / "two", jobs=3).root)


def test_the_index_comes_from_the_tars_and_the_manifest_alone(tree, tmp_path):
    root = build_set(tree, tmp_path / "out", shard_size=20_000).root
    built = files_of(root / "index")
    shutil.rmtree(tree)
    shutil.rmtree(root / "index")
    rebuild_index(root)
    assert files_of(root / "index") == built


def test_the_fingerprint_follows_the_content(tree, tmp_path):
    first = build_set(tree, tmp_path / "one").manifest
    assert build_set(tree, tmp_path / "two").manifest.fingerprint == first.fingerprint
    mask = tree / "Annotations/480p/fox/00002.png"
    mask.write_bytes((tree / "Annotations/480p/fox/00003.png").read_bytes())
    assert build_set(tree, tmp_path / "three").manifest.fingerprint != first.fingerprint


def test_a_build_that_failed_halfway_goes_on_and_ends_in_the_same_bytes(tree, tmp_path, monkeypatch):
    whole = files_of(build_set(tree, tmp_path / "whole", shard_size=20_000).root)
    convert, videos = jobs.convert_video, []

    def failing(video, *arguments):
        videos.append(video.name)
        if video.name == "dance":
            raise OSError(28, "No space left on device")
        return convert(video, *arguments)

    monkeypatch.setattr(jobs, "convert_video", failing)
    with pytest.raises(OSError, match="No space left"):
        build_set(tree, tmp_path / "out", shard_size=20_000)
    with pytest.raises(DataError, match="run it again to finish"):
        ShardSet.open(tmp_path / "out" / "davis2017")
    monkeypatch.setattr(
        jobs, "convert_video", lambda video, *arguments: videos.append(video.name) or convert(video, *arguments)
    )
    videos.clear()
    root = build_set(tree, tmp_path / "out", shard_size=20_000).root
    assert videos == ["dance", "eel.v2 日本", "fox"]
    assert files_of(root) == whole


def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(tmp_path):
    tree = write_tree(tmp_path / "tree", {f"video{n:02d}": label_maps(12, (1, 2), seed=n) for n in range(40)})
    out = tmp_path / "out"
    command = [sys.executable, str(REPOSITORY / "tools/shard.py"), "davis2017", str(tree), str(out)]
    command += ["--shard-size", "20KB", "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(out.rglob("*.tar"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = len(list(out.rglob(f"{WORK_FOLDER}/*-*.json")))
    assert 0 < finished < 40 and not (out / "davis2017" / "manifest.json").exists()
    whole = build_set(tree, tmp_path / "whole", shard_size=20_000)
    assert files_of(build_set(tree, out, shard_size=20_000).root) == files_of(whole.root)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = (
        "import os, time\n"
        "from shards.building.work import die_with\n"
        "die_with(os.getppid())\n"
        "print('begun', flush=True)\n"
        "time.sleep(10)\n"
        "print('survived', flush=True)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {script!r}])"],
        stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == "begun\n"
        parent.kill()
        parent.wait()
        # The child shares the pipe: it ends without another word when its last holder is gone.
        assert parent.stdout.read() == ""


def test_a_finished_build_is_left_alone(tree, tmp_path):
    first = build_set(tree, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in first.root.rglob("*")}
    again = build_set(tree, tmp_path / "out", jobs=2)
    assert again.already_there and not first.already_there and again.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in first.root.rglob("*")} == before


def test_other_arguments_in_the_same_folder_are_refused(tree, tmp_path, monkeypatch):
    build_set(tree, tmp_path / "out")
    with pytest.raises(DataError, match=r"found a finished set of other arguments.*--name"):
        build_set(tree, tmp_path / "out", mask_codec="png")
    monkeypatch.setattr(jobs, "convert_video", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_set(tree, tmp_path / "half")
    with pytest.raises(DataError, match="found an unfinished build of other arguments"):
        build_set(tree, tmp_path / "half", splits=("val",))


def test_a_folder_with_something_else_in_it_is_refused(tree, tmp_path):
    (tmp_path / "out/davis2017").mkdir(parents=True)
    (tmp_path / "out/davis2017/thesis.tex").touch()
    with pytest.raises(DataError, match=r"files that no build left there \(thesis\.tex\)"):
        build_set(tree, tmp_path / "out")


def test_two_builds_do_not_write_into_one_folder(tree, tmp_path):
    request = BuildRequest("davis2017", (tree,), tmp_path / "out")
    plan = make_plan(request)
    met = []

    def report(progress):
        if not met:
            met.append(True)
            build(request, plan, silent)

    with pytest.raises(DataError, match="one build at a time"):
        build(request, plan, report)


def test_stop_names_the_first_refused_file_and_skip_goes_on_from_there(tree, tmp_path):
    bad = tree / "JPEGImages/480p/fox/00001.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(DataError, match=rf"{bad}: expected a JPEG with every pixel.*--on-bad skip"):
        build_set(tree, tmp_path / "out", shard_size=20_000)
    assert not (tmp_path / "out/davis2017/manifest.json").exists()
    root = build_set(tree, tmp_path / "out", shard_size=20_000, on_bad="skip").root
    findings = [(finding.path, finding.what_was_done) for finding in read_findings(root)]
    assert findings == [("JPEGImages/480p/fox/00001.jpg", "video dropped")]
    with ShardSet.open(root) as shard_set:
        assert shard_set.manifest.refused == 1 and "fox" not in shard_set.videos.original_names[:]


@pytest.mark.parametrize("n", [1, 2])
def test_stop_in_a_worker_process_gives_the_same_message(tree, tmp_path, n):
    (tree / "Annotations/480p/bear/00000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"bear/00000\.png: expected a PNG, found 0 bytes"):
        build_set(tree, tmp_path / "out", shard_size=20_000, jobs=n)


def test_a_shard_whose_videos_are_all_refused_leaves_a_gap_in_the_numbers(tree, tmp_path):
    shutil.rmtree(tree / "Annotations/480p/dance")
    manifest = build_set(tree, tmp_path / "out", shard_size=1, on_bad="skip").manifest
    assert [facts.name[-10:-4] for facts in manifest.shards] == ["000000", "000001", "000003", "000004"]
    with ShardSet.open(tmp_path / "out/davis2017") as shard_set:
        assert shard_set.locate(9) == "davis2017-000003.tar, video eel.v2 日本, frame 00000"


def test_a_source_without_one_usable_video_makes_no_set(tmp_path):
    tree = write_tree(tmp_path / "tree", {"one": [label_maps(1, ())[0]] * 3})
    with pytest.raises(DataError, match="1 videos, all refused, the first because of Annotations/480p/one: no object"):
        build_set(tree, tmp_path / "out", on_bad="skip")


def test_a_worker_that_is_killed_ends_the_build_with_one_message(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "_run_in_worker", _kill_this_process)
    with pytest.raises(OSError, match=r"a worker process was killed.*fewer --jobs"):
        build_set(tree, tmp_path / "out", shard_size=20_000, jobs=2)


def _kill_this_process(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_unknown_kinds_and_names_are_refused(tree, tmp_path):
    with pytest.raises(ValueError, match="unknown kind 'davis'; there are: bl30k, davis2016, davis2017"):
        make_plan(BuildRequest("davis", (tree,), tmp_path))
    with pytest.raises(ValueError, match="letters, digits"):
        make_plan(BuildRequest("davis2017", (tree,), tmp_path, name="a/b"))


def test_the_manifest_is_canonical_json_without_times_or_places(tree, tmp_path):
    root = build_set(tree, tmp_path / "out").root
    data = (root / "manifest.json").read_bytes()
    fields = json.loads(data)
    assert data == json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"
    assert str(tmp_path) not in data.decode() and fields["splits"] == {"train": 3, "val": 3}


def test_shards_fill_up_in_order_and_never_split_a_video():
    sizes = [VideoSize(name, (), 0, size) for name, size in zip("abcdef", (4, 5, 2, 30, 1, 1), strict=True)]
    assert list(fill_shards(sizes, 10)) == [("a", "b"), ("c",), ("d",), ("e", "f")]


def test_sizes_are_written_as_people_write_them():
    assert [parse_size(text) for text in ("1GB", "1.5 G", "500mb", "12", "3k")] == [
        10**9,
        15 * 10**8,
        5 * 10**8,
        12,
        3000,
    ]
    for text in ("", "GB", "1GiB", "-1", "0"):
        with pytest.raises(ValueError, match="is no size"):
            parse_size(text)
