"""The whole way on two cores in minutes: shard -> check -> train -> segment -> evaluate, on made-up video or on yours.

Every step is one of the other tools, run as you would run it; the command is printed first.
"""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from textwrap import fill

from tqdm import tqdm

from pipelines.pictures import save_png
from shards.errors import DataError
from shards.locks import hold_alone
from shards.reader import ShardSet
from shards.sources.moving_shapes import MovingShapes, write_moving_shapes
from shards.wording import counted
from tools.cli import TEXT_WIDTH, Parser, run
from trainers.config import Config, load_config
from trainers.looking.sheets import clip_sheet, object_shares, result_sheet
from trainers.prediction.videos import open_videos
from trainers.records.checkpoints import list_checkpoints
from trainers.records.journal import read_journal

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = REPOSITORY / "trainers" / "configs" / "demo.yaml"
MARKER = "made_by_demo"
SCORED = ("before", "after")
"""Folders of the masks of random weights and of trained ones."""
SHEET_VIDEOS = 2
STEPS_HELP = "training steps (default: the config's 500; far fewer show that it runs, and leave J&F near 0)"


class StepFailedError(Exception):
    """A tool of the demo did not end well; it has said why itself."""


def main() -> None:
    """Console script."""
    run(demo)


def demo(arguments: list[str]) -> int:
    """The tool; returns its exit status."""
    options = _parse(arguments)
    started = time.perf_counter()
    with ExitStack() as stack:
        return _run_demo(options, _fresh_folder(options.out, stack), started)


def _run_demo(options: Namespace, out: Path, started: float) -> int:
    davis = options.davis or _make_videos(out / "davis")
    shard_set = out / "shards" / "davis2017"
    overrides = [f"stages.0.data.0.path={shard_set}", f"output={out / 'run'}"]
    if options.steps is not None:
        overrides += [f"stages.0.steps={options.steps}", f"report_every={min(50, max(1, options.steps // 4))}"]
    try:
        _tool("shard", "davis2017", davis, out / "shards")
        _tool("check", shard_set)
        split = _split_to_score(shard_set)
        _tool("train", os.path.relpath(CONFIG), *overrides)
        newest, *_, untrained = list_checkpoints(out / "run")
        for name, weights in zip(SCORED, (untrained, newest), strict=True):
            _tool("segment", "--model", "rde", "--weights", weights, shard_set, out / name, "--split", split)
            _tool("evaluate", out / name, shard_set, "--split", split)
    except StepFailedError as failure:
        print(failure, file=sys.stderr)
        return 1
    config = load_config(CONFIG, overrides)
    pictures = _draw(out, config, shard_set, split)
    print(_summary(out, shard_set, split, time.perf_counter() - started))
    print("pictures: " + ", ".join(map(str, pictures)))
    explanation = _explain_lower_score(out, shard_set, split, config.stages[0].steps)
    if explanation is not None:
        print(explanation)
    return 0


def _parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="demo.py", description=__doc__)
    parser.add_argument("--davis", type=Path, metavar="FOLDER", help="videos in the DAVIS 2017 layout (default: made)")
    parser.add_argument(
        "--out", "--output", type=Path, default=Path("demo_output"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--steps", type=int, metavar="N", help=STEPS_HELP)
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps is {options.steps}, expected at least 1")
    return options


def _fresh_folder(out: Path, stack: ExitStack) -> Path:
    """An empty folder for this demo, locked until `stack` closes. An earlier demo's is emptied; anything else stays."""
    if out.exists() and not (out / MARKER).exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            out, expected="no folder, or one of an earlier demo", found="other files", remedy="give --output FOLDER"
        )
    out.mkdir(parents=True, exist_ok=True)
    if not stack.enter_context(hold_alone(out)):
        raise DataError(out, expected="one demo at a time", found="another one running", remedy="give --output FOLDER")
    (out / MARKER).touch()
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("lock", MARKER):  # an emptying that is interrupted can be made up for
            path.unlink()
    return out


def _make_videos(folder: Path) -> Path:
    shapes = MovingShapes()
    print(f"making {shapes.num_train} + {shapes.num_val} videos of moving shapes in the DAVIS layout: {folder}")
    num_frames = (shapes.num_train + shapes.num_val) * shapes.num_frames
    with tqdm(total=num_frames, unit="frame", desc="made", disable=None) as bar:
        write_moving_shapes(folder, shapes, on_frame=bar.update)
    return folder


def _tool(name: str, *arguments: str | Path) -> None:
    """Run tools/<name>.py as a person would. Raises StepFailedError if it does not end with status 0."""
    command = [f"tools/{name}.py", *map(str, arguments)]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    script = REPOSITORY / "tools" / f"{name}.py"
    status = subprocess.run([sys.executable, str(script), *command[1:]], check=False).returncode
    if status in (128 + 2, -2):  # Ctrl-C
        raise KeyboardInterrupt
    if status != 0:
        raise StepFailedError(f"demo.py: tools/{name}.py ended with status {status}; its message is above")


def _split_to_score(path: Path) -> str:
    """`val` where the set has it, otherwise what it was trained on."""
    with ShardSet.open(path) as shard_set:
        return "val" if "val" in shard_set.manifest.splits else "train"


def _draw(out: Path, config: Config, shard_set: Path, split: str) -> tuple[Path, Path]:
    clips, masks = out / "clips.png", out / "masks.png"
    save_png(clip_sheet(config, stage=0, step=0), clips)
    source = open_videos(shard_set)
    save_png(result_sheet(source, _results(out), source.select(split)[:SHEET_VIDEOS]), masks)
    return clips, masks


def _results(out: Path) -> dict[str, Path]:
    return {f"{name} training": out / name for name in SCORED}


def _summary(out: Path, path: Path, split: str, seconds: float) -> str:
    with ShardSet.open(path) as shard_set:
        built = f"{counted(shard_set.num_videos, 'video')}, {counted(shard_set.num_frames, 'frame')}"
    reports = [record for record in read_journal(out / "run") if record["kind"] == "report"]
    paces = [record["clips_per_second"] for record in reports if "clips_per_second" in record]
    rows = {
        "shard set": built,
        "training": counted(reports[-1]["step"], "step"),
        "loss, first and last report": f"{reports[0]['loss']:.3f} -> {reports[-1]['loss']:.3f}",
        "clips/s (median report)": f"{statistics.median(paces):.1f}" if paces else "too few steps",
        **{f"J&F on {split} {name} training": f"{_global_score(out / name, split):.3f}" for name in SCORED},
        "the whole demo": f"{seconds:.0f} s",
    }
    width = max(map(len, rows))
    return "\n" + "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def _explain_lower_score(out: Path, shard_set: Path, split: str, steps: int) -> str | None:
    """Why random weights scored better, where they did: in words and in shares of the pictures' frames."""
    before, after = (_global_score(out / name, split) for name in SCORED)
    if after >= before:
        return None
    source = open_videos(shard_set)
    shares = object_shares(source, _results(out), source.select(split)[:SHEET_VIDEOS])
    truth, at_first, at_last = (f"{share:.1%}" for share in shares.values())
    words = (
        f"Lower after training: objects cover {truth} of the frames of {out / 'masks.png'}. Random weights paint "
        f"{at_first} and hit them by chance; after {counted(steps, 'step')} it is {at_last}. A network learns first "
        "that most of a frame is background, and where the objects are with more steps."
    )
    return fill(words, TEXT_WIDTH)


def _global_score(folder: Path, split: str) -> float:
    scores = json.loads((folder / f"results-{split}.json").read_text(encoding="utf-8"))
    return float(scores["global"]["J&F-Mean"])


if __name__ == "__main__":
    main()
