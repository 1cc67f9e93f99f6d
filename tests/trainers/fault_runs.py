"""Faults done to whole jobs, for a person to run again: `python -m tests.trainers.fault_runs --points 50`.

Two ranks on the CPU under tools/launch.py, on made-up video. Prints a row per fault: what the user sees, steps lost,
seconds from the fault to the next new step, and whether the end equals an undisturbed run bit for bit.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import random
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from shards.shard_files import LocalFile, Range, ShardOpener, SlowStorage, open_shard
from tests.servers import nginx_server
from tests.trainers.small_runs import assert_equal_states, build_shards, plain_config, write_config
from tests.trainers.test_distributed import processes_of, start_ranks
from trainers.config import make_config
from trainers.records.checkpoints import list_checkpoints
from trainers.records.journal import read_journal
from trainers.running.training import train

STEPS = 24
STEPS_PER_POINT = 12
"""A job takes a few steps between two kills; one that is too short ends before it has met them all."""


@dataclass
class Job:
    """One job in its own folder: its config, its processes, how far it has come."""

    config: Path
    folder: Path
    process: subprocess.Popen[str]

    def last_step(self) -> int:
        """Of the journal's reports; a run reports every step."""
        return max((record["step"] for record in reports(self.folder)), default=0)

    def log(self) -> str:
        return self.config.with_suffix(".log").read_text()


def run_values(shards: Path, output: Path) -> dict[str, Any]:
    values = plain_config(shards, output, report_every=1, checkpoint_every=2, keep=3, hang_seconds=60)
    values["stages"][0]["steps"] = STEPS
    return values


def begin(shards: Path, root: Path, name: str, *words: str, restarts: int = 0, **changes: Any) -> Job:
    config = write_config(root / f"{name}.yaml", run_values(shards, root / name) | changes)
    return Job(config, root / name, start_ranks(config, *words, restarts=restarts))


def wait_until(condition: Callable[[], Any], job: Job, seconds: float = 300) -> float:
    """Seconds until the condition holds or the job has ended."""
    started = time.monotonic()
    while not condition() and job.process.poll() is None and time.monotonic() - started < seconds:
        time.sleep(0.05)
    return time.monotonic() - started


def kill_job(job: Job) -> None:
    """SIGKILL to the launcher and its ranks, as a lost machine or the queue's last word."""
    ranks = processes_of(job.process)
    for pid in (job.process.pid, *ranks):
        os.kill(pid, signal.SIGKILL)
    job.process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        time.sleep(0.02)


def rank_kills(shards: Path, root: Path, points: int, dice: random.Random) -> Iterator[str]:
    """One job whose ranks are killed one at a time at random moments after the first step of each attempt."""
    job = begin(shards, root, "rank-kills", restarts=points)
    kills = 0
    while kills < points:
        before = job.last_step()
        wait_until(lambda: job.last_step() > before, job)  # noqa: B023 - called at once
        time.sleep(dice.uniform(0, 1))
        if job.process.poll() is not None:
            yield f"the job ended before it met all kills:\n{job.log()[-2000:]}"
            break
        ranks = processes_of(job.process)
        if not ranks:  # the launcher is just starting them
            continue
        reached, rank = job.last_step(), dice.randrange(len(ranks))
        newest = newest_step(job.folder)
        os.kill(ranks[rank], signal.SIGKILL)
        killed, kills = time.monotonic(), kills + 1
        wait_until(lambda: job.last_step() < reached or job.last_step() > reached, job)  # noqa: B023
        wait_until(lambda: job.last_step() > reached, job)  # noqa: B023
        yield f"rank {rank} after step {reached}: {reached - newest} lost, {time.monotonic() - killed:.0f} s"
    yield f"{kills} kills, status {job.process.wait()}"
    yield same_end(job.folder, root)


def job_kills(shards: Path, root: Path, points: int, dice: random.Random) -> Iterator[str]:
    """A job that is killed as a whole, at any moment of its life, and started again with --resume."""
    kills = 0
    for point in range(points):
        job = begin(shards, root, "job-kills", "--resume")
        before = job.last_step()
        moment = "while it started"
        if dice.random() < 0.7:
            wait_until(lambda: job.last_step() > before, job)  # noqa: B023 - called at once
            moment = "at work"
        wait_until(lambda: False, job, dice.uniform(0, 5))
        if job.process.poll() is not None:
            yield f"the job ended before it met all kills:\n{job.log()[-2000:]}"
            break
        kill_job(job)
        kills += 1
        reached = job.last_step()
        yield f"kill {point + 1} {moment}: steps {before} to {reached}, {reached - newest_step(job.folder)} lost"
    job = begin(shards, root, "job-kills", "--resume")
    yield f"{kills} kills, status {job.process.wait()}"
    yield same_end(job.folder, root)


def newest_step(folder: Path) -> int:
    """Of the checkpoints in a run's folder, 0 without any."""
    return max((int(path.stem.partition("-")[2]) for path in list_checkpoints(folder)), default=0)


def hung_rank(shards: Path, root: Path, _points: int, dice: random.Random) -> Iterator[str]:
    """A rank that is stopped dead (SIGSTOP), as one that waits for a disk that does not answer."""
    job = begin(shards, root, "hung", restarts=1, hang_seconds=10)
    moment, rank = dice.randint(2, STEPS - 6), dice.randrange(2)
    wait_until(lambda: job.last_step() >= moment, job)
    reached = job.last_step()
    os.kill(processes_of(job.process)[rank], signal.SIGSTOP)
    stopped = time.monotonic()
    wait_until(lambda: "no progress for" in job.log(), job)
    seen = time.monotonic() - stopped
    wait_until(lambda: job.last_step() > reached + 1, job)
    again = time.monotonic() - stopped
    yield said(job, "no progress")
    yield f"rank {rank} stopped after step {reached}, said after {seen:.0f} s, new steps after {again:.0f} s"
    yield same_end(job.folder, root, job)


def full_disk(shards: Path, root: Path, *_: Any) -> Iterator[str]:
    """The run's folder on a file system of 12 MB: the third checkpoint does not fit. Needs the right to mount."""
    disk = root / "small-disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(disk)], check=False).returncode:
        yield "not tried: no right to mount"
        return
    try:
        job = begin(shards, root, "disk", output=str(disk / "run"))
        job.folder = disk / "run"
        status = job.process.wait()
        there = [path.name for path in list_checkpoints(job.folder)]
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        job.process = start_ranks(job.config, "--resume")
        again = job.process.wait()
        yield said(job, "No space")
        yield f"status {status}, left {', '.join(there)}; with room, --resume: {again}"
        yield same_end(job.folder, root)
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def replaced_shard(shards: Path, root: Path, _points: int, dice: random.Random) -> Iterator[str]:
    """A shard that gets other bytes of the same length in the middle of a run, then its own again; by both read plans.

    Memory for one of the two videos, so that the plan `resident` reads all the time, too.
    """
    tar = next(shards.glob("*.tar"))
    own = tar.read_bytes()
    for plan in ("frame", "resident"):
        job = begin(shards, root, f"replaced-{plan}", *reading_words(plan, tar))
        moment = dice.randint(2, STEPS - 6)
        wait_until(lambda: job.last_step() >= moment, job)  # noqa: B023 - called at once
        try:
            with tar.open("r+b") as file:  # in place: open descriptors see it
                file.write(bytes(byte ^ 0x55 for byte in own))
            status = job.process.wait()
        finally:
            with tar.open("r+b") as file:
                file.write(own)
        reached, newest = job.last_step(), newest_step(job.folder)
        job.process = start_ranks(job.config, "--resume", *reading_words(plan, tar))
        yield said(job, "CRC-32")
        yield f"{plan}: replaced after step {moment}, status {status} after step {reached}, {reached - newest} lost"
        yield same_end(job.folder, root, job)


def remote_reads(shards: Path, root: Path, _points: int, dice: random.Random) -> Iterator[str]:
    """Shards on a web server that fails one request in eight, then on one that goes away; by both read plans."""
    tar = next(shards.glob("*.tar"))
    failing = 'if ($request_id ~ "^[01]") { return 503; } limit_rate 200k;'
    for plan in ("frame", "resident"):
        with nginx_server(shards.parent, make_folder(root / f"nginx-{plan}"), directives=failing) as (url, log):
            words = [f"stages.0.data.0.path={url}/{shards.name}", *reading_words(plan, tar)]
            job = begin(shards, root, f"failing-{plan}", *words, hang_seconds=300)
            status = job.process.wait()
            answers = [line.split()[1] for line in log.read_text().splitlines()]
        yield f"{plan}: {answers.count('503')} of {len(answers)} requests refused, status {status}"
        yield same_end(job.folder, root)
        moment = dice.randint(2, STEPS - 8)
        with nginx_server(shards.parent, make_folder(root / f"nginx-gone-{plan}")) as (url, _):
            words = [f"stages.0.data.0.path={url}/{shards.name}", *reading_words(plan, tar)]
            job = begin(shards, root, f"gone-{plan}", *words, hang_seconds=300)  # it is asked for two minutes
            wait_until(lambda: job.last_step() >= moment, job)  # noqa: B023 - called at once
        gone = time.monotonic()
        status = job.process.wait()
        reached, newest = job.last_step(), newest_step(job.folder)
        yield said(job, url)
        end = f"status {status} {time.monotonic() - gone:.0f} s later after step {reached}, {reached - newest} lost"
        yield f"{plan}: server gone after step {moment}; {end}"
        job.process = start_ranks(job.config, "--resume")
        yield same_end(job.folder, root, job)


def reading_words(plan: str, tar: Path) -> list[str]:
    """Overrides for a read plan; memory for less than all videos."""
    return [f"reading.plan={plan}", f"reading.memory={tar.stat().st_size * 6 // 10}"]


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def said(job: Job, part: str) -> str:
    """The first line of the job's that has this in it."""
    return next((line for line in job.log().splitlines() if part in line), f"nothing was said of {part}")


def bad_reads(shards: Path, root: Path, *_: Any) -> Iterator[str]:
    """One process whose disk gives an input/output error at the 30th read, then none; then one that is slow."""
    reads = itertools.count(1)

    class Failing(LocalFile):
        def read(self, ranges: Sequence[Range], *, fresh: bool = False) -> list[bytes]:
            if next(reads) == 30:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(ranges, fresh=fresh)

    def train_on(name: str, opener: ShardOpener) -> None:
        config = make_config(run_values(shards, root / name), source="faults")
        with mock.patch("trainers.reading_options.ReadingOptions.opener", lambda _: opener):
            train(config, resume=True)

    def failing(path: Any, _facts: object = None) -> LocalFile:
        return Failing(os.open(path, os.O_RDONLY))

    train_on("good-disk", open_shard)
    try:
        train_on("bad-disk", failing)
    except OSError as error:
        yield "; ".join([str(error), *error.__notes__])
    train_on("bad-disk", open_shard)
    train_on("slow-disk", SlowStorage(latency=0.1, bandwidth=2e4))
    waits = {
        name: [r["data_ms"] for r in reports(root / name) if "data_ms" in r] for name in ("good-disk", "slow-disk")
    }
    for name, found in waits.items():
        yield f"{name}: median data wait {statistics.median(found):.1f} ms"
    for name in ("bad-disk", "slow-disk"):
        assert_equal_states(root / name / f"checkpoint-{STEPS}.pt", root / "good-disk" / f"checkpoint-{STEPS}.pt")
    yield "the same ends, bit for bit"


def reports(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_journal(folder) if record["kind"] == "report"]


def same_end(folder: Path, root: Path, job: Job | None = None) -> str:
    if job is not None:
        job.process.wait()
    name = f"checkpoint-{STEPS}.pt"
    try:
        assert_equal_states(folder / name, root / "undisturbed" / name)
    except (AssertionError, ValueError, OSError) as error:
        return f"NOT the same end: {error}"
    return "the same end, bit for bit"


FAULTS: dict[str, Callable[[Path, Path, int, random.Random], Iterator[str]]] = {
    "rank-kills": rank_kills,
    "job-kills": job_kills,
    "hung-rank": hung_rank,
    "full-disk": full_disk,
    "replaced-shard": replaced_shard,
    "bad-reads": bad_reads,
    "remote-reads": remote_reads,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", nargs="*", help=f"of {', '.join(FAULTS)} (default: all)")
    parser.add_argument("--points", type=int, default=5, help="random moments of the kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    global STEPS  # noqa: PLW0603 - of this run of the script
    STEPS = max(STEPS, STEPS_PER_POINT * options.points)
    with tempfile.TemporaryDirectory(prefix="vosforge-faults-") as folder:
        root = Path(folder)
        shards = build_shards(root / "data")
        begin(shards, root, "undisturbed").process.wait()
        for name in options.faults or FAULTS:
            started = time.monotonic()
            for row in FAULTS[name](shards, root, options.points, random.Random(options.seed)):
                print(f"{name}: {row}", flush=True)
            print(f"{name}: {time.monotonic() - started:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
