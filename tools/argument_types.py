"""Numbers and mistakes of command lines that several tools share."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable

from tools.cli import BAD_USAGE


class UsageError(ValueError):
    """Arguments that do not go together."""

    exit_status = BAD_USAGE


def number_or(word: str) -> Callable[[str], int | str]:
    """Argument type: a positive number, or this word."""

    def parse(text: str) -> int | str:
        if text != word and not (text.isdecimal() and int(text) > 0):
            raise ArgumentTypeError(f"{text!r} is neither a positive number nor {word}")
        return text if text == word else int(text)

    return parse


def not_negative(text: str) -> float:
    """Argument type: a finite number from 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is no number from 0")
    return value
