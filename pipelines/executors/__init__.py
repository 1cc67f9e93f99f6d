"""Executors turn encoded clips into pixels; each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipelines.types import Executor

INSTALL_DALI = "install one of the extras cuda110, cuda120, cuda130 (make does), or choose the cpu executor"


def make_executor(name: str, *, threads: int = 1, device: torch.device | str = "cpu") -> Executor:
    """The executor of that name.

    threads: CPU threads it may use. device: where its pixels end up; `cpu` and `paper` work on the CPU and leave the
    copy to `assembly.assemble`, `dali` works on the device. Raises ValueError for an unknown name or threads < 1,
    ModuleNotFoundError that says what to install where DALI is missing.
    """
    if name not in EXECUTORS:
        raise ValueError(f"unknown executor {name!r}; there are: {', '.join(EXECUTORS)}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return EXECUTORS[name](threads, torch.device(device))


def _make_cpu(threads: int, _device: torch.device) -> Executor:
    from pipelines.executors.cpu import CpuExecutor  # noqa: PLC0415 - only the executor in use is imported

    return CpuExecutor(threads=threads)


def _make_paper(threads: int, _device: torch.device) -> Executor:
    from pipelines.executors.paper import PaperExecutor  # noqa: PLC0415

    return PaperExecutor(threads=threads)


def _make_dali(threads: int, device: torch.device) -> Executor:
    try:
        from pipelines.executors.dali import DaliExecutor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the dali executor needs NVIDIA DALI ({error}); {INSTALL_DALI}") from error
    return DaliExecutor(threads=threads, device=device)


EXECUTORS: dict[str, Callable[[int, torch.device], Executor]] = {
    "cpu": _make_cpu,
    "dali": _make_dali,
    "paper": _make_paper,
}
