"""Values that change with the progress of a stage: learning rate, max gap, top p.

Rows of a table and a plain function of the step; no scheduler objects, nothing to save or restore.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from math import isfinite
from typing import Any

LARGEST_DENOMINATOR = 10**9


@cache
def first_step(progress: float, steps: int) -> int:
    """First step s with s >= progress * steps, in integers: no rounding decides when a value changes.

    `progress` is taken as the fraction it was meant as: 0.1 is 1/10 and 125000 / 150000 is 5/6, though neither is a
    float. That holds for decimals of up to nine places and quotients of integers up to 10**9.
    """
    fraction = Fraction(progress).limit_denominator(LARGEST_DENOMINATOR)
    return -((-fraction.numerator * steps) // fraction.denominator)


@dataclass(frozen=True)
class Table:
    """A piecewise constant function of progress. rows: (progress 0..1, value), the first at 0, progress rising.

    A row at progress 1 never applies; published tables end in one.
    """

    rows: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Take lists of lists as they come out of YAML; ValueError for rows that are no function of progress."""
        if not isinstance(self.rows, list | tuple):
            raise ValueError(f"a table is a list of rows [progress, value], got {self.rows!r}")
        object.__setattr__(self, "rows", tuple(_checked_row(row) for row in self.rows))
        if not self.rows or self.rows[0][0] != 0:
            raise ValueError(f"a table starts with a row at progress 0, got {[list(row) for row in self.rows]}")
        progress = [row[0] for row in self.rows]
        if progress[-1] > 1 or any(a >= b for a, b in pairwise(progress)):
            raise ValueError(f"progress must rise from row to row and stay within 0..1, got {progress}")

    def at(self, step: int, steps: int) -> float:
        """Value at step 0 <= step of a stage of `steps` steps; from `steps` on, the value of its last step."""
        step = min(step, steps - 1)
        if step < 0:
            raise ValueError(f"step must be at least 0 in a stage of at least one step, got {step} of {steps}")
        return next(value for progress, value in reversed(self.rows) if first_step(progress, steps) <= step)

    def switches(self, steps: int) -> tuple[tuple[int, float], ...]:
        """(first step, value) of every row that applies somewhere in a stage of `steps` steps, in order."""
        firsts = [first_step(progress, steps) for progress, _ in self.rows] + [steps]
        spans = zip(pairwise(firsts), self.rows, strict=True)
        return tuple((first, value) for (first, end), (_, value) in spans if first < min(end, steps))


def _checked_row(row: Any) -> tuple[float, float]:
    if not isinstance(row, list | tuple) or len(row) != 2 or not all(_is_finite_number(number) for number in row):
        # YAML reads 1e-5 without a dot as text; saying so here saves a long search.
        text = isinstance(row, list | tuple) and any(isinstance(number, str) for number in row)
        hint = " (write 1.0e-5, not 1e-5)" if text else ""
        raise ValueError(f"a row of a table is [progress, value], two numbers, got {row!r}{hint}")
    return float(row[0]), float(row[1])


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
