"""One process or many: who we are, what all ranks agree on, and how many threads each may use."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1

FRESH_STORE_VARIABLE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Environment variable: set to 1, torchrun gives each attempt a store of its own. Otherwise restarted processes find
the addresses of those that died in it (torch 2.13) and wait for them."""

PATIENT = timedelta(days=1)
"""How long a rank waits for others; torch's 10 and 30 minutes are less than the validation of a long video may take."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all (rank of world_size) and among those of its machine (local_rank of local_world_size)."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_first(self) -> bool:
        """True in the one process that speaks and writes files."""
        return self.rank == 0


def read_ranks(environment: Mapping[str, str]) -> Ranks:
    """What torchrun says in `environment`; one process where it says nothing."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    missing = [name for name in names if name not in environment]
    if len(missing) == len(names):
        return Ranks()
    if missing:
        raise ValueError(f"{', '.join(missing)} not set though other variables of torchrun are; start with torchrun")
    return Ranks(*(int(environment[name]) for name in names))


def end_with_launcher() -> None:
    """Get SIGTERM, which saves and stops, when the process that started this one dies; on Linux.

    torchrun gives its processes sessions of their own, so nothing else tells them, and they would hold the folder.
    """
    if sys.platform == "linux":
        launcher = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != launcher:
            os.kill(os.getpid(), signal.SIGTERM)


class DeviceError(ValueError):
    """A device that does not exist, or not here: bad usage, not bad data."""

    exit_status = 2


def choose_device(name: str, ranks: Ranks) -> torch.device:
    """`name` ("auto", "cpu", "cuda", "cuda:1", ...) as the device of this rank. Raises DeviceError if it is not there.

    "auto" is the GPU of this rank's number where there is a GPU, else the CPU; "cuda" with several ranks likewise.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise DeviceError(f"unknown device {name!r}; use auto, cpu, cuda, or cuda:1 and the like")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(f"device={name} but torch sees no GPU; use device=cpu or device=auto")
    number = int(index) if index else ranks.local_rank
    if number >= torch.cuda.device_count():
        raise DeviceError(f"device={name}: {torch.cuda.device_count()} GPUs here, none has number {number}")
    return torch.device("cuda", number)


@contextmanager
def process_group(ranks: Ranks, device: torch.device, *, watched: bool = False) -> Iterator[None]:
    """Join the other ranks for the length of the block: nccl on GPUs, gloo on CPUs, nothing for a single process.

    watched: somebody else ends ranks that hang, so that one may wait for another's long validation.
    """
    if ranks.world_size == 1:
        yield
        return
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and os.environ.get(FRESH_STORE_VARIABLE) != "1":
        logger.warning("restarts need %s=1 where torchrun was started; tools/launch.py sets it", FRESH_STORE_VARIABLE)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device, timeout=PATIENT if watched else None)
    else:
        dist.init_process_group("gloo", timeout=PATIENT if watched else None)
    try:
        yield
    finally:
        dist.destroy_process_group()


class LostRankError(OSError):
    """Another process of the job has ended or cannot be reached."""


@contextmanager
def naming_lost_ranks(ranks: Ranks) -> Iterator[None]:
    """Turn what gloo, nccl and the store say when a process is gone into one line: its own words tell the reason."""
    try:
        yield
    except RuntimeError as error:
        words = " ".join(str(error).split())
        if not (isinstance(error, dist.DistError) or "gloo" in words.lower()):
            raise
        raise LostRankError(f"{rank_name(ranks)}: another process has ended or cannot be reached ({words})") from error


def wrap(objective: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """`objective` with gradients averaged over ranks. Each rank holds an equal share, so that is the global mean.

    Only the buffers of batch norms in training mode change, and each forward pass then begins with the first rank's.
    """
    if ranks.world_size == 1:
        return objective
    # Convolutions choose the layout of their gradients; the exchange copies those that differ from the weight's.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(
        objective,
        device_ids=[device.index] if device.type == "cuda" else None,
        forward_sync_buffers=any(_updates_buffers(module) for module in objective.modules()),
        gradient_as_bucket_view=True,
    )


def _updates_buffers(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats


def sum_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """Sum of `values` over all ranks, the same on each; `values` itself for a single process."""
    if ranks.world_size > 1:
        dist.all_reduce(values)
    return values


def gather_objects(value: T, ranks: Ranks) -> list[T]:
    """`value` of every rank, in order of rank. For rare moments: it pickles."""
    if ranks.world_size == 1:
        return [value]
    values = [value] * ranks.world_size
    dist.all_gather_object(values, value)
    return values


def rank_name(ranks: Ranks) -> str:
    """This process for a reader of logs: `rank 3 on node07`."""
    return f"rank {ranks.rank} on {socket.gethostname()}"


@dataclass(frozen=True, slots=True)
class Threads:
    """CPU threads of one rank: `compute` for torch, `loading` for reading and decoding ahead."""

    compute: int
    loading: int


def share_threads(asked: int | None, ranks: Ranks, device: torch.device) -> Threads:
    """Divide the cores this process may use among the ranks of the machine, or `asked` threads for this rank.

    On a GPU all of a rank's cores load; on the CPU the model needs them too, and loading gets one in four.
    """
    cores = asked or max(1, len(os.sched_getaffinity(0)) // ranks.local_world_size)
    if device.type == "cuda":
        return Threads(compute=max(1, cores // 4), loading=cores)
    return Threads(compute=cores, loading=max(1, cores // 4))
