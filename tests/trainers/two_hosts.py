"""Two hosts on one machine, for a person to run again: `python -m tests.trainers.two_hosts [--cut STEP]` (root, Linux).

Each host is a network namespace with an address of its own. Host A has the shards on its disk, host B reads them from
A over HTTP. One rank on each; `--cut` takes the cable out in the middle and puts it back.
"""

from __future__ import annotations

import argparse
import http.server
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.servers import RangeServer, _Handler
from tests.trainers.small_runs import build_shards, plain_config, write_config
from trainers.records.journal import read_journal

REPOSITORY = Path(__file__).resolve().parents[2]
ADDRESSES = {"vos-a": "10.77.0.1", "vos-b": "10.77.0.2"}
PORT = 8077


def run(*words: str) -> None:
    subprocess.run(words, check=True)


def make_hosts(stack: ExitStack) -> None:
    for name in ADDRESSES:
        run("ip", "netns", "add", name)
        stack.callback(run, "ip", "netns", "del", name)
    run("ip", "link", "add", "cable-a", "netns", "vos-a", "type", "veth", "peer", "name", "cable-b", "netns", "vos-b")
    for name, address in ADDRESSES.items():
        cable = f"cable-{name[-1]}"
        on(name, "ip", "addr", "add", f"{address}/24", "dev", cable).wait()
        on(name, "ip", "link", "set", cable, "up").wait()
        on(name, "ip", "link", "set", "lo", "up").wait()


def on(host: str, *words: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(["ip", "netns", "exec", host, *words], text=True, **options)


def serve(root: Path) -> None:
    """Serve a folder on all addresses of this host until killed."""
    server = RangeServer(root)
    server.server_close()
    http.server.ThreadingHTTPServer.__init__(server, ("0.0.0.0", PORT), _Handler)
    server.serve_forever()


def start_rank(host: str, config: Path, *words: str) -> subprocess.Popen[str]:
    launcher, tool = str(REPOSITORY / "tools" / "launch.py"), str(REPOSITORY / "tools" / "train.py")
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=two-hosts"]
    meeting += [f"--rdzv-endpoint={ADDRESSES['vos-a']}:29400", f"--local-addr={ADDRESSES[host]}"]
    # Both have the name of the one machine, by which torchrun would find out who hosts the meeting.
    meeting += [f"--rdzv-conf=is_host={int(host == 'vos-a')}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"cable-{host[-1]}"}
    environment["VOSFORGE_CACHE"] = str(config.parent / f"cache-{host}")
    with (config.parent / f"{host}.log").open("a") as log:
        command = [sys.executable, launcher, *meeting, tool, str(config), "--resume", *words]
        return on(host, *command, stdout=log, stderr=log, env=environment)


def steps_of(folder: Path) -> list[int]:
    return [record["step"] for record in read_journal(folder) if record["kind"] == "report"]


def wait_for_step(folder: Path, step: int, ranks: list[subprocess.Popen[str]], seconds: float = 240) -> None:
    started = time.monotonic()
    while step > max(steps_of(folder), default=0) and time.monotonic() - started < seconds:
        if all(rank.poll() is not None for rank in ranks):
            return
        time.sleep(0.1)


def cut_the_cable(root: Path, ranks: list[subprocess.Popen[str]], remote: str, after: int) -> None:
    """Out after a step, in again when both hosts have noticed; a host whose launcher gave up is started again."""
    wait_for_step(root / "run", after, ranks)
    on("vos-a", "ip", "link", "set", "cable-a", "down").wait()
    cut = time.monotonic()
    print(f"cable out after step {max(steps_of(root / 'run'))}", flush=True)
    while time.monotonic() - cut < 60 and "no progress" not in (root / "vos-a.log").read_text():
        time.sleep(0.2)
    print(f"noticed after {time.monotonic() - cut:.0f} s", flush=True)
    on("vos-a", "ip", "link", "set", "cable-a", "up").wait()
    mended, reached = time.monotonic(), max(steps_of(root / "run"))
    while max(steps_of(root / "run"), default=0) <= reached and time.monotonic() - mended < 200:
        for number, host in enumerate(ADDRESSES):
            if ranks[number].poll() is not None:
                print(f"{host}: its launcher ended with {ranks[number].returncode}, starting it again", flush=True)
                ranks[number] = start_rank(host, root / "config.yaml", *([remote] if host == "vos-b" else []))
        time.sleep(0.5)
    print(f"new steps {time.monotonic() - mended:.0f} s after the cable was back", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cut", type=int, metavar="STEP", help="take the cable out after this step of 12")
    parser.add_argument("--plan", default="auto", help="how shards are read (default: %(default)s)")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    with tempfile.TemporaryDirectory(prefix="vosforge-hosts-") as folder, ExitStack() as stack:
        root = Path(folder)
        values = plain_config(build_shards(root / "data"), root / "run", report_every=1, hang_seconds=15)
        values["reading"] = {"plan": options.plan, "memory": 40_000}  # less than both videos take
        values["stages"][0]["steps"] = 12
        config = write_config(root / "config.yaml", values)
        make_hosts(stack)
        server = on(
            "vos-a", sys.executable, "-m", "tests.trainers.two_hosts", "--serve", str(root / "data"), cwd=REPOSITORY
        )
        stack.callback(server.kill)
        remote = f"stages.0.data.0.path=http://{ADDRESSES['vos-a']}:{PORT}/davis2017"
        ranks = [start_rank("vos-a", config), start_rank("vos-b", config, remote)]
        if options.cut is not None:
            cut_the_cable(root, ranks, remote, options.cut)
        print("statuses", [rank.wait(300) for rank in ranks], "steps", steps_of(root / "run"))
        for host in ADDRESSES:
            print(f"--- {host}\n{(root / f'{host}.log').read_text()}")


if __name__ == "__main__":
    main()
