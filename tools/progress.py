"""How far a tool is: a bar on a terminal; in a file or a pipe, where a bar is noise, a line now and then."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import NoReturn

from tqdm import tqdm

logger = logging.getLogger(__name__)

# Between two lines where there is no terminal.
LINE_SECONDS = 30.0


class Progress:
    """Counts up to `total` of some unit. initial: done already, by an earlier run; scaled: 1.2G, not the number."""

    def __init__(self, total: int, unit: str, label: str = "", *, initial: int = 0, scaled: bool = False) -> None:
        self._total, self._unit, self._label, self._initial, self._scaled = total, unit, label, initial, scaled
        self._bar: tqdm[NoReturn] = tqdm(
            total=total, unit=unit, desc=label or None, initial=initial, unit_scale=scaled, disable=None
        )
        self._done = initial
        self._begun = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, count: int, note: str = "") -> None:
        """So much more is done. note: shown behind the rates."""
        self._done += count
        if not self._bar.disable:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            logger.info("%s", self._line(note))

    def close(self) -> None:
        """Leave the terminal to whatever comes next."""
        self._bar.close()

    def _line(self, note: str) -> str:
        rate = (self._done - self._initial) / max(1e-9, time.monotonic() - self._begun)
        left = tqdm.format_interval((self._total - self._done) / rate) if rate > 0 else "?"
        done = f"{self._amount(self._done)} of {self._amount(self._total)}"
        parts = [done, f"{self._amount(rate)}/s", note, f"eta {left}"]
        return f"{self._label}: " * bool(self._label) + ", ".join(filter(None, parts))

    def _amount(self, count: float) -> str:
        if self._scaled:
            return f"{tqdm.format_sizeof(count)}{self._unit}"
        return f"{count:.1f} {self._unit}s" if isinstance(count, float) else f"{count} {self._unit}s"
