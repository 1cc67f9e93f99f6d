"""A build that is killed at any byte, fills the disk or loses its source ends in the bytes of an undisturbed one."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path, PosixPath

import pytest

from shards.building import jobs
from shards.building.build import Part, build, build_part, finish_build, read_listing, silent
from shards.building.plan import BuildRequest, make_plan
from shards.errors import DataError
from shards.storage.paths import replacing
from tests.shards.small_tree import build_set, files_of, label_maps, write_tree

KILLS = 20


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", {f"v{n}": label_maps(3, (1, 2), seed=n) for n in range(6)})


class Steps:
    """Counts what a build does to the disk, bytes written and names changed, and kills its process at one of them."""

    def __init__(self, last: int | None) -> None:
        self.taken = 0
        self._last = last

    def take(self, steps: int) -> int:
        """How many of the next steps are still taken."""
        allowed = steps if self._last is None else min(steps, self._last - self.taken)
        self.taken += allowed
        return allowed

    def take_one(self) -> None:
        """Take a step or die before it."""
        if not self.take(1):
            os.kill(os.getpid(), signal.SIGKILL)


class CountedFile:
    """A file that takes a step with every byte, unbuffered: what was written before the kill is in the file."""

    def __init__(self, path: Path, steps: Steps) -> None:
        self._file = open(path, "wb", buffering=0)  # noqa: PTH123, SIM115  Path.open is what is replaced
        self._steps = steps

    def __enter__(self) -> CountedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        allowed = self._steps.take(len(view))
        self._file.write(view[:allowed])
        if allowed < len(view):
            os.kill(os.getpid(), signal.SIGKILL)
        return len(view)


def counted_path(steps: Steps) -> type[Path]:
    """Paths whose files, renames, removals and new folders are steps."""

    class CountedPath(PosixPath):
        def open(self, mode: str = "r", *arguments: object, **options: object) -> object:
            return CountedFile(self, steps) if mode == "wb" else super().open(mode, *arguments, **options)

        def replace(self, target: object) -> object:
            steps.take_one()
            return super().replace(target)

        def unlink(self, missing_ok: bool = False) -> None:
            steps.take_one()
            super().unlink(missing_ok)

        def mkdir(self, *arguments: object, **options: object) -> None:
            steps.take_one()
            super().mkdir(*arguments, **options)

    return CountedPath


def build_in_child(tree: Path, out: Path, last: int | None) -> tuple[int, int]:
    """Build in a forked process that dies after `last` steps: (its wait status, how many steps a whole build took)."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            steps = Steps(last)
            request = BuildRequest("davis2017", (tree,), counted_path(steps)(out), shard_size=10_000)
            build(request, make_plan(request), silent)
            os.write(write_end, str(steps.taken).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    _, wait_status = os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as pipe:
        return wait_status, int(pipe.read() or 0)


def test_killed_at_any_byte_and_run_again_it_ends_in_the_same_bytes(many, tmp_path):
    whole = files_of(build_set(many, tmp_path / "whole", shard_size=10_000).root)
    status, steps = build_in_child(many, tmp_path / "counted", None)
    assert status == 0 and files_of(tmp_path / "counted" / "davis2017") == whole
    assert steps > sum(map(len, whole.values()))
    generator = random.Random(7)
    killed = 0
    for kill in range(KILLS):
        root = tmp_path / f"out{kill}" / "davis2017"
        # Twice in a row, the second time among the leftovers of the first.
        for last in (generator.randrange(steps), generator.randrange(steps // 2)):
            status, _ = build_in_child(many, root.parent, last)
            killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            assert os.WIFSIGNALED(status) or status == 0
            assert not (root / "manifest.json").exists() or files_of(root).items() >= whole.items()
        assert files_of(build_set(many, root.parent, shard_size=10_000).root) == whole, f"kill {kill}"
        shutil.rmtree(root)
    assert killed >= KILLS


def test_a_full_disk_is_an_error_that_a_re_run_goes_on_from(many, tmp_path, monkeypatch):
    whole = files_of(build_set(many, tmp_path / "whole", shard_size=10_000).root)
    left = [len(b"".join(whole.values())) // 3]

    class Quota:
        def __init__(self, file: object) -> None:
            self._file = file

        def write(self, data: bytes) -> int:
            left[0] -= len(data)
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._file.write(data)

    @contextmanager
    def limited(path: Path):
        with replacing(path) as file:
            yield Quota(file)

    monkeypatch.setattr("shards.building.writer.replacing", limited)
    with pytest.raises(OSError, match="No space left on device"):
        build_set(many, tmp_path / "out", shard_size=10_000)
    root = tmp_path / "out" / "davis2017"
    assert not list(root.rglob("*.tmp")), "a full disk needs the room"
    assert 0 < len(list(root.glob("*.tar"))) < 6 and not (root / "manifest.json").exists()
    left[0] = 10**9
    assert files_of(build_set(many, tmp_path / "out", shard_size=10_000).root) == whole


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_a_source_that_goes_away_never_becomes_a_smaller_set(many, tmp_path, monkeypatch, on_bad):
    whole = files_of(build_set(many, tmp_path / "whole", shard_size=10_000).root)
    convert = jobs.convert_video

    def unmounting(video, *arguments):
        if video.name == "v2":
            many.rename(tmp_path / "gone")
        return convert(video, *arguments)

    monkeypatch.setattr(jobs, "convert_video", unmounting)
    with pytest.raises(FileNotFoundError, match=r"v2/0000"):
        build_set(many, tmp_path / "out", shard_size=10_000, on_bad=on_bad)
    monkeypatch.setattr(jobs, "convert_video", convert)
    (tmp_path / "gone").rename(many)
    assert files_of(build_set(many, tmp_path / "out", shard_size=10_000, on_bad=on_bad).root) == whole


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_a_video_that_is_empty_at_its_turn_is_a_source_that_changed(many, tmp_path, on_bad):
    request = BuildRequest("davis2017", (many,), tmp_path / "out", shard_size=10_000, on_bad=on_bad)
    plan = make_plan(request)
    shutil.rmtree(many / "JPEGImages/480p/v3")
    with pytest.raises(DataError, match=r"expected 3 frames of video v3.*the source went away or changed"):
        build(request, plan, silent)


def test_parts_in_any_order_make_the_same_set(many, tmp_path):
    whole = files_of(build_set(many, tmp_path / "whole", shard_size=10_000).root)
    request = BuildRequest("davis2017", (many,), tmp_path / "out", shard_size=10_000)
    plan = make_plan(request)
    assert len(plan.shards) == 6
    assert [build_part(request, plan, silent, Part(number, 4)) for number in (4, 1, 2)] == [1, 2, 2]
    with pytest.raises(DataError, match=r"expected 6 finished shards, found 5, without davis2017-000002; .*--part I/N"):
        finish_build(request, plan)
    assert not (request.root / "manifest.json").exists()
    build_part(request, plan, silent, Part(3, 4))
    finish_build(request, plan)
    assert files_of(request.root) == whole
    assert finish_build(request, plan).already_there and build_part(request, plan, silent, Part(2, 4)) == 2


def test_the_second_part_lists_no_folder_again(many, tmp_path, monkeypatch):
    request = BuildRequest("davis2017", (many,), tmp_path / "out", shard_size=10_000)
    assert read_listing(request) is None
    plan = make_plan(request)
    build_part(request, plan, silent, Part(1, 2))
    monkeypatch.setattr(type(plan.source), "sizes", lambda source: 1 / 0)
    again = make_plan(request, read_listing(request))
    assert (again.shards, again.sizes, again.digest) == (plan.shards, plan.sizes, plan.digest)
    other = BuildRequest("davis2017", (many,), tmp_path / "out", shard_size=20_000)
    with pytest.raises(ZeroDivisionError):
        make_plan(other, read_listing(request))


def test_parts_run_beside_each_other_but_not_beside_the_whole(many, tmp_path):
    request = BuildRequest("davis2017", (many,), tmp_path / "out", shard_size=10_000)
    plan = make_plan(request)
    met = []

    def beside(progress):
        if not met:
            met.append(build_part(request, plan, silent, Part(2, 2)))
            with pytest.raises(DataError, match="one build at a time"):
                build(request, plan, silent)

    build_part(request, plan, beside, Part(1, 2))
    assert met == [3] and finish_build(request, plan).manifest.num_videos == 6


def test_parts_that_cannot_be_are_refused():
    for number, count in ((0, 2), (3, 2), (1, 0)):
        with pytest.raises(ValueError, match="parts are 1/N to N/N"):
            Part(number, count)
