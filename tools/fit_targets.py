"""Fit all target models that a training of MTMFI or FRTM may ask for, into its cache: `tools/fit_targets.py CONFIG`.

Several processes share the work: `torchrun --standalone --nproc_per_node=8 tools/fit_targets.py CONFIG`. A run that was
stopped goes on where it was.
"""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import os
from pathlib import Path

import torch
from tqdm import tqdm

from tools.cli import Parser, run
from trainers.config import load_config
from trainers.running.distributed import choose_device, read_ranks, share_threads
from trainers.running.stages import Place
from trainers.running.target_prefit import prefit


def main() -> None:
    """Console script."""
    run(fit_targets)


def fit_targets(arguments: list[str]) -> int:
    """Parse, fit, say what there is now; returns the exit status."""
    parser = Parser(prog="fit_targets.py", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file of the training, objective.cache: true")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="as of tools/train.py")
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    ranks = read_ranks(os.environ)
    device = choose_device(config.device, ranks)
    place = Place(ranks, device, share_threads(config.threads, ranks, device))
    torch.set_num_threads(place.threads.compute)
    for position, stage in enumerate(config.stages):
        with tqdm(total=0, unit="model", desc=stage.name, disable=None if ranks.is_first else True) as bar:
            done = prefit(config, position, place, on_start=bar.reset, on_fit=bar.update)
        words = f"{stage.name}: {done.fitted} of {done.pairs} target models fitted, the others were there"
        share = "" if ranks.world_size == 1 else f" (process {ranks.rank + 1} of {ranks.world_size})"
        print(words + share)
        if ranks.is_first:
            for entry, report in zip(stage.data, done.caches, strict=True):
                print(f"  {entry.path}: {report}")
    return 0


if __name__ == "__main__":
    main()
