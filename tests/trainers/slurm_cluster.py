"""A Slurm cluster on one machine: each node a network namespace with its own name and address (root, Linux).

Needs slurmctld, slurmd, the client commands, munged and iproute2. Every node has this machine's cores, and GPUs that
are claimed and not there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTROL = "slurm-control"
NETWORK = "10.78.0"
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "ip")

CONFIG = """
ClusterName=paper
SlurmctldHost={control}({network}.254)
SlurmUser=root
SlurmdUser=root
AuthInfo=cred_expire=15
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmdTimeout=20
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_min_interval=200000,bf_interval=5
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""
"""cred_expire: a job that is put back into the queue waits for it, two minutes by default, before it starts again."""


@dataclass
class Cluster:
    """A running cluster; files of its daemons lie in `root`."""

    root: Path
    nodes: tuple[str, ...]

    def call(self, *words: str, **options: Any) -> str:
        """Output of a command of Slurm; raises CalledProcessError."""
        command = self.on(CONTROL, *words)
        return subprocess.run(
            command, check=True, text=True, stdout=subprocess.PIPE, env=self.environment(), **options
        ).stdout

    def on(self, host: str, *words: str) -> list[str]:
        """A command as it runs on a host, with the host's name and network."""
        setup = f'hostname {host}; mount --bind {self.root}/hosts /etc/hosts; exec "$@"'
        return ["nsenter", f"--net=/run/netns/{host}", "unshare", "--uts", "--mount", "sh", "-c", setup, "-", *words]

    def environment(self) -> dict[str, str]:
        """Of commands and daemons."""
        return {**os.environ, "SLURM_CONF": str(self.root / "slurm.conf")}

    def submit(self, script: str, folder: Path, *words: str) -> int:
        """Hand a job in as a person in `folder` would; returns its number."""
        path = folder / "job.sh"
        path.write_text(script)
        return int(self.call("sbatch", "--parsable", *words, str(path), cwd=folder))

    def jobs(self, number: int) -> list[dict[str, str]]:
        """What `scontrol show job` says of a job, or of all of its array."""
        text = self.call("scontrol", "show", "job", str(number), "--oneliner")
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in text.splitlines() if line]

    def state(self, number: int) -> str:
        """Of a job that is no array."""
        return self.jobs(number)[0]["JobState"]

    def start_node(self, node: str) -> None:
        """Its daemon."""
        (self.root / f"spool-{node}").mkdir(exist_ok=True)
        self.spawn(node, "slurmd", "-D", "-N", node)

    def stop_node(self, node: str) -> None:
        """Everything in a node's network dies at once, as by a power cut."""
        for _ in range(3):  # processes that started others meanwhile
            for pid in self.processes_of(node):
                kill(pid)

    def processes_of(self, node: str) -> list[int]:
        """Process ids of a node, as its network has them."""
        found = subprocess.run(["ip", "netns", "pids", node], check=True, text=True, stdout=subprocess.PIPE).stdout
        return [int(pid) for pid in found.split()]

    def spawn(self, host: str, *words: str) -> None:
        """A daemon; its words go to a file."""
        with (self.root / f"{words[0]}-{host}.out").open("a") as out:
            subprocess.Popen(self.on(host, *words), stdout=out, stderr=out, env=self.environment())


def missing_programs() -> list[str]:
    """What of Slurm and the system is not here."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [name for name in NEEDED if shutil.which(name, path=path) is None]


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> float:
    """Seconds until the condition held. Raises TimeoutError."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)
    return time.monotonic() - started


@contextmanager
def slurm_cluster(root: Path, num_nodes: int) -> Iterator[Cluster]:
    """A cluster of `num_nodes` nodes node1, node2 ... which claim 8 GPUs each; gone after the block."""
    nodes = tuple(f"node{number + 1}" for number in range(num_nodes))
    cluster = Cluster(root, nodes)
    lines = "\n".join(
        f"NodeName={node} NodeAddr={NETWORK}.{number + 1} CPUs={os.cpu_count()} Gres=gpu:8 State=UNKNOWN"
        for number, node in enumerate(nodes)
    )
    (root / "slurm.conf").write_text(CONFIG.format(control=CONTROL, network=NETWORK, root=root, nodes=lines))
    for number in range(8):
        (root / f"gpu{number}").touch()
    (root / "gres.conf").write_text(f"Name=gpu File={root}/gpu[0-7]\n")
    (root / "state").mkdir()
    with ExitStack() as stack:
        _make_network(cluster, stack)
        _start_munge(stack)
        for host in (CONTROL, *nodes):
            stack.callback(cluster.stop_node, host)
        cluster.spawn(CONTROL, "slurmctld", "-D")
        for node in nodes:
            cluster.start_node(node)
        wait_until(lambda: _are_idle(cluster), 60, "nodes of the cluster are idle")
        yield cluster


def _are_idle(cluster: Cluster) -> bool:
    try:
        states = cluster.call("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").split()
    except subprocess.CalledProcessError:
        return False
    return states == ["idle"] * len(cluster.nodes)


def _make_network(cluster: Cluster, stack: ExitStack) -> None:
    """Every host has a card on one bridge, and a file of all their names."""
    nodes = cluster.nodes
    addresses = {node: f"{NETWORK}.{number + 1}" for number, node in enumerate(nodes)} | {CONTROL: f"{NETWORK}.254"}
    hosts = "".join(f"{address} {name}\n" for name, address in addresses.items())
    (cluster.root / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
    for name in addresses:
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "del", name)
        _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", CONTROL, "link", "add", "bridge", "type", "bridge")
    _ip("-n", CONTROL, "addr", "add", f"{addresses[CONTROL]}/24", "dev", "bridge")
    _ip("-n", CONTROL, "link", "set", "bridge", "up")
    for name in nodes:
        peer = f"to-{name}"
        _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", peer, "netns", CONTROL)
        _ip("-n", CONTROL, "link", "set", peer, "master", "bridge", "up")
        _ip("-n", name, "addr", "add", f"{addresses[name]}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _start_munge(stack: ExitStack) -> None:
    """All hosts see one file system, so one daemon signs for all."""
    folder = Path("/run/munge")
    folder.mkdir(exist_ok=True)
    shutil.chown(folder, "munge", "munge")
    munged = subprocess.Popen(["munged", "--foreground"], user="munge", group="munge", stderr=subprocess.DEVNULL)
    stack.callback(munged.wait)
    stack.callback(munged.terminate)
    wait_until((folder / "munge.socket.2").exists, 20, "munged answers")


def kill(pid: int) -> None:
    """SIGKILL, to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
