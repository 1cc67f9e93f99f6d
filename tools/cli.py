"""What every tool shares: exit statuses and one clear line instead of a traceback."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

BAD_DATA = 1
BAD_USAGE = 2


class Parser(argparse.ArgumentParser):
    """ArgumentParser whose errors are one line: what was wrong and where the help is."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(BAD_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def run(tool: Callable[[list[str]], int], arguments: list[str] | None = None) -> NoReturn:
    """Run `tool(arguments)` and exit with its status.

    ValueError and OSError (bad data, bad paths) become one line and status 1; an exception whose class sets
    `exit_status` uses that (ConfigError: 2); Ctrl-C gives 130. Anything else is our defect and keeps its traceback.
    VOSFORGE_TRACEBACK=1 shows the traceback always.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    name = Path(sys.argv[0]).name  # run as a file, the tool's module is called __main__
    try:
        status = tool(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print(f"\n{name}: stopped by Ctrl-C", file=sys.stderr)
        status = 130
    except (ValueError, OSError) as error:
        if os.environ.get("VOSFORGE_TRACEBACK"):
            raise
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"{name}: {error}{notes}", file=sys.stderr)
        status = int(getattr(error, "exit_status", BAD_DATA))
    sys.exit(status)
