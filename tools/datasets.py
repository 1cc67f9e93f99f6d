"""Look at finished sets and make others of them: tools/datasets.py info|subset|merge|append|..."""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import json
import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.building.build import build
from shards.building.jobs import Progress as Work
from shards.building.plan import BuildRequest, Plan, make_plan
from shards.check import rebuild_index
from shards.errors import DataError
from shards.index.stock_index import write_stock_indexes
from shards.manifest import MANIFEST, Manifest, read_manifest
from shards.masks import plain_codec
from shards.reader import ShardSet
from shards.sets.compose import LINKS, and_more, append_set, choose_fraction, merge_sets, write_subset
from shards.sources import SOURCES
from shards.storage.paths import Location, RemotePath, locate, remove_tree
from shards.wording import counted
from tools.cli import Parser, run
from tools.progress import Progress
from tools.source_arguments import add_source_arguments, arguments_of, positive, source_options, split_names

# Holds the new videos of a set until they are part of it.
APPEND_FOLDER = "appending"


def main() -> None:
    """Entry of the console script."""
    run(datasets)


def datasets(arguments: list[str]) -> int:
    """Do what the first argument says. Returns the exit status."""
    given = _parse(arguments)
    COMMANDS[given.command](given)
    return 0


def _parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="datasets.py", description="Look at finished shard sets, and make others without copying.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="what is in sets")
    info.add_argument("dataset", nargs="+", help="folder with a manifest.json, or its URL")
    info.add_argument("--json", action="store_true", help="as one JSON object a line")
    subset = commands.add_parser("subset", help="a view of some videos of a set; refers to its tars")
    subset.add_argument("dataset", help="folder or URL of the set")
    subset.add_argument("out", help="new folder or URL; its last part is the name of the view")
    subset.add_argument("--split", type=split_names, action="extend", metavar="S", help="videos of this split (or a,b)")
    subset.add_argument("--list", help="file with the names of the videos, one a line")
    subset.add_argument(
        "--fraction", type=_fraction, help="share of these videos, above 0 and at most 1 (default: all)"
    )
    subset.add_argument("--seed", type=int, default=0, help="chooses which share (default: %(default)s)")
    merge = commands.add_parser("merge", help="one set of several; refers to their tars")
    merge.add_argument("dataset", nargs="+", help="folders or URLs of the sets")
    merge.add_argument("out", help="new folder or URL; its last part is the name of the set")
    for command in (subset, merge):
        command.add_argument(
            "--link", choices=LINKS, default="reference", help="how tars are referred to (default: %(default)s)"
        )
    _add_append(commands.add_parser("append", help="convert more videos into new shards of a set"))
    rebuild = commands.add_parser("rebuild-index", help="make the index again from the tars and the manifest alone")
    rebuild.add_argument("dataset", nargs="+", help="folder or URL of the set")
    dali = commands.add_parser("dali-index", help="index files for DALI's own WebDataset reader")
    dali.add_argument("dataset", help="folder or URL of the set")
    dali.add_argument("out", type=Path, help="folder that gets a file for each shard")
    return parser.parse_args(arguments)


def _add_append(append: ArgumentParser) -> None:
    append.add_argument("dataset", help="folder of the set")
    append.add_argument("kind", choices=sorted(SOURCES), help="layout of the source")
    append.add_argument("source", nargs="+", help="folder of the new videos, or its URL")
    append.add_argument("--split", type=split_names, action="extend", metavar="S", help="split to convert (or a,b)")
    append.add_argument("--resolution", default="480p", help="folder below JPEGImages (default: %(default)s)")
    append.add_argument("--jobs", type=positive, default=len(os.sched_getaffinity(0)), help="cores (default: all)")
    append.add_argument(
        "--on-bad",
        choices=("stop", "skip"),
        default="stop",
        help="at refused input: end it, or leave out its video (default: %(default)s)",
    )
    add_source_arguments(append)
    append.set_defaults(parser=append)


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise ArgumentTypeError(f"{text!r} is no share; write 0.5 for half of the videos")
    return fraction


def _info(given: Namespace) -> None:
    for dataset in given.dataset:
        facts = _facts(locate(dataset))
        if given.json:
            print(json.dumps(facts, sort_keys=True))
            continue
        print(f"{facts['name']} ({facts['path']})")
        for key, text in _for_people(facts).items():
            print(f"  {key:16} {text}")


def _facts(root: Location) -> dict[str, Any]:
    """What there is to say of a set: numbers, texts, lists and tables of numbers, for programs."""
    with ShardSet.open(root) as shard_set:
        manifest, videos = shard_set.manifest, shard_set.videos
        objects = Counter(len(videos.object_ids(row)) for row in range(shard_set.num_videos))
        annotated = sum(int(shard_set.annotated(row).sum()) for row in range(shard_set.num_videos))
        sizes = Counter(zip(videos.width.tolist(), videos.height.tolist(), strict=True))
        lengths = videos.num_frames
    return {
        "name": manifest.name,
        "path": str(root),
        "kind": manifest.kind,
        "options": manifest.options,
        "fingerprint": manifest.fingerprint,
        "parents": list(manifest.parents),
        "mask_codec": manifest.mask_codec,
        "shards": len(manifest.shards),
        "shard_bytes": sum(facts.bytes for facts in manifest.shards),
        "videos": manifest.num_videos,
        "frames": manifest.num_frames,
        "shortest_video": int(lengths.min()),
        "longest_video": int(lengths.max()),
        "annotated_frames": annotated,
        "objects": sum(count * number for count, number in objects.items()),
        "splits": dict(sorted(manifest.splits.items())),
        "image_sizes": [
            {"width": width, "height": height, "videos": count} for (width, height), count in sizes.most_common()
        ],
        "videos_by_objects": dict(sorted(objects.items())),
        "refused": manifest.refused,
        "warnings": manifest.warnings,
    }


def _for_people(facts: dict[str, Any]) -> dict[str, str]:
    """The facts as lines: what is said of them -> in words."""
    sizes = [f"{size['width']}x{size['height']} of {counted(size['videos'], 'video')}" for size in facts["image_sizes"]]
    lengths = " to ".join(str(length) for length in sorted({facts["shortest_video"], facts["longest_video"]}))
    words = {
        "made of": " ".join(parent[:16] for parent in facts["parents"]) or "its source",
        "shards": f"{facts['shards']}, {facts['shard_bytes'] / 1e6:.1f} MB",
        "frames": f"{facts['frames']}, {lengths} a video",
        "annotated": f"{facts['annotated_frames'] / facts['frames']:.1%}",
        "splits": ", ".join(f"{split} {count}" for split, count in facts["splits"].items()) or "none",
        "image sizes": ", ".join(sizes[:4]) + f" and {len(sizes) - 4} more" * (len(sizes) > 4),
        "objects a video": ", ".join(
            f"{count} in {counted(videos, 'video')}" for count, videos in facts["videos_by_objects"].items()
        ),
    }
    plain = ("kind", "fingerprint", "mask_codec", "videos", "objects", "refused", "warnings")
    return {key.replace("_", " "): str(facts[key]) for key in plain} | words


def _subset(given: Namespace) -> None:
    root, out = locate(given.dataset), locate(given.out)
    with ShardSet.open(root) as shard_set:
        rows = sorted({int(row) for split in given.split for row in shard_set.select(split)}) if given.split else None
        names = [
            shard_set.videos.original_names[row] for row in (range(shard_set.num_videos) if rows is None else rows)
        ]
    if given.list:
        listed = set(_names(locate(given.list)))
        unknown = sorted(listed - set(names))
        if unknown:
            raise DataError(given.list, expected="videos of the set", found=repr(unknown[0]), remedy="correct the list")
        names = [name for name in names if name in listed]
    if given.fraction is not None:
        names = choose_fraction(names, given.fraction, given.seed)
    _print_made(out, write_subset(root, out, names, given.link))


def _names(path: Location) -> list[str]:
    lines = path.read_bytes().decode("utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _merge(given: Namespace) -> None:
    out = locate(given.out)
    _print_made(out, merge_sets([locate(dataset) for dataset in given.dataset], out, given.link))


def _append(given: Namespace) -> None:
    root = locate(given.dataset)
    if isinstance(root, RemotePath):
        raise ValueError(f"{root}: only local sets grow; merge makes a set of several anywhere")
    manifest = read_manifest(root)
    with arguments_of(given.parser):
        options = source_options(given)
    request = BuildRequest(
        kind=given.kind,
        sources=tuple(locate(source) for source in given.source),
        out=root / APPEND_FOLDER,
        name=manifest.name,
        splits=None if given.split is None else tuple(given.split),
        resolution=given.resolution,
        mask_codec=plain_codec(manifest.mask_codec),
        shard_size=manifest.shard_size,
        on_bad=given.on_bad,
        jobs=given.jobs,
        options=options,
    )
    with arguments_of(given.parser):
        plan = make_plan(request)
    if not (request.root / MANIFEST).is_file():  # else it was killed while linking, and its videos may be there already
        _require_fitting(root, manifest, request, plan)
    _build(request, plan)  # refuses what an append of another source has left
    grown = append_set(root, request.root)
    remove_tree(root / APPEND_FOLDER)
    _print_made(root, grown)


_BY_LIST = "leave them out: give the names of the others with --list FILE"
# Kinds that take no list.
_LEAVE_OUT = {
    "davis2016": "leave them out with --split, or take them off the list of frames",
    "static": "leave their set out with --split, or rename them",
}


def _require_fitting(root: Location, manifest: Manifest, request: BuildRequest, plan: Plan) -> None:
    """Raise DataError, before anything is converted, where the new videos cannot be part of the set."""
    with ShardSet.open(root) as shard_set:
        twice = sorted(set(shard_set.videos.original_names) & plan.sizes.keys())
    if twice:
        found = f"{twice[0]!r}{and_more(len(twice) - 1)} in both"
        raise DataError(
            root, expected="videos of new names", found=found, remedy=_LEAVE_OUT.get(request.kind, _BY_LIST)
        )
    stored = {"masks": request.target(plan.source).codec, "scaling": request.options.record().get("scaling")}
    wanted = {"masks": manifest.mask_codec, "scaling": manifest.options.get("scaling")}
    if stored != wanted:
        remedy = "give the options the set was built with, or build another set"
        raise DataError(root, expected=f"new videos stored as the others: {wanted}", found=f"{stored}", remedy=remedy)


def _build(request: BuildRequest, plan: Plan) -> None:
    with Progress(sum(size.num_frames for size in plan.sizes.values()), "frame") as bar:

        def show(work: Work) -> None:
            bar.add(work.frames)

        build(request, plan, show)


def _rebuild_index(given: Namespace) -> None:
    for dataset in given.dataset:
        print(f"{dataset}: index made again for {counted(rebuild_index(locate(dataset)).num_frames, 'frame')}")


def _dali_index(given: Namespace) -> None:
    written = write_stock_indexes(locate(given.dataset), given.out)
    print(f"{given.out}: {counted(len(written), 'file')} for fn.readers.webdataset(index_paths=...)")


def _print_made(root: Location, manifest: Manifest) -> None:
    videos, frames = counted(manifest.num_videos, "video"), counted(manifest.num_frames, "frame")
    counts = f"{videos}, {frames} in {counted(len(manifest.shards), 'shard')}"
    print(f"{root}: {counts}, fingerprint {manifest.fingerprint[:16]}")


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "info": _info,
    "subset": _subset,
    "merge": _merge,
    "append": _append,
    "rebuild-index": _rebuild_index,
    "dali-index": _dali_index,
}


if __name__ == "__main__":
    main()
