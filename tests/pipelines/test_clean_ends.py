"""However a process that loads clips ends, nothing of it stays: no threads, processes, descriptors or shared memory."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from pipelines.executors import make_executor
from pipelines.loader import ClipLoader
from pipelines.order.sampling import MixEntry
from pipelines.reading.clip_reader import ReadPlan
from pipelines.recipes import make_recipe
from pipelines.source import ClipSource
from pipelines.types import Batch, ClipPixels
from shards.byte_cache import LEAST_BYTES, ByteCache
from shards.reader import DamagedFrameError, ShardSet
from shards.shard_files import SlowStorage
from shards.storage.requests import pause
from tests.servers import range_server
from tests.shards.small_tree import build_set, label_maps, write_tree

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED_MEMORY = Path("/dev/shm")

NURSERY = """
import os, sys
from tests.pipelines.test_clean_ends import be_in_state
for line in sys.stdin:
    child = os.fork()  # imports are done once; nothing has a thread yet
    if child == 0:
        os.setsid()
        be_in_state(*line.split())
        print("done", flush=True)
        sys.exit(0)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
SLOW = 60.0
"""Seconds that a read takes which nobody should have to wait for."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set")
    tree = write_tree(out / "tree", {f"video{n}": label_maps(12, (1, 2), seed=n) for n in range(4)})
    return build_set(tree, out, shard_size=30_000).root


class NoPixels:
    def __call__(self, clips):
        none = torch.zeros(len(clips), 0)
        return ClipPixels(none, none, none)

    def close(self):
        """Nothing to close."""


def assemble(pixels, plans, *, step):
    none = pixels.images
    return Batch(step, none, none, none, none, none, plans), 0


def load_from(place, opener=None, *, steps=40, executor=None, reading=None, **options):
    """Batches of the set at a place."""
    with ShardSet.open(place, **({"opener": opener} if opener else {})) as shard_set:
        recipe = make_recipe("rde_video", {"size": 32, "num_frames": 3, "max_gap": [[0, 2]]})
        source = ClipSource([MixEntry(shard_set, "train")], recipe, seed=1, steps=steps, batch_size=4)
        reading = reading or ReadPlan("resident")
        with ClipLoader(source, executor or NoPixels(), assemble, reading=reading, **options) as loader:
            yield from loader


def own_state() -> tuple[int, set[str], set[str], set[str]]:
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    threads = {thread.name for thread in threading.enumerate() if thread.name.startswith(("clip-", "storage-"))}
    children = set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    return descriptors, threads, children, {path.name for path in SHARED_MEMORY.iterdir()}


def test_iterations_that_end_break_off_or_fail_leave_nothing_in_the_process(root, tmp_path):
    before = own_state()
    assert len(list(load_from(root))) == 40
    for _ in range(3):
        iterator = load_from(root, threads=8)
        next(iterator)
        del iterator
        with pytest.raises(KeyError):
            for _batch in load_from(root):
                raise KeyError
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", root, broken], check=True)
    for path in broken.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DamagedFrameError):
        list(load_from(broken))
    after = own_state()
    assert after[0] <= before[0] and after[1:3] == (set(), before[2])
    assert not left_in_shared_memory(before[3])


class Nursery:
    """A process that makes processes that load clips; each is the first of a group of its own."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"VOSFORGE_CACHE": str(folder / "index"), "OMP_NUM_THREADS": "1"}
        self.errors = (folder / "errors").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            cwd=REPOSITORY,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )

    def start(self, *words: object) -> int:
        """A process in a state: see `be_in_state`."""
        print(*words, file=self.process.stdin, flush=True)
        word, _, number = self.process.stdout.readline().partition(" ")
        assert word == "ready", self._all_errors()
        return int(number)

    def end(self) -> tuple[int, bool]:
        """Wait for the process: its status, and whether it came to its end."""
        line = self.process.stdout.readline().strip()
        done = line == "done"
        if done:
            line = self.process.stdout.readline()
        return int(line.split()[1]), done

    def close(self) -> None:
        try:
            self.process.communicate(timeout=120)
        finally:
            self.process.kill()
            self.errors.close()

    def _all_errors(self) -> str:
        self.errors.seek(0)
        return self.errors.read()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory):
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


def be_in_state(state: str, place: str, copies: str, seconds: str = str(SLOW)) -> None:
    """Say ready when the loader is in this state (starting: just before), and stay there."""
    opener = ByteCache(Path(copies), LEAST_BYTES) if state == "full" else None
    if state == "slow-disk":
        opener = SlowStorage(SLOW, 1e9)
    options = {"executor": make_executor("dali", threads=1, device=torch.device("cpu"))} if state == "dali" else {}
    reading = ReadPlan("frame" if state == "slow-server" else "resident")
    steps = 100_000 if state in ("slow-server", "dali") else 40
    if state in ("opening", "starting", "slow-disk"):
        print("ready", os.getpid(), flush=True)
    for number, _batch in enumerate(load_from(place, opener, steps=steps, reading=reading, **options)):
        if number == 3 and state not in ("opening", "starting", "slow-disk"):
            print("ready", os.getpid(), flush=True)
            if state == "raising":
                raise ZeroDivisionError("of the training step")
            if state == "full":
                time.sleep(float(seconds))


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("state", ["opening", "starting", "full", "slow-disk", "slow-server", "dali"])
def test_a_process_that_is_ended_in_any_state_leaves_nothing_and_another_starts_at_once(
    root, tmp_path, nursery, state, way
):
    if state == "dali":
        pytest.importorskip("nvidia.dali")
    with range_server(root.parent) as server:
        place = root if state in ("slow-disk", "dali") else f"{server.url}/{root.name}"
        silence = [-SLOW] * 100
        server.failures[:] = silence if state == "opening" else []
        shared = {path.name for path in SHARED_MEMORY.iterdir()}
        child = nursery.start(state, place, tmp_path / "copies")
        server.failures[:] = silence
        os.kill(child, way)
        assert nursery.end() == (-way, False)  # the test would take a minute or two if a read was waited for
        assert not _members_of(child), "a process of its group is still there"
        assert not left_in_shared_memory(shared)
        server.failures.clear()
        if way == signal.SIGKILL and state == "full":  # another starts on what the dead one left in the cache
            nursery.start("full", place, tmp_path / "copies", 0)
            assert nursery.end() == (0, True)


def test_a_process_whose_training_step_raises_leaves_nothing(root, tmp_path, nursery):
    shared = {path.name for path in SHARED_MEMORY.iterdir()}
    child = nursery.start("raising", root, tmp_path / "copies")
    assert nursery.end() == (1, False)
    assert not _members_of(child) and not left_in_shared_memory(shared)


class OneFailsFile:
    """A shard whose first read fails at once and whose others take long."""

    def __init__(self, opener: OneFails) -> None:
        self._opener = opener

    def read(self, ranges, *, fresh=False):
        if next(self._opener.reads) == 0:
            raise OSError("the disk is gone")
        pause(SLOW)
        raise AssertionError("nobody told this read to end")


class OneFails:
    def __init__(self) -> None:
        self.reads = itertools.count()

    def __call__(self, path, facts):
        return OneFailsFile(self)


def test_a_read_that_fails_while_others_take_long_ends_the_iteration_without_them(root):
    with pytest.raises(OSError, match="the disk is gone"):
        list(load_from(root, OneFails(), threads=8))
    assert own_state()[1] == set()


def _members_of(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def left_in_shared_memory(before: set[str]) -> set[str]:
    """Names that came since and that no living process of the machine has mapped: those are other programs'."""
    found = {path.name for path in SHARED_MEMORY.iterdir()} - before
    for entry in Path("/proc").glob("[0-9]*/map_files/*"):
        try:
            found.discard(entry.readlink().name)
        except OSError:
            continue
    return {name for name in found if (SHARED_MEMORY / name).exists()}
