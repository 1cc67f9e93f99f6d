"""The jobs of docs/cluster.md on a real Slurm, for a person to run again: `python -m tests.trainers.slurm_runs`.

Needs root, Linux and what tests/trainers/slurm_cluster.py names. The jobs are the page's, with one rank on each of two
nodes and a small run for theirs. Prints a row per event: what Slurm made of it, and whether the end equals an
undisturbed run bit for bit.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.trainers.slurm_cluster import Cluster, kill, missing_programs, slurm_cluster, wait_until
from tests.trainers.small_runs import assert_equal_states, build_shards, plain_config, write_config
from tests.trainers.test_distributed import start_ranks
from trainers.records.journal import read_journal

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "cluster.md"
STEPS = 120
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
SECONDS = 900.0
"""For any one event; a machine that does other things, too, takes minutes to start two ranks."""


@dataclass
class Event:
    """One job and its run, to which something will happen."""

    cluster: Cluster
    name: str
    root: Path
    job: int = 0

    @property
    def run(self) -> Path:
        """Its folder."""
        return self.root / self.name

    @property
    def log(self) -> str:
        """What the job has printed, in all its starts."""
        path = self.root / f"{self.name}.log"
        return path.read_text() if path.exists() else ""

    def last_step(self) -> int:
        """Of the journal's reports; a run reports every step."""
        return max((record["step"] for record in read_journal(self.run) if record["kind"] == "report"), default=0)

    def wait_for_step(self, step: int) -> float:
        """Seconds until there was a report of it, or the job was over."""
        return wait_until(
            lambda: self.last_step() >= step or self.cluster.state(self.job) in OVER, SECONDS, f"{self.name}: {step}"
        )

    def wait_for_end(self) -> str:
        """How the job ended, for good."""
        wait_until(lambda: self.cluster.state(self.job) in OVER, SECONDS, f"{self.name}: the job's end")
        facts = self.cluster.jobs(self.job)[0]
        return f"{facts['JobState']} {facts['ExitCode']}, {facts['Restarts']} restarts"

    def wait_for_restart(self, count: int) -> float:
        """Seconds until Slurm has started it again."""

        def has_started() -> bool:
            facts = self.cluster.jobs(self.job)[0]
            return facts["JobState"] in OVER or (facts["JobState"] == "RUNNING" and int(facts["Restarts"]) >= count)

        return wait_until(has_started, SECONDS, f"{self.name}: another start")


def samples() -> tuple[str, str]:
    """The page's chain of jobs and its array."""
    chain, array = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return chain, array


def fitted(script: str, config: Path) -> str:
    """A sample for a small run with one rank on each node."""
    script, ranks = re.subn(r"--nproc-per-node=\d+", "--nproc-per-node=1", script)
    script, runs = re.subn(r"(?<=train.py )rde_stage\d", str(config), script)
    assert (ranks, runs) == (1, 1), script
    return re.sub(r" (output|start_from)=/shared/\S+", "", script)


def submit(cluster: Cluster, shards: Path, root: Path, name: str, *words: str) -> Event:
    """The page's chain of jobs, on two nodes."""
    config = write_config(root / f"{name}.yaml", run_values(shards, root / name))
    options = ["--nodes=2", f"--cpus-per-task={os.cpu_count()}", f"--output={root}/{name}.log", "--chdir"]
    job = cluster.submit(fitted(samples()[0], config), root, *options, str(REPOSITORY), *words)
    return Event(cluster, name, root, job)


def run_values(shards: Path, output: Path) -> dict[str, Any]:
    values = plain_config(shards, output, report_every=1, checkpoint_every=10, keep=3, hang_seconds=120)
    values["stages"][0]["steps"] = STEPS
    return values


def notice_of_user(event: Event) -> Iterator[str]:
    """`scancel --signal=USR1`, twice."""
    for count in (1, 2):
        event.wait_for_step(event.last_step() + 5)
        event.cluster.call("scancel", "--signal=USR1", str(event.job))
        started, step = time.monotonic(), event.last_step()
        event.wait_for_restart(count)
        yield f"USR1 after step {step}, in the queue and started again after {time.monotonic() - started:.0f} s"


def notice_before_time_is_up(event: Event) -> Iterator[str]:
    """`--signal=USR1@60` with a limit of two minutes; then with more time."""
    event.wait_for_restart(1)
    event.cluster.call("scontrol", "update", f"JobId={event.job}", "TimeLimit=60")
    yield f"{event.log.count('stopped after step')} stops when started again, newest step {event.last_step()}"


def put_back_by_hand(event: Event) -> Iterator[str]:
    """`scontrol requeue` by somebody else, which gives no notice that the batch script could act on."""
    event.wait_for_step(15)
    step = event.last_step()
    event.cluster.call("scontrol", "requeue", str(event.job))
    seconds = event.wait_for_restart(1)
    yield f"put back after step {step}, started again after {seconds:.0f} s"


def preempted(event: Event) -> Iterator[str]:
    """A job of a partition that goes first takes both nodes; ours has a grace time of a minute."""
    event.wait_for_step(15)
    step = event.last_step()
    words = ["--partition=urgent", "--nodes=2", f"--cpus-per-task={os.cpu_count()}", "--output=/dev/null"]
    other = event.cluster.submit("#!/bin/bash\nsleep 5\n", event.root, *words)
    began = wait_until(lambda: event.cluster.state(other) in {"RUNNING", *OVER}, SECONDS, "the urgent job")
    yield f"asked to go after step {step}; the other job began after {began:.0f} s, {event.cluster.state(event.job)}"
    event.wait_for_restart(1)


def node_lost(event: Event) -> Iterator[str]:
    """Everything on node2 dies, its daemon too; it comes back."""
    event.wait_for_step(25)
    step = event.last_step()
    event.cluster.stop_node("node2")
    started = time.monotonic()
    wait_until(lambda: event.cluster.state(event.job) != "RUNNING", SECONDS, "the loss is seen")
    seen = time.monotonic() - started
    event.cluster.start_node("node2")
    event.wait_for_restart(1)
    yield f"node2 lost after step {step}; out of the queue's hands after {seen:.0f} s, started again after " + (
        f"{time.monotonic() - started:.0f} s"
    )


def rank_killed(event: Event) -> Iterator[str]:
    """SIGKILL to the rank of node2; the launchers start both ranks again."""
    event.wait_for_step(25)
    step = event.last_step()
    named = [(pid, Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in event.cluster.processes_of("node2")]
    (rank,) = [pid for pid, line in named if b"train.py" in line and b"launch.py" not in line]
    kill(rank)
    seconds = event.wait_for_step(step + 10)
    yield f"killed after step {step}, ten steps further after {seconds:.0f} s"


def cancelled(event: Event) -> Iterator[str]:
    """`scancel`, which ends the job for good; handing the same job in again goes on."""
    event.wait_for_step(15)
    step = event.last_step()
    event.cluster.call("scancel", str(event.job))
    yield f"cancelled after step {step}: {event.wait_for_end()}, newest step {event.last_step()}"
    script = (event.root / "job.sh").read_text()
    words = ["--nodes=2", f"--cpus-per-task={os.cpu_count()}", f"--output={event.root}/{event.name}.log", "--chdir"]
    event.job = event.cluster.submit(script, event.root, *words, str(REPOSITORY))


EVENTS: dict[str, tuple[Callable[[Event], Iterator[str]], tuple[str, ...]]] = {
    "user-notice": (notice_of_user, ()),
    "time-limit": (notice_before_time_is_up, ("--time=2", "--signal=USR1@60")),
    "requeued": (put_back_by_hand, ()),
    "preempted": (preempted, ()),
    "rank-killed": (rank_killed, ()),
    "node-lost": (node_lost, ()),
    "cancelled": (cancelled, ()),
}
"""What happens, and what else is said to sbatch."""


def array(cluster: Cluster, shards: Path, root: Path) -> Iterator[str]:
    """The page's array, two runs at a time of one node each, every job of 100 s."""
    config = write_config(root / "array.yaml", run_values(shards, root / "array"))
    script = fitted(samples()[1], config).replace("runs/seed-", f"{root}/seed-")
    script, limits = re.subn(r"--max-time \S+", "--max-time 100s", script)
    assert limits == 1
    words = ["--array=0-2", f"--cpus-per-task={os.cpu_count()}", f"--output={root}/array-%a.log", "--open-mode=append"]
    job = cluster.submit(script, root, *words, "--chdir", str(REPOSITORY))
    over = {state for state in OVER if state != "PREEMPTED"}
    wait_until(lambda: {facts["JobState"] for facts in cluster.jobs(job)} <= over, SECONDS, "the array's end")
    for facts in sorted(cluster.jobs(job), key=lambda facts: facts["ArrayTaskId"]):
        records = read_journal(root / f"seed-{facts['ArrayTaskId']}")
        steps = [record["step"] for record in records if record["kind"] == "report"]
        whole = "each step once" if steps == list(range(1, STEPS + 1)) else f"NOT whole: {len(steps)} reports"
        ended = f"{facts['JobState']} {facts['ExitCode']}, {facts['Restarts']} restarts"
        yield f"seed {facts['ArrayTaskId']}: {ended}, {whole}"


def same_end(event: Event, undisturbed: Path) -> str:
    """Whether the run ended as an undisturbed one, and its journal has each step once."""
    name = f"checkpoint-{STEPS}.pt"
    steps = [record["step"] for record in read_journal(event.run) if record["kind"] == "report"]
    try:
        assert_equal_states(event.run / name, undisturbed / name)
    except (AssertionError, ValueError, OSError) as error:
        return f"NOT the same end: {error}"
    return "the same end bit for bit" + ("" if steps == list(range(1, STEPS + 1)) else ", NOT each step once")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", nargs="*", help=f"of {', '.join(EVENTS)}, array (default: all)")
    parser.add_argument("--scratch", type=Path, help="kept folder for everything (default: a temporary one)")
    options = parser.parse_args()
    if missing := missing_programs():
        sys.exit(f"not here: {', '.join(missing)}")
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="vosforge-slurm-") as folder:
        root = options.scratch or Path(folder)
        (root / "slurm").mkdir(parents=True)
        shards = build_shards(root / "data")
        events = options.events or [*EVENTS, "array"]
        if events != ["array"]:
            undisturbed = write_config(root / "undisturbed.yaml", run_values(shards, root / "undisturbed"))
            start_ranks(undisturbed).wait()
        with slurm_cluster(root / "slurm", 2) as cluster:
            for name in events:
                show(cluster, shards, root, name)


def show(cluster: Cluster, shards: Path, root: Path, name: str) -> None:
    """Let it happen and print its rows as they come."""
    if name == "array":
        for row in array(cluster, shards, root):
            print(f"array: {row}", flush=True)
        return
    happen, words = EVENTS[name]
    event = submit(cluster, shards, root, name, *words)
    for row in happen(event):
        print(f"{name}: {row}", flush=True)
    print(f"{name}: {event.wait_for_end()}; {same_end(event, root / 'undisturbed')}", flush=True)


if __name__ == "__main__":
    main()
