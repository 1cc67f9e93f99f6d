"""Whose turn it is, for parts that share turns in exact proportion, though the proportions change on the way."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import NamedTuple


class Phase(NamedTuple):
    """Integer weights >= 0, one of each part and not all 0, from `first` on: a turn, or a step of a stage."""

    first: int
    weights: tuple[int, ...]


class Turns:
    """Which part takes which turn; nothing here has state. phases: in order, the first at turn 0.

    What a part is due grows by weight / total at each turn: a line that bends where the weights change. The first part
    has had the whole part of its due, so in every window of turns, across any number of changes, its count is less than
    one from what is due. The turns it leaves, counted anew, are divided among the other parts in the same way. A part
    of weight 0 has no turn, and nothing is made up for when its weight changes again.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        starts = [phase.first for phase in phases]
        left = [sum(phase.weights) for phase in phases]
        if starts[0] != 0 or min(left) < 1 or min(min(phase.weights) for phase in phases) < 0:
            raise ValueError(f"phases begin at turn 0, with weights of at least 0 and not all 0, got {list(phases)}")
        self._lines: list[_Line] = []
        for weights in zip(*(phase.weights for phase in phases), strict=True):
            line = _Line(starts, weights, left)
            starts = [start - line.whole(start) for start in starts]
            left = [rest - weight for rest, weight in zip(left, weights, strict=True)]
            self._lines.append(line)

    def take(self, number: int) -> tuple[int, int]:
        """(which part takes turn `number`, how many turns it had before)."""
        for part, line in enumerate(self._lines):
            before = line.whole(number)
            if line.whole(number + 1) > before:
                return part, before
            number -= before
        raise AssertionError("the last part takes every turn that is left")

    def counts(self, number: int) -> tuple[int, ...]:
        """How many of the first `number` turns each part has."""
        found = []
        for line in self._lines:
            found.append(line.whole(number))
            number -= found[-1]
        return tuple(found)


class _Line:
    """What one part is due: a line through 0 whose slope is weight / left from each start on.

    starts: ascending; equal ones, where no turn of a phase is left for this part, make no difference. left: by start,
    the weights of this part and all after it, 0 where it has no turn to take.
    """

    def __init__(self, starts: Sequence[int], weights: Sequence[int], left: Sequence[int]) -> None:
        slopes = [Fraction(weight, rest) if rest else Fraction(0) for weight, rest in zip(weights, left, strict=True)]
        self._starts = starts
        # All in units of one over the common denominator: the sums of thousands of steps stay exact.
        self._unit = lcm(*(slope.denominator for slope in slopes))
        self._slopes = [int(slope * self._unit) for slope in slopes]
        self._due = [0]
        for row, slope in enumerate(self._slopes[:-1]):
            self._due.append(self._due[-1] + slope * (starts[row + 1] - starts[row]))

    def whole(self, number: int) -> int:
        """What is due after `number` turns, its fraction dropped."""
        row = bisect_right(self._starts, number) - 1
        return (self._due[row] + self._slopes[row] * (number - self._starts[row])) // self._unit
