"""Train a model as a config says: `tools/train.py trainers/configs/demo.yaml stages.0.steps=100 --resume`.

Several processes: `torchrun --standalone --nproc-per-node=2 tools/train.py CONFIG ...`.
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

import logging
import os
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from tools.cli import Parser, run
from trainers.config import Config, load_config
from trainers.distributed import read_ranks
from trainers.loop import Ending
from trainers.stopping import INTERRUPTED_STATUS, STOPPED_STATUS
from trainers.training import Outcome, train

STATUSES = {Ending.FINISHED: 0, Ending.STOPPED: STOPPED_STATUS, Ending.INTERRUPTED: INTERRUPTED_STATUS}


def main() -> None:
    """Console script."""
    run(train_tool)


def train_tool(arguments: list[str]) -> int:
    """Parse, train, say how it ended; returns the exit status."""
    parser = Parser(prog="train.py", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file, for example trainers/configs/rde_stage3.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="dotted, for example stages.0.steps=10"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run, if any")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides)
    if read_ranks(os.environ).is_first:
        outcome = _train_with_bar(config, resume=options.resume)
        print(_last_words(outcome))
    else:
        logging.getLogger().setLevel(logging.ERROR)
        outcome = train(config, resume=options.resume)
    return STATUSES[outcome.ending]


def _train_with_bar(config: Config, *, resume: bool) -> Outcome:
    steps = sum(stage.steps for stage in config.stages)
    with logging_redirect_tqdm(), tqdm(total=steps, unit="step", disable=None, dynamic_ncols=True) as bar:

        def show(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(step - bar.n)

        return train(config, resume=resume, on_step=show)


def _last_words(outcome: Outcome) -> str:
    place = f"after step {outcome.step} of {outcome.steps}; newest checkpoint {outcome.checkpoint or 'none'}"
    if outcome.ending is Ending.FINISHED:
        return f"finished {place}"
    return f"{outcome.ending.value} {place}; go on with the same command and --resume"


if __name__ == "__main__":
    main()
