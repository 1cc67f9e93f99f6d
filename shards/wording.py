"""Counts in words, for messages."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 video`, `2 videos`. plural: where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
