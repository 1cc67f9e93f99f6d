"""The space-time memory: the reader, and the banks that decide what is in memory."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

BankMode = Literal["two-frames-compress", "gt-compress", "last-compress", "compress", "two-frames", "gt", "last", "stm"]
BANK_MODES: tuple[BankMode, ...] = get_args(BankMode)


def read_memory(memory_key: Tensor, memory_value: Tensor, query_key: Tensor, *, top_k: int | None = None) -> Tensor:
    """Weighted sum of memory values for each query position; one affinity serves all objects.

    memory_key (B, C, T, h, w), memory_value (B, O, D, T, h, w), query_key (B, C, h', w'), all float; T*h*w = M
    positions. Returns (B, O, D, h', w'). Softmax over the M positions, or over the top_k most similar of them. The
    similarity and its softmax are float32 under autocast too. Raises ValueError if top_k > M.
    Source: STCN, Cheng et al. 2021 (negative squared distance); top-k as in MiVOS, Cheng et al. 2021.
    """
    weights = affinity(memory_key.flatten(2), query_key.flatten(2), top_k=top_k)  # (B, h'*w', M)
    values = memory_value.flatten(3).flatten(1, 2)  # (B, O*D, M)
    readout = values @ weights.transpose(1, 2).to(values.dtype)  # (B, O*D, h'*w')
    return readout.unflatten(1, memory_value.shape[1:3]).unflatten(3, query_key.shape[2:])


def affinity(memory_key: Tensor, query_key: Tensor, *, top_k: int | None = None) -> Tensor:
    """Softmax over memory positions m of (2 k_m.q_p - |k_m|^2) / sqrt(C).

    memory_key (B, C, M), query_key (B, C, P); returns (B, P, M).
    |q|^2 is left out: it is the same for all m. With top_k, weights outside the top_k largest of M are 0.
    """
    num_channels, num_positions = memory_key.shape[1:]
    if top_k is not None and not 1 <= top_k <= num_positions:
        raise ValueError(
            f"top_k is {top_k}, expected 1 to {num_positions} (the positions in memory), or None for all of them"
        )
    scale = num_channels**-0.5
    with torch.autocast(memory_key.device.type, enabled=False):
        memory_key, query_key = memory_key.float(), query_key.float()
        squared_norm = memory_key.square().sum(1, keepdim=True)  # (B, 1, M)
        similarity = torch.baddbmm(
            squared_norm, query_key.transpose(1, 2), memory_key, beta=-scale, alpha=2 * scale
        )  # (B, P, M)
        if top_k is None:
            return similarity.softmax(2)
        nearest, positions = similarity.topk(top_k, dim=2)
        return torch.zeros_like(similarity).scatter(2, positions, nearest.softmax(2))


class RecurrentReader(Protocol):
    """What a bank needs of its model; `models.rde.Rde` documents both methods."""

    def compress(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]: ...

    def read(
        self, memory_key: Tensor, memory_value: Tensor, query_key: Tensor, thin: Tensor, *, top_k: int | None = None
    ) -> Tensor: ...


class Entry(NamedTuple):
    """Memory of one or more frames: key (B, 64, T, h, w), value (B, O, 512, T, h, w)."""

    key: Tensor
    value: Tensor


class _Layout(NamedTuple):
    first_copies: int
    slots: tuple[str, ...]


# What is read before the first update after the first frame (copies of it), and what is read afterwards. Three modes
# hold the first frame TWICE at times, as the published results do. That doubles its softmax mass, and top-k counts both
# copies: k = 40 may reach only 20 of its positions. Adding ln 2 to the logits of one copy is equal for k = all only.
_LAYOUTS: dict[BankMode, _Layout] = {
    "two-frames-compress": _Layout(2, ("compressed", "last", "first", "first")),
    "gt-compress": _Layout(2, ("compressed", "first")),
    "last-compress": _Layout(1, ("compressed", "last")),
    "compress": _Layout(1, ("compressed",)),
    "two-frames": _Layout(1, ("last", "first", "first")),
    "gt": _Layout(1, ("first",)),
    "last": _Layout(1, ("last",)),
    "stm": _Layout(1, ("first", "later")),
}


FIRST_TWICE: frozenset[BankMode] = frozenset(
    mode for mode, layout in _LAYOUTS.items() if max(layout.first_copies, layout.slots.count("first")) > 1
)
"""Modes whose memory holds two copies of the first frame at times."""


class MemoryBank:
    """Memory of one video: constant size in every mode but `stm`, which keeps every memorised frame.

    One bank holds all objects of a video that start together (they share the key); objects that start later need
    banks of their own. Slots: `first` (the frame whose mask is given), `last` (the latest memorised frame, not the
    previous one), `compressed` (the recurrent embedding), `later` (all frames after the first). Holds tensors only,
    on the model's device; gradients flow unless the caller turns them off. top_k: memory positions read per query
    position, all of them while there are fewer; None for all. first_frame_once: one copy of the first frame in the
    modes that hold two.
    Source: RDE, Li et al. 2022; the modes are those of its evaluation program.
    """

    def __init__(
        self,
        model: RecurrentReader,
        mode: BankMode = "two-frames-compress",
        top_k: int | None = None,
        *,
        first_frame_once: bool = False,
    ) -> None:
        if mode not in _LAYOUTS:
            raise ValueError(f"unknown bank mode {mode!r}; choose one of {', '.join(BANK_MODES)}")
        self._model = model
        layout = _LAYOUTS[mode]
        self._layout = _Layout(1, tuple(dict.fromkeys(layout.slots))) if first_frame_once else layout
        self._top_k = top_k
        self._slots: dict[str, Entry] = {}
        self._memory: Entry | None = None

    @property
    def num_frames(self) -> int:
        """Frames that `read` sees now (T of the memory), copies counted; 0 before the first update."""
        return 0 if self._memory is None else self._memory.key.shape[2]

    def update(self, key: Tensor, value: Tensor) -> None:
        """Memorise one frame: key (B, 64, 1, h, w), value (B, O, 512, 1, h, w). The first call sets the first frame."""
        new = Entry(key, value)
        if not self._slots:
            self._slots = {"first": new}
            self._memory = _joined([new] * self._layout.first_copies)
            return
        for slot in set(self._layout.slots) - {"first"}:
            self._slots[slot] = self._updated(slot, new)
        self._memory = _joined([self._slots[slot] for slot in self._layout.slots])

    def read(self, query_key: Tensor, thin: Tensor) -> Tensor:
        """Decoder input (B, O, 1024, h, w) of a query frame: key (B, 64, h, w), thin features (B, 512, h, w)."""
        if self._memory is None:
            raise ValueError("the memory bank is empty; call update() with the first frame before read()")
        num_positions = self._memory.key.shape[2:].numel()
        top_k = None if self._top_k is None else min(self._top_k, num_positions)
        return self._model.read(self._memory.key, self._memory.value, query_key, thin, top_k=top_k)

    def _updated(self, slot: str, new: Entry) -> Entry:
        if slot == "compressed":
            old = self._slots.get(slot, self._slots["first"])
            return Entry(*self._model.compress(*_joined([old, new])))
        if slot == "later" and slot in self._slots:
            return _joined([self._slots[slot], new])
        return new


def _joined(entries: list[Entry]) -> Entry:
    """One entry with the frames of all, in order."""
    keys, values = zip(*entries, strict=True)
    return Entry(torch.cat(keys, 2), torch.cat(values, 3))
