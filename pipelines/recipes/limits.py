"""Which numbers the fields of a recipe may hold, and one message for those that they may not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Limits:
    """`length` numbers, each from low to high. whole: integers only. rising: the lower first, as in a range."""

    length: int
    low: float
    high: float = float("inf")
    whole: bool = False
    rising: bool = False

    def __str__(self) -> str:
        kind = "whole number" if self.whole else "number"
        many = f"a {kind}" if self.length == 1 else f"{self.length} {kind}s"
        span = f"of at least {self.low}" if self.high == float("inf") else f"within {self.low}..{self.high}"
        return f"{many} {span}{', the lower first' if self.rising else ''}"

    def admit(self, numbers: Any) -> bool:
        """Whether a list or tuple holds such numbers and nothing else."""
        if not isinstance(numbers, list | tuple) or len(numbers) != self.length:
            return False
        kind = int if self.whole else int | float
        # YAML's yes is an int to Python, and would make clips of one frame or of one pixel.
        typed = all(isinstance(number, kind) and not isinstance(number, bool) for number in numbers)
        in_range = typed and all(self.low <= number <= self.high for number in numbers)
        return in_range and not (self.rising and list(numbers) != sorted(numbers))


def check_numbers(name: str, value: Any, limits: Limits) -> Any:
    """The number itself if limits.length is 1, else a tuple; ValueError, naming the field, if it does not fit."""
    numbers = value if limits.length > 1 or isinstance(value, list | tuple) else [value]
    if not limits.admit(numbers):
        raise ValueError(f"{name} must be {limits}, got {value!r}")
    return numbers[0] if limits.length == 1 else tuple(numbers)
