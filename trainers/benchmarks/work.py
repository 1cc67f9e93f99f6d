"""How much work a training step is, whatever it runs on: arithmetic, and operations that a GPU would be sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

NO_WORK = frozenset({"alias", "detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty"})
"""Operations that compute nothing, beside views."""


@dataclass(frozen=True, slots=True)
class Work:
    """Of a step, its backward pass included.

    gflop: floating-point operations of convolutions and matrix products, in thousands of millions (a multiplication and
    an addition are two). operations: what a GPU is sent, at least one kernel launch each.
    """

    gflop: float
    operations: int


class _OperationCount(TorchDispatchMode):
    """Counts the operations that do more than look at a tensor in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.operations += not func.is_view and func.overloadpacket.__name__ not in NO_WORK
        return func(*args, **(kwargs or {}))


def count_work(step: Callable[[], object]) -> Work:
    """Work of one call of `step`, which must run its own backward pass."""
    with FlopCounterMode(display=False) as flops, _OperationCount() as count:
        step()
    return Work(flops.get_total_flops() / 1e9, count.operations)
