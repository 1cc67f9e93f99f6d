"""However a process that loads clips ends, nothing of it stays: no threads, processes, descriptors or shared memory."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from pipelines.loader import ClipLoader
from pipelines.order.sampling import MixEntry
from pipelines.reading.clip_reader import ReadPlan
from pipelines.recipes import make_recipe
from pipelines.source import ClipSource
from pipelines.types import Batch, ClipPixels
from shards.byte_cache import LEAST_BYTES
from shards.reader import DamagedFrameError, ShardSet
from tests.servers import range_server
from tests.shards.small_tree import build_set, label_maps, write_tree

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED_MEMORY = Path("/dev/shm")

PROGRAM = """
import sys, threading, time
from pathlib import Path
from tests.pipelines.test_clean_ends import load_from
from shards.byte_cache import ByteCache
for number, batch in enumerate(load_from(sys.argv[1], ByteCache(Path(sys.argv[2]), int(sys.argv[3])))):
    if number == 3:
        print("ready", flush=True)
        if sys.argv[4] == "raise":
            raise ZeroDivisionError("of the training step")
        if sys.argv[4] == "wait":
            time.sleep(60)
print("done")
"""


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


def load_from(place, opener=None, **options):
    """Batches of the set at a place, by the plan resident."""
    with ShardSet.open(place, **({"opener": opener} if opener else {})) as shard_set:
        recipe = make_recipe("rde_video", {"size": 32, "num_frames": 3, "max_gap": [[0, 2]]})
        source = ClipSource([MixEntry(shard_set, "train")], recipe, seed=1, steps=40, batch_size=4)
        with ClipLoader(source, NoPixels(), assemble, reading=ReadPlan("resident"), **options) as loader:
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


@pytest.mark.parametrize("way", ["interrupt", "kill", "raise"])
def test_a_process_that_ends_in_any_way_leaves_nothing_and_another_starts_at_once(root, tmp_path, way):
    with range_server(root.parent) as server:
        place = f"{server.url}/{root.name}"
        words = [sys.executable, "-c", PROGRAM, place, str(tmp_path / "copies"), str(LEAST_BYTES)]
        environment = os.environ | {"VOSFORGE_CACHE": str(tmp_path / "index"), "OMP_NUM_THREADS": "1"}
        options = {
            "cwd": REPOSITORY,
            "env": environment,
            "text": True,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        shared = {path.name for path in SHARED_MEMORY.iterdir()}
        process = subprocess.Popen([*words, "raise" if way == "raise" else "wait"], start_new_session=True, **options)
        assert process.stdout.readline() == "ready\n"
        send = {"interrupt": signal.SIGINT, "kill": signal.SIGKILL}.get(way)
        if send is not None:
            process.send_signal(send)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == {"interrupt": -signal.SIGINT, "kill": -signal.SIGKILL, "raise": 1}[way], errors
        assert ("of the training step" in errors) == (way == "raise")
        assert not _members_of(process.pid), "a process of its group is still there"
        assert not left_in_shared_memory(shared)
        if way == "kill":  # starts at once, on what the dead one left in the cache
            done = subprocess.run([*words, "leave"], timeout=60, check=False, **options)
            assert (done.returncode, done.stdout) == (0, "ready\ndone\n"), done.stderr


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
