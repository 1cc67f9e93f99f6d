"""Train a model as a config says: `tools/train.py trainers/configs/demo.yaml stages.0.steps=100 --resume`.

Several processes: `tools/launch.py --standalone --nproc-per-node=2 tools/train.py CONFIG ...`, or torchrun.
"""

from __future__ import annotations

if __name__ == "__main__":
    import os
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over
    if "RANK" not in os.environ:  # torchrun's processes die of signals until they have found each other
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda *_: os._exit(75))  # nothing has begun: STOPPED_STATUS; train() takes them over

import atexit
import logging
import math
import os
import signal
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from tools.cli import BAD_DATA, BAD_USAGE, Parser, run
from trainers.config import Config, ConfigError, load_config
from trainers.running.distributed import LostRankError, Ranks, choose_device, end_with_launcher, read_ranks
from trainers.running.loop import Ending
from trainers.running.replay import replay
from trainers.running.stopping import (
    ENDING_VARIABLE,
    INTERRUPTED_STATUS,
    LAUNCHER_VARIABLE,
    STARTED_VARIABLE,
    STOPPED_STATUS,
)
from trainers.running.training import Outcome, Start, train

STATUSES = {Ending.FINISHED: 0, Ending.STOPPED: STOPPED_STATUS, Ending.INTERRUPTED: INTERRUPTED_STATUS}

SECONDS_TO_LET_THE_FIRST_SPEAK = 20
"""All ranks meet the same wrong config; the others are ended by torchrun before they repeat what the first has said."""


def main() -> None:
    """Console script."""
    run(train_tool)


def train_tool(arguments: list[str]) -> int:
    """Parse, train, say how it ended; returns the exit status."""
    options = _parse(arguments)
    if options.replay is not None:
        return _replay(options)
    if "RANK" in os.environ:
        end_with_launcher()
    with _failures_in_the_status_file():
        start = Start(options.resume or _is_restart(), options.force, time_left(options.max_time))
        if read_ranks(os.environ).is_first:
            outcome = _train_with_bar(load_config(options.config, options.overrides), start)
            print(_last_words(outcome))
        else:
            outcome = _train_quietly(options, start)
        return _status(outcome)


@contextmanager
def _failures_in_the_status_file() -> Iterator[None]:
    """Tell tools/launch.py of a failure by its file, as a launcher that was told to stop asks no process how it ended.

    One that has lost another leaves that to the other. Wrong usage stops the launcher: no restart would make it right.
    """
    if ENDING_VARIABLE not in os.environ:
        yield
        return
    ending = Path(os.environ[ENDING_VARIABLE])
    if read_ranks(os.environ).local_rank == 0:
        ending.unlink(missing_ok=True)  # of an attempt before this one
    try:
        yield
    except LostRankError:
        raise
    except Exception as error:
        status = getattr(error, "exit_status", BAD_DATA)
        ending.write_text(str(status))
        if status == BAD_USAGE:
            atexit.register(_stop_launcher)  # not before run() has said what is wrong
        raise


def _stop_launcher() -> None:
    if os.environ.get(LAUNCHER_VARIABLE) == str(os.getppid()):  # it may have died and left this process to the system
        os.kill(os.getppid(), signal.SIGTERM)


def _parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="train.py", description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", help="YAML file, or the name of a shipped one: rde_stage3")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="dotted, for example stages.0.steps=10"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run, if any")
    parser.add_argument(
        "--force", action="store_true", help="with --resume: although config or data differ from the checkpoint's"
    )
    parser.add_argument(
        "--max-time",
        type=duration_s,
        metavar="TIME",
        help="save and stop after 3:50:00, 230m, 3.5h or so; give the queue's limit less a few minutes",
    )
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="compute the loss of the clips of a failed step again, and no more"
    )
    options = parser.parse_intermixed_args(arguments)
    if (options.config is None) == (options.replay is None):
        parser.error("the following arguments are required: config" if options.config is None else "--replay is alone")
    if options.force and not options.resume:
        parser.error("--force goes with --resume")
    return options


def duration_s(text: str) -> float:
    """Argument type: seconds of `3:50:00`, `50:00`, `230m`, `3.5h`, `90s` or `1d`."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    try:
        if unit is not None:
            seconds = float(text[:-1]) * unit
        elif ":" in text:
            seconds = sum(float(part) * 60**place for place, part in enumerate(reversed(text.split(":"))))
        else:
            raise ValueError
        if not 0 < seconds < float("inf"):
            raise ValueError
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no time; write 3:50:00, 230m or 3.5h") from None
    return seconds


def _is_restart() -> bool:
    """Whether torchrun has started this process again after one of the job died (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def time_left(max_time: float | None) -> float | None:
    """Seconds, of those since the job began; a job that has been started again by its launcher does not begin anew."""
    if max_time is None or STARTED_VARIABLE not in os.environ:
        return max_time
    return max_time - (time.monotonic() - float(os.environ[STARTED_VARIABLE]))


def _train_quietly(options: Namespace, start: Start) -> Outcome:
    """As one of the ranks that do not speak. What all find wrong with the config is left to the first to say."""
    logging.getLogger().setLevel(logging.ERROR)
    try:
        return train(load_config(options.config, options.overrides), start)
    except ConfigError:
        time.sleep(SECONDS_TO_LET_THE_FIRST_SPEAK)
        raise


def _status(outcome: Outcome) -> int:
    """The exit status; under torchrun with restarts it goes to a file, or a stopped run would be started again."""
    status = STATUSES[outcome.ending]
    if ENDING_VARIABLE in os.environ:
        if read_ranks(os.environ).local_rank == 0:
            Path(os.environ[ENDING_VARIABLE]).write_text(str(status))
        return 0
    return 0 if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 else status


def _replay(options: Namespace) -> int:
    step, clips = replay(options.replay, choose_device("auto", Ranks()))
    for clip in clips:
        print(f"step {step}: {clip.described}")
        low, high = clip.input_range
        parts = "".join(f"\n  {name} {value:g}" for name, value in clip.metrics.items())
        print(f"  loss {clip.loss:g}, pixels from {low:.3g} to {high:.3g}{parts}")
        if clip.first_bad_module:
            print(f"  first output that is not finite: {clip.first_bad_module}")
    return 0 if all(math.isfinite(clip.loss) for clip in clips) else 1


def _train_with_bar(config: Config, start: Start) -> Outcome:
    steps = sum(stage.steps for stage in config.stages)
    with logging_redirect_tqdm(), tqdm(total=steps, unit="step", disable=None, dynamic_ncols=True) as bar:

        def show(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(step - bar.n)

        return train(config, start, on_step=show)


def _last_words(outcome: Outcome) -> str:
    place = f"after step {outcome.step} of {outcome.steps}; newest checkpoint {outcome.checkpoint or 'none'}"
    if outcome.ending is Ending.FINISHED:
        return f"finished {place}"
    return f"{outcome.ending.value} {place}; go on with the same command and --resume"


if __name__ == "__main__":
    main()
