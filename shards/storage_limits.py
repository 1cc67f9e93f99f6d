"""What is physically there: the disk or network that a path lies on, and what this machine's memory and cores allow."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shards.shard_files import LocalFile
from shards.storage.paths import Location

_NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "gpfs", "beegfs", "glusterfs"})
_SAMPLE, _PIECE = 8 << 20, 128 << 10
"""Bytes looked at, in pieces of about a frame."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One wall. bytes_per_second: None where it is not known."""

    name: str
    bytes_per_second: float | None
    note: str


def storage_limits(path: Location) -> list[Limit]:
    """Walls of reading from `path`: its device or network, memory, checksums of one core."""
    if not isinstance(path, Path):
        return [_network(), _memory(), _checksums()]
    source, kind = _mount(path)
    number = path.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    network = [_network()] if kind in _NETWORK_FILE_SYSTEMS else []
    return [device_limit(f"{kind} on {source}", device), *network, _memory(), _checksums()]


def device_limit(name: str, device: Path) -> Limit:
    """What a block device can give by its own account. device: its folder of /sys/dev/block, which may not exist."""
    if not device.exists():
        return Limit(name, None, "no block device of this machine: a network or memory file system")
    queue = next((each / "queue" for each in (device, device.resolve().parent) if (each / "queue").is_dir()), None)
    if queue is None:
        return Limit(name, None, "a block device that does not say what it is")
    if device.resolve().name.startswith("vd"):
        return Limit(name, None, "a virtual disk: what is behind it cannot be seen; its speed is what is measured here")
    if (queue / "rotational").read_text(encoding="ascii").strip() == "1":
        return Limit(name, 150e6, "a disk that turns, as they usually are; about 8 ms for each seek")
    link = _pcie_rate(device.resolve())
    if link is not None:
        return Limit(name, link, "a solid-state disk: what its PCIe link can carry")
    return Limit(name, None, "a solid-state disk; its speed is what is measured here")


def _pcie_rate(device: Path) -> float | None:
    """Bytes per second of the link that an NVMe disk hangs on; None for other disks and links that do not say."""
    if not device.name.startswith("nvme"):
        return None
    card = next((each for each in device.parents if (each / "current_link_speed").is_file()), None)
    if card is None:
        return None
    speed = (card / "current_link_speed").read_text(encoding="ascii").split()  # such as "16.0 GT/s PCIe"
    width = (card / "current_link_width").read_text(encoding="ascii").strip()
    if speed[1:2] != ["GT/s"] or not width.isdecimal() or int(width) == 0:
        return None
    transfers = float(speed[0]) * 1e9
    coding = 0.8 if transfers < 8e9 else 128 / 130  # PCIe up to 2.0, and since 3.0
    return transfers * coding * int(width) / 8


def _mount(path: Path) -> tuple[str, str]:
    """(source, file system) of the mount that a path lies in."""
    absolute = path.resolve()
    best = ("", "unknown", "unknown")
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        source, point, kind = line.split()[:3]
        if absolute.is_relative_to(point) and len(point) > len(best[0]):
            best = point, source, kind
    return best[1], best[2]


def _network() -> Limit:
    fastest = 0
    for card in Path("/sys/class/net").glob("*/speed"):
        try:
            fastest = max(fastest, int(card.read_text(encoding="ascii")))
        except OSError:
            continue  # cards that are down or virtual do not say
    if fastest <= 0:
        return Limit("network", None, "the network cards of this machine do not say how fast they are")
    return Limit("network", fastest * 1e6 / 8, "the fastest network card of this machine")


def _memory() -> Limit:
    """Reading what the kernel holds in memory, with one thread."""
    descriptor = os.memfd_create("storage-limits")
    file = LocalFile(descriptor)  # closes it
    os.pwrite(descriptor, bytes(_SAMPLE), 0)
    pieces = [(start, _PIECE) for start in range(0, _SAMPLE, _PIECE)]
    seconds = min(_timed(lambda: [file.read([piece]) for piece in pieces]) for _ in range(3))
    return Limit("memory", _SAMPLE / seconds, "a file in the page cache, one thread: no disk is faster")


def _checksums() -> Limit:
    data = bytes(_SAMPLE)
    seconds = min(_timed(lambda: zlib.crc32(data)) for _ in range(3))
    return Limit("CRC-32", len(data) / seconds, "of all that is used, by one core")


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
