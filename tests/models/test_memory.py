"""The memory reader against a loop over positions, and each bank mode against the list of frames it must read."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.memory import BANK_MODES, BankMode, MemoryBank, affinity, read_memory


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _weights_by_hand(keys: Tensor, query: Tensor, top_k: int) -> list[float]:
    """Softmax of -|k - q|^2 / sqrt(C) over the nearest top_k positions of keys (C, M), for one query (C)."""
    num_channels, num_positions = keys.shape
    scores = [-float((keys[:, m] - query).square().sum()) / math.sqrt(num_channels) for m in range(num_positions)]
    nearest = sorted(range(num_positions), key=lambda m: -scores[m])[:top_k]
    total = sum(math.exp(scores[m]) for m in nearest)
    return [math.exp(scores[m]) / total if m in nearest else 0.0 for m in range(num_positions)]


@pytest.mark.parametrize("top_k", [None, 5, 1])
def test_affinity_is_a_softmax_of_negative_squared_distances(top_k: int | None) -> None:
    keys, queries = _random(2, 4, 9, seed=1), _random(2, 4, 3, seed=2)
    weights = affinity(keys, queries, top_k=top_k)
    for batch in range(2):
        for position in range(3):
            expected = _weights_by_hand(keys[batch], queries[batch, :, position], top_k or 9)
            assert weights[batch, position].tolist() == pytest.approx(expected, abs=1e-6)


def test_readout_is_the_weighted_sum_of_values_for_each_object() -> None:
    key, query = _random(1, 4, 2, 3, 2, seed=1), _random(1, 4, 2, 2, seed=2)
    value = _random(1, 3, 5, 2, 3, 2, seed=3)
    readout = read_memory(key, value, query, top_k=4)
    assert readout.shape == (1, 3, 5, 2, 2)
    for row in range(2):
        for column in range(2):
            weights = torch.tensor(_weights_by_hand(key.flatten(2)[0], query[0, :, row, column], 4))
            expected = value.flatten(3)[0] @ weights
            torch.testing.assert_close(readout[0, :, :, row, column], expected, atol=1e-5, rtol=0)


def test_top_k_of_all_positions_is_the_full_softmax() -> None:
    keys, queries = _random(1, 4, 12, seed=1), _random(1, 4, 5, seed=2)
    torch.testing.assert_close(affinity(keys, queries, top_k=12), affinity(keys, queries))


def test_reading_a_stored_position_returns_its_value_when_keys_are_far_apart() -> None:
    key = 30 * torch.eye(6).view(1, 6, 1, 2, 3)
    value = _random(1, 2, 4, 1, 2, 3, seed=1)
    torch.testing.assert_close(read_memory(key, value, key[:, :, 0]), value[:, :, :, 0])


def test_more_nearest_positions_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="top_k is 7, expected 1 to 6"):
        affinity(_random(1, 4, 6, seed=1), _random(1, 4, 6, seed=2), top_k=7)
    with pytest.raises(ValueError, match="top_k is 0, expected 1 to 6"):
        affinity(_random(1, 4, 6, seed=1), _random(1, 4, 6, seed=2), top_k=0)


def test_affinity_stays_float32_under_autocast() -> None:
    keys, queries = _random(1, 8, 12, seed=1), _random(1, 8, 5, seed=2)
    expected = affinity(keys, queries)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(affinity(keys, queries), expected)


class _LabelModel:
    """Frames are single numbers; compress([a, b]) is 10a + b, so the digits tell which frames went in, in order."""

    def compress(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        assert key.shape[2] == value.shape[3] == 2
        return 10 * key[:, :, :1] + key[:, :, 1:], 10 * value[:, :, :, :1] + value[:, :, :, 1:]

    def read(
        self, memory_key: Tensor, memory_value: Tensor, query_key: Tensor, thin: Tensor, *, top_k: int | None = None
    ) -> Tensor:
        assert memory_key.flatten().tolist() == memory_value.flatten().tolist()
        return memory_key.flatten()


# What is read after memorising frame 1, frames 1-2 and frames 1-2-3; 12 stands for compress([1, 2]).
READ_FRAMES: dict[BankMode, tuple[list[int], list[int], list[int]]] = {
    "two-frames-compress": ([1, 1], [12, 2, 1, 1], [123, 3, 1, 1]),
    "gt-compress": ([1, 1], [12, 1], [123, 1]),
    "last-compress": ([1], [12, 2], [123, 3]),
    "compress": ([1], [12], [123]),
    "two-frames": ([1], [2, 1, 1], [3, 1, 1]),
    "gt": ([1], [1], [1]),
    "last": ([1], [2], [3]),
    "stm": ([1], [1, 2], [1, 2, 3]),
}


def test_every_bank_mode_is_listed() -> None:
    assert set(BANK_MODES) == set(READ_FRAMES)


@pytest.mark.parametrize("mode", BANK_MODES)
def test_a_bank_reads_the_frames_of_its_mode(mode: BankMode) -> None:
    bank = MemoryBank(_LabelModel(), mode, top_k=None)
    query = torch.zeros(1, 1, 1, 1)
    assert bank.num_frames == 0
    for frame, expected in enumerate(READ_FRAMES[mode], start=1):
        bank.update(torch.full((1, 1, 1, 1, 1), float(frame)), torch.full((1, 1, 1, 1, 1, 1), float(frame)))
        assert bank.read(query, query).tolist() == expected
        assert bank.num_frames == len(expected)


@pytest.mark.parametrize("mode", BANK_MODES)
def test_the_first_frame_can_be_held_once_in_every_mode(mode: BankMode) -> None:
    bank = MemoryBank(_LabelModel(), mode, first_frame_once=True)
    query = torch.zeros(1, 1, 1, 1)
    for frame, published in enumerate(READ_FRAMES[mode], start=1):
        bank.update(torch.full((1, 1, 1, 1, 1), float(frame)), torch.full((1, 1, 1, 1, 1, 1), float(frame)))
        expected = [read for place, read in enumerate(published) if read not in published[:place]]
        assert bank.read(query, query).tolist() == expected


def test_the_second_copy_of_the_first_frame_doubles_its_mass_but_only_for_all_positions() -> None:
    """The trap: one copy with ln 2 added equals two copies for the full softmax, and does not for top-k."""
    first, last, query = _random(1, 8, 6, seed=1), _random(1, 8, 6, seed=2), _random(1, 8, 6, seed=3)
    twice = torch.cat([last, first, first], 2)
    once = torch.cat([last, first], 2)

    masses = affinity(twice, query)
    doubled = affinity(once, query) * torch.tensor([1.0] * 6 + [2.0] * 6)
    doubled = doubled / doubled.sum(2, keepdim=True)
    torch.testing.assert_close(masses[..., 6:12] + masses[..., 12:], doubled[..., 6:])

    reached = affinity(twice, query, top_k=4)
    assert (reached > 0).sum(2).eq(4).all()
    distinct = (reached[..., :6] > 0).sum(2) + ((reached[..., 6:12] + reached[..., 12:]) > 0).sum(2)
    assert (distinct < 4).any()


def test_an_unknown_mode_and_an_empty_bank_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="unknown bank mode 'gt-last'; choose one of two-frames-compress"):
        MemoryBank(_LabelModel(), "gt-last")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the memory bank is empty"):
        MemoryBank(_LabelModel(), "stm").read(torch.zeros(1), torch.zeros(1))
