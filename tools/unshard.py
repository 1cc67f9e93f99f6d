"""Give a shard set back in its original layout: tools/unshard.py DATASET OUT."""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

from pathlib import Path

from shards.reader import ShardSet
from shards.sets.unshard import unshard
from shards.storage.paths import locate
from shards.wording import counted
from tools.cli import Parser, run
from tools.progress import Progress


def main() -> None:
    """Entry of the console script."""
    run(unshard_tool)


def unshard_tool(arguments: list[str]) -> int:
    """Write the original layout of a set. Returns the exit status."""
    parser = Parser(prog="unshard.py", description="Write a shard set back as folders of JPEGs and indexed PNGs.")
    parser.add_argument("dataset", type=locate, help="folder with a manifest.json, or its URL")
    parser.add_argument("out", type=Path, help="new or empty folder")
    given = parser.parse_args(arguments)
    with ShardSet.open(given.dataset) as shard_set, Progress(shard_set.num_frames, "frame") as bar:
        unshard(shard_set, given.out, bar.add)
        print(f"{given.out}: {counted(shard_set.num_videos, 'video')}, {counted(shard_set.num_frames, 'frame')}")
    return 0


if __name__ == "__main__":
    main()
