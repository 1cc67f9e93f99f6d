"""The one exception for bad data, with everything a person needs to mend it."""

from __future__ import annotations


class DataError(ValueError):
    """Bad data at a known place.

    path: file or folder at fault, or its URL; expected / found: what should be there and what is; remedy: what to do.
    `str()` gives one line with all four, which tools print before they exit with status 1.
    """

    def __init__(self, path: object, *, expected: str, found: str, remedy: str) -> None:
        super().__init__(f"{path}: expected {expected}, found {found}; {remedy}")
        self.path = str(path)
        self.expected = expected
        self.found = found
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments do not survive the trip out of a worker process by themselves.
        return _rebuild, (self.path, self.expected, self.found, self.remedy)


def _rebuild(path: str, expected: str, found: str, remedy: str) -> DataError:
    return DataError(path, expected=expected, found=found, remedy=remedy)
