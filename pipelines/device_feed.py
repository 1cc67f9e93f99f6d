"""Batches onto a GPU beside the work it does: a stream for the loading thread, and pinned buffers that take turns.

Without a stream of its own the loading thread would queue copies and first-mask damage behind the training step, on the
stream that all threads share. Not yet run on a GPU; the order of events is tested with stand-ins.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar, cast

import torch

Record = TypeVar("Record")

NUM_BUFFERS = 2
"""One being copied to the device while the next one is filled."""


class DeviceFeed(Protocol):
    """How one thread makes what another one uses."""

    def working(self) -> AbstractContextManager[Any]:
        """The loading thread makes batches inside of this."""

    def upload(self, pixels: Record) -> Record:
        """The record (a dataclass) with its tensors on the device, from page-locked memory. In the loading thread."""

    def finish(self) -> Any:
        """A mark after all that was queued for a batch; for `receive`. In the loading thread."""

    def receive(self, mark: Any, *records: Any) -> None:
        """Let what the calling thread queues from now on wait for the mark, and own the records' tensors."""


def make_feed(device: torch.device | str | None) -> DeviceFeed:
    """The feed of a device; None and CPUs have nothing to wait for."""
    if device is None or torch.device(device).type != "cuda":
        return NoFeed()
    return CudaFeed(torch.device(device))


class NoFeed:
    """Both threads work on the CPU."""

    def working(self) -> AbstractContextManager[Any]:
        """Nothing to set."""
        return nullcontext()

    def upload(self, pixels: Record) -> Record:
        """They are there."""
        return pixels

    def finish(self) -> Any:
        """Nothing to wait for."""
        return None

    def receive(self, mark: Any, *records: Any) -> None:
        """Nothing to wait for."""


class CudaFeed:
    """A side stream of the device and NUM_BUFFERS sets of pinned buffers, which grow to the largest batch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers: list[dict[str, torch.Tensor]] = [{} for _ in range(NUM_BUFFERS)]
        self._copied: list[Any] = [None] * NUM_BUFFERS
        self._turn = 0

    def working(self) -> AbstractContextManager[Any]:
        """The side stream is current."""
        return cast(AbstractContextManager[Any], torch.cuda.stream(self._stream))

    def upload(self, pixels: Record) -> Record:
        """Copy through the buffers whose turn it is, after the copy out of them before last has ended."""
        tensors = {name: tensor for name, tensor in _tensors(pixels).items() if tensor.device.type == "cpu"}
        if not tensors:
            return pixels
        buffers, turn = self._buffers[self._turn], self._turn
        if self._copied[turn] is not None:
            self._copied[turn].synchronize()
        moved = {}
        for name, tensor in tensors.items():
            staged = self._staged(buffers, name, tensor).copy_(tensor)
            moved[name] = staged.to(self._device, non_blocking=True)
        self._copied[turn] = self._record()
        self._turn = (turn + 1) % NUM_BUFFERS
        return cast(Record, replace(cast(Any, pixels), **moved))

    def finish(self) -> Any:
        """An event on the side stream."""
        return self._record()

    def receive(self, mark: Any, *records: Any) -> None:
        """The current stream waits for the mark; the allocator learns that it uses the tensors, too."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(mark)
        for record in records:
            for tensor in _tensors(record).values():
                if tensor.device.type == "cuda":
                    tensor.record_stream(current)

    def _record(self) -> Any:
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def _staged(self, buffers: dict[str, torch.Tensor], name: str, tensor: torch.Tensor) -> torch.Tensor:
        flat = buffers.get(name)
        if flat is None or flat.dtype != tensor.dtype or flat.numel() < tensor.numel():
            flat = buffers[name] = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=True)
        return flat[: tensor.numel()].view(tensor.shape)


def _tensors(record: Any) -> dict[str, torch.Tensor]:
    """Fields of a dataclass that are tensors, or the record itself if it is one."""
    if isinstance(record, torch.Tensor):
        return {"": record}
    if not is_dataclass(record):
        return {}
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
