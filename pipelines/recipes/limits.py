"""Which numbers the fields of a recipe may hold, and one message for those that they may not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.order.curriculum import Table


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


def table_of(name: str, rows: Any, limits: Limits) -> Table:
    """A field that is a table, or rows of one as YAML gives them; ValueError, naming it, for values that do not fit."""
    try:
        table = rows if isinstance(rows, Table) else Table(rows)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    for _, value in table.rows:
        check_numbers(name, int(value) if limits.whole and value == int(value) else value, limits)
    return table


def set_checked(recipe: object, limits: Mapping[str, Limits], *, optional: tuple[str, ...] = ()) -> None:
    """Set each named field of a frozen recipe to its value as `check_numbers` returns it.

    A field `size` may be one number, for a square. optional: fields that None switches off.
    """
    for name, allowed in limits.items():
        value = getattr(recipe, name)
        if name == "size" and isinstance(value, int):
            value = (value, value)
        if value is not None or name not in optional:
            object.__setattr__(recipe, name, check_numbers(name, value, allowed))


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """ValueError, naming the field and the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_flags(recipe: object, names: tuple[str, ...]) -> None:
    """ValueError, naming the field, unless each of these fields is true or false."""
    for name in names:
        if not isinstance(getattr(recipe, name), bool):
            raise ValueError(f"{name} must be true or false, got {getattr(recipe, name)!r}")
