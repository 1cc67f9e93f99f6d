"""What every tool shares: exit statuses and one clear line instead of a traceback."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

BAD_DATA = 1
BAD_USAGE = 2
INTERRUPTED = 130
OUTPUT_CLOSED = 141
TERMINATED = 143

TEXT_WIDTH = 110
"""Characters of a line where tools print sentences."""

_STORE_CLIENTS = frozenset({"aiobotocore", "aiohttp", "botocore", "gcsfs", "google"})
_STORE_REMEDY = "see that the store is reached and that its client has credentials (AWS_PROFILE, AWS_ENDPOINT_URL, ...)"


class Parser(argparse.ArgumentParser):
    """ArgumentParser whose errors are one line: what was wrong and where the help is."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(BAD_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, where a tool takes it as Ctrl-C."""


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM in this block, as batch systems and `kill` send it, ends a tool as Ctrl-C does: in order, with a word."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise TerminatedError


def output_file(word: str) -> Path:
    """For `type=`: a file to be written. Its folder is made now: what cannot be written is told before long work."""
    path = Path(word)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{word} is a folder, expected the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{word} cannot be written: {error}") from error
    return path


def run(tool: Callable[[list[str]], int], arguments: list[str] | None = None) -> NoReturn:
    """Run `tool(arguments)` and exit with its status.

    ValueError, OSError, ModuleNotFoundError (bad data, bad paths, an extra not installed) and what the clients of
    object stores raise become one line and status 1; an exception whose class sets `exit_status` uses that
    (ConfigError: 2); Ctrl-C gives 130, SIGTERM 143 where a tool takes it. Anything else is our defect and keeps its
    traceback. VOSFORGE_TRACEBACK=1 shows the traceback always.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name = Path(sys.argv[0]).name  # run as a file, the tool's module is called __main__
    try:
        status = tool(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output (head, less) has gone. Not by SIGPIPE's default, which would also end the tool without
        # a word when one of its worker processes dies.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = OUTPUT_CLOSED
    except KeyboardInterrupt as error:
        by, status = ("SIGTERM", TERMINATED) if isinstance(error, TerminatedError) else ("Ctrl-C", INTERRUPTED)
        print(f"\n{name}: stopped by {by}{_notes(error)}", file=sys.stderr)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("VOSFORGE_TRACEBACK"):
            raise
        print(f"{name}: {_words(error)}{_notes(error)}", file=sys.stderr)
        status = int(getattr(error, "exit_status", BAD_DATA))
    except Exception as error:
        if not is_store_error(error) or os.environ.get("VOSFORGE_TRACEBACK"):
            raise
        print(f"{name}: {error}; {_STORE_REMEDY}{_notes(error)}", file=sys.stderr)
        status = BAD_DATA
    sys.exit(status)


def is_store_error(error: BaseException) -> bool:
    """Whether the client of an object store or web server raised it; theirs are no OSErrors."""
    return type(error).__module__.partition(".")[0] in _STORE_CLIENTS


def _words(error: Exception) -> str:
    """What is wrong; of a file where a folder is to be made, which the system calls "File exists", in our words."""
    if isinstance(error, FileExistsError) and error.filename is not None:
        return f"{error.filename}: expected a folder or nothing, found a file; give another path, or move the file"
    return str(error)


def _notes(error: BaseException) -> str:
    return "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
