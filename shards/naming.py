"""Names inside shards: escaping that survives tar and WebDataset, and the order of frames in time."""

from __future__ import annotations

import hashlib
import itertools
import re

# <video>/<frame>.video.json must fit the 100 bytes of a USTAR name field: 64 + 1 + 24 + 11.
VIDEO_NAME_LIMIT = 64
FRAME_NAME_LIMIT = 24
VIDEO_FACTS = "video.json"
_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
# Of the index's columns; names with larger numbers (time stamps) are kept as text.
_LARGEST_STEP, _LARGEST_NUMBER = 2**31 - 1, 2**62
_TRAILING_NUMBER = re.compile(r"([0-9]+)$")


def escape(name: str, limit: int) -> str:
    """Name with every byte outside [A-Za-z0-9_-] as %XX (UTF-8), at most `limit` characters.

    Injective while the result fits; a longer one is cut and gets 16 hexadecimal digits of the original's SHA-256 (the
    original name is kept beside it in the shard). Dots are escaped because WebDataset cuts a key at the first dot.
    """
    raw = name.encode()
    escaped = "".join(chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in raw)
    if len(escaped) <= limit:
        return escaped
    return f"{escaped[: limit - 17]}~{hashlib.sha256(raw).hexdigest()[:16]}"


def escape_video(name: str) -> str:
    """Folder name of a video inside the tar."""
    return escape(name, VIDEO_NAME_LIMIT)


def escape_frame(name: str) -> str:
    """Stem of a frame's members inside the tar."""
    return escape(name, FRAME_NAME_LIMIT)


def frame_number(stem: str) -> int | None:
    """Number at the end of a frame's stem (`00012` -> 12, `frame_7` -> 7), None where there is none."""
    match = _TRAILING_NUMBER.search(stem)
    return int(match.group(1)) if match else None


def smallest_step(numbers: list[int]) -> int:
    """Smallest difference of consecutive frame numbers, 1 where there are fewer than two."""
    differences = [later - earlier for earlier, later in itertools.pairwise(numbers) if later > earlier]
    return min(differences, default=1)


def number_frames(names: list[str]) -> tuple[int, int, list[str] | None]:
    """(smallest step, first number, names) of the frames of a video; names None where the numbers say it all.

    That is where they are %05d of first number, first number + step, ...
    """
    numbers = [frame_number(name) or 0 for name in names]
    step = min(smallest_step(numbers), _LARGEST_STEP)
    first = numbers[0] if numbers[0] < _LARGEST_NUMBER else 0
    regular = all(name == f"{first + step * place:05d}" for place, name in enumerate(names))
    return step, first, None if regular else names
