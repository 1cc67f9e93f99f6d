"""Builds on many machines: a worker that dies in mid-shard, progress that adds up, huge tars that one of them reads."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.building.build import build
from shards.building.cluster import Ledger, run_on_dask
from shards.building.jobs import Progress
from shards.building.plan import BuildRequest, make_plan
from shards.errors import DataError
from shards.sources import tar_members
from shards.sources.lists import FolderVideos
from shards.sources.tar_members import index_tar, video_members
from shards.sources.types import SourceVideo
from tests.shards.other_trees import write_bl30k
from tests.shards.small_tree import build_set, files_of, label_maps, write_tree
from tests.shards.test_bl30k import write_tar


@dataclasses.dataclass(frozen=True, slots=True)
class DeadlyVideos(FolderVideos):
    """Videos of which one kills the worker that asks for it, once. marker: left behind by that."""

    deadly: str = ""
    marker: Path = Path()

    def video(self, name: str) -> SourceVideo:
        """The video, unless it kills."""
        if name == self.deadly and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return FolderVideos.video(self, name)


def test_a_worker_killed_in_mid_shard_costs_that_shard_and_nothing_else(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    # Workers import this module by its name.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # a killed worker makes it talk
    tree = write_tree(tmp_path / "tree", {f"v{n}": label_maps(3, (1, 2), seed=n) for n in range(6)})
    whole = files_of(build_set(tree, tmp_path / "whole", shard_size=25_000).root)
    request = BuildRequest("davis2017", (tree,), tmp_path / "out", shard_size=25_000, jobs=2)
    plan = make_plan(request)
    assert 1 < len(plan.shards) < 6 and isinstance(plan.source, FolderVideos)
    fields = {field.name: getattr(plan.source, field.name) for field in dataclasses.fields(plan.source) if field.init}
    # The second of its shard: the first one is in the unfinished tar by then.
    deadly = DeadlyVideos(**fields, deadly=plan.shards[0][1], marker=tmp_path / "killed")
    reports: list[Progress] = []

    def on_dask(*arguments: object) -> None:
        run_on_dask(*arguments, scheduler=None, announce=lambda address: None)  # type: ignore[arg-type]

    build(request, dataclasses.replace(plan, source=deadly), reports.append, on_dask)
    assert (tmp_path / "killed").exists()
    assert files_of(request.root) == whole
    assert sum(report.frames for report in reports) == 18


def test_progress_that_is_late_lost_or_told_twice_adds_up():
    reports: list[Progress] = []
    ledger = Ledger(reports.append)
    ledger.tell((0.0, ("a", (10, 100, 0))))
    ledger.tell((1.0, ("b", (4, 40, 1))))
    ledger.tell((2.0, ("a", (10, 100, 0))))  # by a second worker, after the first died
    ledger.finish("a", Progress(15, 150, 2))
    ledger.tell((3.0, ("a", (5, 50, 2))))  # late
    ledger.finish("b", Progress(4, 40, 1))
    ledger.finish("c", Progress(7, 70, 0))  # nothing of it ever arrived
    assert [sum(column) for column in zip(*reports, strict=True)] == [26, 260, 3]
    assert reports[:3] == [Progress(10, 100, 0), Progress(4, 40, 1), Progress(10, 100, 0)]


def test_of_parts_that_begin_together_one_reads_the_tar(tmp_path, monkeypatch):
    tree = write_bl30k(tmp_path / "BL30K", {"kea00001": label_maps(2, (1,))})
    tar = write_tar(tmp_path / "a.tar", files_of(tree).items())
    database = tmp_path / "members" / "0-a.tar.members"
    begun, go_on, walks = threading.Event(), threading.Event(), []
    walk = tar_members._fill

    def slow(*arguments):
        walks.append(1)
        begun.set()
        assert go_on.wait(30)
        return walk(*arguments)

    monkeypatch.setattr(tar_members, "_fill", slow)
    with ThreadPoolExecutor(2) as executor:
        first = executor.submit(index_tar, tar, database, "a.tar", None)
        assert begun.wait(30)
        second = executor.submit(index_tar, tar, database, "a.tar", None)
        stopped = threading.Event()
        stopped.set()
        with pytest.raises(InterruptedError, match="waiting for another process"):
            index_tar(tar, database, "a.tar", None, stop=stopped)
        assert not second.done()
        go_on.set()
        assert first.result(30) is None and second.result(30) is None
    assert walks == [1] and len(video_members(database, "kea00001")) == 4


def test_a_worker_that_does_not_see_the_list_of_members_says_what_it_needs(tmp_path):
    tree = write_bl30k(tmp_path / "BL30K", {"kea00001": label_maps(2, (1,))})
    tar = write_tar(tmp_path / "a.tar", files_of(tree).items())
    plan = make_plan(BuildRequest("bl30k", (tar,), tmp_path / "out"), scratch=tmp_path / "scratch")
    shutil.rmtree(tmp_path / "scratch")
    with pytest.raises(DataError, match=r"all workers must see this path: .*--part on each"):
        plan.source.video("kea00001")
