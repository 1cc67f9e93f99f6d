"""Look at the data: clips as the trainer sees them at any step, or a shard set with every object over time."""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

from argparse import Namespace
from pathlib import Path

from pipelines.pictures import save_png
from shards.errors import DataError
from shards.manifest import MANIFEST
from shards.reader import ShardSet
from shards.storage.paths import locate, write_bytes
from tools.cli import Parser, run
from trainers.config import load_config
from trainers.looking.clip_pages import Look, clip_page, look_sheet
from trainers.looking.dataset_pages import dataset_page
from trainers.looking.schedule import config_path

FIRST_VIDEOS = 6
"""Shown of a shard set unless --videos names others."""


def main() -> None:
    """Entry of the console script."""
    run(preview)


def preview(arguments: list[str]) -> int:
    """Draw what was asked for. Returns the exit status."""
    given = _parse(arguments)
    if (locate(given.what) / MANIFEST).is_file():
        _preview_dataset(given)
    elif Path(given.what).is_dir() and not config_path(Path(given.what)).is_file():
        raise DataError(
            given.what,
            expected="a finished shard set (manifest.json) or a run (config.yaml)",
            found="neither",
            remedy="give the folder that tools/shard.py or tools/train.py made, or the name of a config",
        )
    else:
        _preview_clips(given)
    print(f"written: {given.out}")
    return 0


def _parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="preview.py", description=__doc__)
    parser.add_argument("what", metavar="CONFIG|DATASET", help="YAML file, folder of a run, or shard set (also a URL)")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="of a config, for example stages.0.steps=10"
    )
    parser.add_argument("--stage", metavar="NAME", help="of a config (default: its first)")
    parser.add_argument(
        "--step", type=int, nargs="+", default=[0], metavar="S", help="of the stage; several for several"
    )
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="whose share of the batch (default: 0)")
    parser.add_argument("--world-size", type=int, default=1, metavar="N", help="ranks of the run (default: 1)")
    parser.add_argument(
        "--videos", nargs="+", default=[], metavar="NAME", help="of a shard set (default: the first six)"
    )
    parser.add_argument(
        "--out",
        "--output",
        type=Path,
        default=Path("preview.html"),
        help=".html to leaf through, .png for a sheet of clips",
    )
    given = parser.parse_intermixed_args(arguments)
    if given.out.suffix not in (".html", ".png"):
        parser.error(f"--out is {given.out}, expected a name that ends in .html or .png")
    return given


def _preview_clips(given: Namespace) -> None:
    config = load_config(config_path(Path(given.what)), given.overrides)
    names = [stage.name for stage in config.stages]
    if given.stage is not None and given.stage not in names:
        raise ValueError(f"{given.what}: no stage {given.stage!r}; there are: {', '.join(names)}")
    position = 0 if given.stage is None else names.index(given.stage)
    look = Look(position, tuple(given.step), given.rank, given.world_size)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    if given.out.suffix == ".png":
        save_png(look_sheet(config, look), given.out)
    else:
        write_bytes(given.out, clip_page(config, look, f"{given.what}, stage {names[position]}").encode())


def _preview_dataset(given: Namespace) -> None:
    if given.out.suffix != ".html" or given.overrides:
        raise ValueError("a shard set is shown as a page: give --out NAME.html and no key=value words")
    with ShardSet.open(given.what) as shard_set:
        rows = [shard_set.video_row(name) for name in given.videos]
        page = dataset_page(shard_set, rows or range(min(FIRST_VIDEOS, shard_set.num_videos)))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(given.out, page.encode())


if __name__ == "__main__":
    main()
