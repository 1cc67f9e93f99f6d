"""What a run will draw, and when: tools/plan.py show|diff|find|quality CONFIG [key=value ...]."""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.order_quality import (
    OrderQuality,
    describe_order,
    drawn_videos,
    first_videos,
    numbered,
    shuffled,
)
from pipelines.source import ClipSource
from shards.errors import DataError
from shards.manifest import encode_json
from shards.sources.lists import read_lines
from shards.storage.paths import write_bytes
from tools.argument_types import UsageError
from tools.cli import Parser, output_file, run
from tools.source_arguments import positive
from trainers.config import Config, load_config
from trainers.looking.drawn_clips import find_clips, first_other_step
from trainers.looking.schedule import (
    StageSchedule,
    config_path,
    differences,
    gap_rule,
    make_schedule,
    mix_rows,
    plot_schedule,
    schedule_rows,
)
from trainers.pages import figure_html, heading, html_table, make_page, paragraph, text_table
from trainers.running.stages import open_sources


@dataclass(frozen=True)
class Answer:
    """What a command found: `text` for the terminal, `page` as HTML parts, `values` for JSON."""

    text: str
    page: list[str]
    values: Any


def main() -> None:
    """Entry of the console script."""
    run(plan)


def plan(arguments: list[str]) -> int:
    """Do what the first argument says. Returns the exit status."""
    given = _parse(arguments)
    with ExitStack() as stack:
        answer = COMMANDS[given.command](given, stack)
    print(answer.text)
    if given.json is not None:
        write_bytes(given.json, encode_json(answer.values))
    if given.html is not None:
        title = f"{given.command}: {given.config}" + (f" and {given.other}" if given.command == "diff" else "")
        write_bytes(given.html, make_page(title, answer.page).encode())
    return 0


def _parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="plan.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="mix, gaps, learning rate and passes over the steps of a run")
    diff = commands.add_parser("diff", help="what differs between two recipes or runs")
    find = commands.add_parser("find", help="the clips of steps A..B")
    quality = commands.add_parser("quality", help="how well the clips are shuffled, beside a uniform shuffle")
    for command in (show, diff, find, quality):
        order = "; or an order as .txt: for each clip a line, the name of its video" if command is quality else ""
        command.add_argument("config", type=Path, help=f"YAML file, or the folder of a run{order}")
        if command is diff:
            command.add_argument("other", type=Path, help="YAML file, or the folder of a run")
        command.add_argument(
            "overrides", nargs="*", default=[], metavar="key=value", help="dotted, for example stages.0.steps=10"
        )
        command.add_argument("--json", type=output_file, metavar="FILE", help="write the numbers there, too")
        command.add_argument(
            "--html", type=output_file, metavar="FILE", help="write a page there, with plots where there are"
        )
    _add_find(find)
    quality.add_argument(
        "--clips", type=positive, metavar="N", help="from the start of each stage (default: four passes)"
    )
    quality.add_argument(
        "--batch-size", type=positive, metavar="B", help="clips of a batch, for an order out of a .txt file"
    )
    # Options may stand between key=value words; argparse has no intermixed arguments below a subcommand.
    given, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    given.overrides += rest
    return given


def _add_find(find: ArgumentParser) -> None:
    find.add_argument("--steps", type=_steps, required=True, metavar="A..B", help="of the whole run, both included")
    find.add_argument("--video", metavar="NAME", help="only clips of this video")
    find.add_argument("--world-size", type=positive, default=1, metavar="R", help="ranks of the run (default: 1)")


def _steps(word: str) -> range:
    first, _, last = word.partition("..")
    if not first.isdecimal() or not (last or first).isdecimal():
        raise ArgumentTypeError(f"{word!r} is neither a step nor A..B")
    if int(last or first) < int(first):
        raise ArgumentTypeError(f"{word!r} ends before it begins; write {last}..{first}")
    return range(int(first), int(last or first) + 1)


def _show(given: Namespace, stack: ExitStack) -> Answer:
    config = load_config(config_path(given.config), given.overrides)
    sources, problem = _try_to_open(config, stack)
    schedules = make_schedule(config, sources)
    tables = [schedule_rows(schedules)] + ([mix_rows(schedules)] if sources is not None else [])
    notes = _gap_rules(config)
    notes += [f"no mix and no passes, because the data was not found: {problem}"] if problem else []
    text = "\n\n".join([text_table(*table) for table in tables] + notes)
    page = [html_table(*table) for table in tables] + [paragraph(note, "note") for note in notes]
    page.append(figure_html(plot_schedule(schedules), "tables of the recipe over the steps of the run"))
    return Answer(text, page, [_plain_schedule(schedule) for schedule in schedules])


def _gap_rules(config: Config) -> list[str]:
    """A line for each rule that stages have: how far apart neighbouring frames of their clips may lie."""
    stages: dict[str, list[str]] = {}
    for stage in config.stages:
        stages.setdefault(gap_rule(stage.clip_recipe()), []).append(stage.name)
    return [f"gaps between frames of a clip ({', '.join(names)}): {rule}" for rule, names in stages.items() if rule]


def _try_to_open(config: Config, stack: ExitStack) -> tuple[list[ClipSource] | None, str]:
    try:
        return open_sources(config, stack), ""
    except DataError as error:
        return None, str(error)


def _plain_schedule(schedule: StageSchedule) -> dict[str, Any]:
    return {
        "stage": schedule.name,
        "first_step": schedule.first_step,
        "steps": schedule.steps,
        "batch_size": schedule.batch_size,
        "tables": {name: table.switches(schedule.steps) for name, table in schedule.tables.items()},
        "clips_per_pass_from_step": {
            first: sum(weights) for first, weights in (() if schedule.mix is None else schedule.mix.phases)
        },
        "passes": schedule.passes_after(schedule.steps),
        "mix": [
            {
                "name": part.name,
                "split": part.split,
                "videos": part.num_videos,
                "clips": part.clips,
                "share": part.share,
            }
            for part in schedule.mix_parts()
        ],
    }


def _diff(given: Namespace, stack: ExitStack) -> Answer:
    names = [str(given.config), str(given.other)]
    configs = [load_config(config_path(path), given.overrides) for path in (given.config, given.other)]
    rows = differences(*configs)
    schedules = [make_schedule(config, None) for config in configs]
    if not rows:
        text = "the two are equal in every key"
        return Answer(text, [paragraph(text)], [])
    clips = _compare_clips(configs, schedules, stack)
    header = ["key", *names]
    page = [html_table(header, rows), paragraph(clips)]
    for name, schedule in zip(names, schedules, strict=True):
        page += [heading(name), figure_html(plot_schedule(schedule), f"tables of {name}")]
    values = [{"key": key, "first": first, "second": second} for key, first, second in rows]
    return Answer(f"{text_table(header, rows)}\n\n{clips}", page, values)


def _compare_clips(configs: list[Config], schedules: list[list[StageSchedule]], stack: ExitStack) -> str:
    """Whether two runs draw the same clips, at every step at which anything changes in one of them, and at the ends."""
    opened = [_try_to_open(config, stack) for config in configs]
    first, second = (sources for sources, _ in opened)
    if first is None or second is None:
        problem = next(problem for _, problem in opened if problem)
        return f"clips were not compared, because the data was not found: {problem}"
    steps = {
        stage.first_step + step for run in schedules for stage in run for step in (*stage.switches(), stage.steps - 1)
    }
    other = first_other_step(first, second, sorted(steps))
    looked = f"of {len(steps)} steps looked at"
    return f"clips: the same, {looked}" if other is None else f"clips: others at step {other}, the first {looked}"


def _find(given: Namespace, stack: ExitStack) -> Answer:
    config = load_config(config_path(given.config), given.overrides)
    sources = open_sources(config, stack)
    if given.video is not None:
        _require_video(given.video, sources)
    clips = find_clips(sources, given.steps, world_size=given.world_size)
    found = [clip for clip in clips if given.video is None or clip.video == given.video]
    rows = [
        [clip.step, clip.rank, clip.clip, clip.dataset, clip.video]
        + [", ".join(map(str, numbers)) for numbers in (clip.frames, clip.gaps, clip.object_ids)]
        for clip in found
    ]
    header = ["step", "rank", "clip of stage", "data set", "video", "frames", "gaps", "object ids"]
    text = text_table(header, rows) if rows else f"no clip of {given.video} in these steps"
    page, rules = [html_table(header, rows)], _gap_rules(config) if rows else []
    page += [paragraph(rule, "note") for rule in rules]
    return Answer("\n\n".join([text, *rules]), page, [clip.as_plain() for clip in found])


def _require_video(name: str, sources: list[ClipSource]) -> None:
    sets = {entry.dataset.name: entry.dataset for source in sources for entry in source.mix.entries}
    if not any(name in shard_set.videos.original_names for shard_set in sets.values()):
        raise UsageError(f"no video {name!r} in the data of this run: {', '.join(sets)}")


def _quality(given: Namespace, stack: ExitStack) -> Answer:
    if given.config.suffix == ".txt":
        return _quality_of_list(given)
    if given.batch_size is not None:
        raise UsageError("--batch-size is for an order out of a .txt file; of a run, write stages.0.batch_size=B")
    config = load_config(config_path(given.config), given.overrides)
    sources = open_sources(config, stack)
    texts, page, values = [], [], {}
    for stage, source in zip(config.stages, sources, strict=True):
        for name, order in _orders(stage.name, source, given.clips):
            starts = first_videos(source)
            pair = [describe_order(videos, source.batch_size, starts=starts) for videos in (order, shuffled(order))]
            answer = _beside_uniform(name, "run", pair)
            texts.append(answer.text)
            page += answer.page
            values[name] = answer.values
    return Answer("\n\n".join(texts), page, values)


def _orders(name: str, source: ClipSource, most_clips: int | None) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """The videos of a stage's first clips, and of those from each step on that has other weights in its mix."""
    ends = [*(first for first, _ in source.mix.phases[1:]), source.steps]
    for (first, weights), end in zip(source.mix.phases, ends, strict=True):
        clips = min(most_clips or 4 * sum(weights), (end - first) * source.batch_size)
        place = f"{name} from step {first}" if first else name
        yield place, drawn_videos(source, first * source.batch_size, clips)


def _quality_of_list(given: Namespace) -> Answer:
    """Of the order that a file lists, as any other loader may have drawn it."""
    if given.batch_size is None or given.overrides:
        raise UsageError(f"{given.config} is a list of videos: say --batch-size B, and nothing as key=value")
    order = numbered(read_lines(given.config)[: given.clips])
    pair = [describe_order(videos, given.batch_size) for videos in (order, shuffled(order))]
    return _beside_uniform(given.config.name, "order", pair)


def _beside_uniform(name: str, what: str, pair: Sequence[OrderQuality]) -> Answer:
    own = pair[0]
    title = f"{name}: {own.num_clips} clips of {own.num_videos} videos in batches of {own.batch_size}"
    header, rows = ["", f"this {what}", "uniform shuffle of the same clips"], _quality_rows(*pair)
    values = {what: own.as_plain(), "uniform": pair[1].as_plain()}
    return Answer(f"{title}\n\n{text_table(header, rows)}", [heading(title), html_table(header, rows)], values)


def _quality_rows(*pair: OrderQuality) -> list[list[str]]:
    rows = [["different videos in a batch, mean", *(f"{quality.distinct_per_batch:.3f}" for quality in pair)]]
    for place, name in enumerate(("smallest", "5 % quantile", "median")):
        found = [quality.repeat_distance for quality in pair]
        cells = ["never" if distances is None else f"{distances[place]:.0f}" for distances in found]
        rows.append([f"clips until a video comes again, {name}", *cells])
    for lag in pair[0].autocorrelation:
        cells = [f"{quality.autocorrelation[lag]:+.3f}" for quality in pair]
        rows.append([f"correlation of places in storage, {lag} {'clip' if lag == 1 else 'clips'} apart", *cells])
    return rows


COMMANDS: dict[str, Callable[[Namespace, ExitStack], Answer]] = {
    "show": _show,
    "diff": _diff,
    "find": _find,
    "quality": _quality,
}


if __name__ == "__main__":
    main()
