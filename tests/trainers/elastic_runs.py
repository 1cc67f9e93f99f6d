"""Nodes that leave and come back, for a person to run again: `python -m tests.trainers.elastic_runs`.

Every node is a launcher of its own on this host, with one rank. Prints a row per event, and at the end whether every
step had the loss it has in an undisturbed run of one process: with a learning rate of almost nothing a loss says which
clips were in the batch.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.trainers.fault_runs import reports
from tests.trainers.small_runs import build_shards, plain_config, write_config
from trainers.config import make_config
from trainers.records.journal import read_journal
from trainers.running.training import train

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 60
CLIPS = 4
"""In a batch: one, two and four ranks share them."""


@dataclass
class Nodes:
    """A job of `fewest` to `most` nodes; the first hosts the meeting."""

    config: Path
    folder: Path
    fewest: int
    most: int
    port: int
    launchers: dict[int, subprocess.Popen[str]] = field(default_factory=dict)

    def start(self, node: int) -> None:
        """A node comes, or comes back."""
        meeting = [f"--nnodes={self.fewest}:{self.most}", "--nproc-per-node=1", "--max-restarts=9"]
        meeting += ["--rdzv-backend=c10d", "--rdzv-id=elastic", f"--rdzv-endpoint=localhost:{self.port}"]
        meeting += [f"--rdzv-conf=is_host={int(node == 0)},last_call_timeout=3", "--local-addr=localhost"]
        tools = [str(REPOSITORY / "tools" / name) for name in ("launch.py", "train.py")]
        command = [sys.executable, tools[0], *meeting, tools[1], str(self.config), "--resume"]
        with self.log(node).open("a") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.launchers[node] = subprocess.Popen(command, text=True, stdout=log, stderr=log, env=environment)

    def lose(self, node: int) -> None:
        """SIGKILL to a node's launcher and rank."""
        launcher = self.launchers[node]
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        for pid in (launcher.pid, *map(int, children)):
            os.kill(pid, signal.SIGKILL)
        launcher.wait()

    def log(self, node: int) -> Path:
        """What a node has said."""
        return self.config.with_name(f"{self.config.stem}-node{node}.log")

    def world_size(self) -> int:
        """Of the newest start."""
        sizes = [record["world_size"] for record in read_journal(self.folder) if record["kind"] == "start"]
        return sizes[-1] if sizes else 0

    def last_step(self) -> int:
        """Of the reports."""
        return max((record["step"] for record in reports(self.folder)), default=0)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 400) -> float:
        """Seconds until it held, or all nodes had ended."""
        started = time.monotonic()
        while not condition() and any(launcher.poll() is None for launcher in self.launchers.values()):
            if time.monotonic() - started > seconds:
                break
            time.sleep(0.1)
        return time.monotonic() - started

    def wait_for_ranks(self, number: int) -> str:
        """Wait until so many ranks have taken two steps together."""
        seconds = self.wait_for(lambda: self.world_size() == number)
        step = self.last_step()
        self.wait_for(lambda: self.last_step() >= step + 2)
        return f"{self.world_size()} ranks after {seconds:.0f} s, at step {self.last_step()}"

    def end(self) -> str:
        """Wait for all; how they ended."""
        started = time.monotonic()
        statuses = [launcher.wait(400) for launcher in self.launchers.values()]
        return f"statuses {statuses} after {time.monotonic() - started:.0f} s"


def run_values(shards: Path, output: Path) -> dict[str, Any]:
    values = plain_config(shards, output, report_every=1, checkpoint_every=2, keep=3, hang_seconds=60)
    values["stages"][0] |= {"steps": STEPS, "batch_size": CLIPS, "learning_rate": [[0.0, 1.0e-9]]}
    return values


def make_nodes(shards: Path, root: Path, name: str, fewest: int, most: int) -> Nodes:
    """A job before its first node."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Nodes(write_config(root / f"{name}.yaml", run_values(shards, root / name)), root / name, fewest, most, port)


def one_or_two(shards: Path, root: Path) -> Iterator[str]:
    """The second node of --nnodes=1:2 is lost, comes back, is stopped by SIGTERM."""
    nodes = make_nodes(shards, root, "one-or-two", 1, 2)
    nodes.start(0)
    nodes.start(1)
    yield nodes.wait_for_ranks(2)
    nodes.lose(1)
    yield f"node 1 lost: {nodes.wait_for_ranks(1)}"
    nodes.start(1)
    yield f"node 1 is back: {nodes.wait_for_ranks(2)}"
    nodes.launchers[1].send_signal(signal.SIGTERM)
    yield f"SIGTERM to node 1 after step {nodes.last_step()}: {nodes.end()}, newest step {nodes.last_step()}"
    nodes.start(0)
    yield f"one node, --resume: {nodes.launchers[0].wait(600)}"
    yield same_batches(nodes.folder, root)


def two_to_four(shards: Path, root: Path) -> Iterator[str]:
    """--nnodes=2:4 with three nodes, among which four clips do not divide, and with four."""
    nodes = make_nodes(shards, root, "two-to-four", 2, 4)
    for node in range(4):
        nodes.start(node)
    yield nodes.wait_for_ranks(4)
    nodes.lose(3)
    nodes.wait_for(lambda: False, 120)
    said = [line for line in nodes.log(0).read_text().splitlines() if "does not divide" in line]
    yield f"node 3 lost, three remain: {nodes.end()}; {said}"
    nodes = Nodes(nodes.config, nodes.folder, 2, 2, nodes.port)
    nodes.start(0)
    nodes.start(1)
    yield f"two nodes, --resume: {nodes.end()}"
    yield same_batches(nodes.folder, root)


def same_batches(folder: Path, root: Path) -> str:
    """Whether every step was taken once, and with the loss of the undisturbed run."""
    found, wanted = ({record["step"]: record["loss"] for record in reports(path)} for path in (folder, root / "alone"))
    if list(found) != list(wanted):
        return f"NOT the same steps: {list(found)}"
    off = max(abs(found[step] - wanted[step]) / wanted[step] for step in wanted)
    nearest = min(abs(a - b) / b for a, b in zip(list(wanted.values())[1:], wanted.values(), strict=False))
    return f"losses of {len(found)} steps within {off:.1e} of one process; neighbouring steps differ by {nearest:.1e}"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="vosforge-elastic-") as folder:
        root = Path(folder)
        shards = build_shards(root / "data")
        train(make_config(run_values(shards, root / "alone"), source="elastic"))
        for name in sys.argv[1:] or ["one_or_two", "two_to_four"]:
            for row in {"one_or_two": one_or_two, "two_to_four": two_to_four}[name](shards, root):
                print(f"{name}: {row}", flush=True)


if __name__ == "__main__":
    main()
