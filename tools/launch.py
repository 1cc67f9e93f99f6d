"""Start one process per GPU: torchrun with its arguments, our exit statuses, and one line instead of its tracebacks.

`tools/launch.py --standalone --nproc-per-node=2 tools/train.py CONFIG --resume`. Status 0: finished; 75: stopped (a
signal or --max-time), to be started again with --resume; otherwise that of the first process that failed.
"""

from __future__ import annotations

if __name__ == "__main__":
    import os
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; torchrun takes it over
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: os._exit(75))  # nothing has begun: STOPPED_STATUS
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # for a lost connection torch's C++ prints 20 lines of frames

import io
import logging
import os
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from types import FrameType
from typing import NoReturn

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousError
from torch.distributed.run import determine_local_world_size, get_args_parser, parse_min_max_nnodes
from torch.distributed.run import run as launch

from tools.argument_types import UsageError
from tools.cli import BAD_DATA, BAD_USAGE, run
from trainers.running.distributed import FRESH_STORE_VARIABLE
from trainers.running.stopping import (
    ENDING_VARIABLE,
    INTERRUPTED_STATUS,
    LAUNCHER_VARIABLE,
    STARTED_VARIABLE,
    STOPPED_STATUS,
)

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""Passed on to the processes. torchrun alone dies of SIGUSR1, with which Slurm gives notice."""

SECONDS_TO_SAVE = 120
"""Between a signal and SIGKILL; torchrun's own 30 may be less than a step and a checkpoint take."""


def main() -> None:
    """Console script."""
    run(launch_tool)


def launch_tool(arguments: list[str]) -> int:
    """Launch and wait; returns the exit status."""
    options = _parse(arguments)
    options.signals_to_handle = options.signals_to_handle or SIGNALS
    if options.shutdown_timeout is None:
        options.shutdown_timeout = SECONDS_TO_SAVE
    for name in signal.Signals.__members__.keys() & options.signals_to_handle.split(","):
        signal.signal(signal.Signals[name], _stop)  # torchrun takes them over when the launchers have met
    logging.disable(logging.ERROR)  # what torchrun says of failures and signals follows below, in a line
    if os.environ.get("TORCH_CPP_LOG_LEVEL") == "FATAL":
        del os.environ["TORCH_CPP_LOG_LEVEL"]  # the processes' words are wanted
    os.environ[FRESH_STORE_VARIABLE] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's choice, without its warning; the config says threads
    with tempfile.TemporaryDirectory(prefix="vosforge-launch-") as folder:
        ending = Path(folder) / "status"
        os.environ[ENDING_VARIABLE], os.environ[LAUNCHER_VARIABLE] = str(ending), str(os.getpid())
        os.environ[STARTED_VARIABLE] = str(time.monotonic())
        try:
            launch(options)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            print(f"launch.py: rank {rank} {_describe(failure)}", file=sys.stderr)
            return failure.exitcode if failure.exitcode > 0 else BAD_DATA
        except RendezvousConnectionError:
            place = f"{options.rdzv_endpoint}, where the launchers meet"
            print(f"launch.py: no connection to {place}; see what was said there", file=sys.stderr)
            return BAD_DATA
        except RendezvousError as error:
            print(f"launch.py: the launchers cannot meet at {options.rdzv_endpoint} ({error})", file=sys.stderr)
            return BAD_DATA
        except SignalException as error:
            stopped = INTERRUPTED_STATUS if error.sigval == signal.SIGINT else STOPPED_STATUS
            return int(ending.read_text()) if ending.exists() else stopped
        return int(ending.read_text()) if ending.exists() else 0


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    raise SignalException(f"got signal {number}", sigval=signal.Signals(number))


def _describe(failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"was killed by {signal.Signals(-failure.exitcode).name}"
    return f"ended with status {failure.exitcode}"


def _parse(arguments: list[str]) -> Namespace:
    """torchrun's own arguments; their errors as one line."""
    parser = get_args_parser()
    parser.prog, parser.description = "launch.py", __doc__
    parser.set_defaults(signals_to_handle=None)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            options = parser.parse_args(arguments)
    except SystemExit as stop:
        if stop.code:
            print(f"{said.getvalue().strip().splitlines()[-1]} (see launch.py --help)", file=sys.stderr)
            raise SystemExit(BAD_USAGE) from None
        raise
    _require_counts(options)
    return options


def _require_counts(options: Namespace) -> None:
    """Raise UsageError for counts of nodes and processes that torchrun would find wrong only when it launches."""
    checks: tuple[tuple[str, str, Callable[[str], object]], ...] = (
        ("--nnodes", options.nnodes, parse_min_max_nnodes),
        ("--nproc-per-node", options.nproc_per_node, determine_local_world_size),
    )
    for name, value, check in checks:
        try:
            check(value)
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"argument {name}: {value!r} does not do here: {error} (see launch.py --help)") from None


if __name__ == "__main__":
    main()
