"""Is data or compute the limit of a training run, and which part of it? Measured in about a minute, told in words.

Several processes: `torchrun --standalone --nproc-per-node=2 tools/throughput.py CONFIG ...`.
"""

from __future__ import annotations

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # replaced: tools/ must not shadow installed modules
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends quietly; run() takes it over

import json
import logging
import os
from argparse import Namespace
from pathlib import Path
from textwrap import fill
from typing import Any

from pipelines.benchmarks.executors import describe_machine
from shards.errors import DataError
from shards.manifest import encode_json
from shards.storage.paths import write_bytes
from shards.wording import counted
from tools.cli import TEXT_WIDTH, Parser, output_file, run
from trainers.config import Config, load_config
from trainers.looking.schedule import config_path
from trainers.pages import html_table, make_page, paragraph, text_table
from trainers.records.provenance import read_versions
from trainers.running.distributed import read_ranks
from trainers.throughput.measure import measure
from trainers.throughput.report import (
    Report,
    compare_reports,
    html_report,
    plain_report,
    text_report,
    trace_report,
)


def main() -> None:
    """Entry of the console script."""
    run(throughput)


def throughput(arguments: list[str]) -> int:
    """Measure or compare, print, write what was asked for. Returns the exit status."""
    given = _parse(arguments)
    if given.compare is not None:
        _compare(given)
        return 0
    config = load_config(config_path(given.config), given.overrides)
    first = read_ranks(os.environ).is_first
    if not first:
        logging.getLogger().setLevel(logging.ERROR)
    stage = _stage_of(given, config)
    results = measure(config, stage=stage, step=given.step, seconds=given.seconds)
    if first:
        _write(given, Report(results, _facts(given, config, stage)))
    return 0


def _parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="throughput.py", description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", help="YAML file, or the folder of a run")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="dotted, for example stages.0.steps=10"
    )
    parser.add_argument("--stage", metavar="NAME", help="which stage (default: the first)")
    parser.add_argument("--step", type=int, default=0, help="of the stage, from which clips are taken (default: 0)")
    parser.add_argument("--seconds", type=float, default=60, help="for all runs together, about (default: 60)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write all numbers there")
    parser.add_argument("--html", type=output_file, metavar="FILE", help="write a page with plots there")
    parser.add_argument("--trace", type=output_file, metavar="FILE", help="what every thread did, for ui.perfetto.dev")
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="two files of --json; measures nothing"
    )
    given = parser.parse_intermixed_args(arguments)
    if (given.config is None) == (given.compare is None):
        parser.error("give a CONFIG to measure, or --compare A B")
    if given.seconds <= 0 or given.step < 0:
        parser.error(f"--seconds must be above 0 and --step not below, got {given.seconds:g} and {given.step}")
    return given


def _stage_of(given: Namespace, config: Config) -> int:
    names = [stage.name for stage in config.stages]
    if given.stage is not None and given.stage not in names:
        raise ValueError(f"{given.config}: no stage {given.stage!r}; there are: {', '.join(names)}")
    return 0 if given.stage is None else names.index(given.stage)


def _facts(given: Namespace, config: Config, stage: int) -> dict[str, str]:
    row, machine, versions = config.stages[stage], describe_machine(), read_versions()
    return {
        "config": " ".join([str(given.config), *given.overrides]),
        "stage": f"{row.name}, from step {given.step}",
        "data": ", ".join(f"{entry.path} {entry.split or ''}".strip() for entry in row.data),
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['system']}",
        **versions,
    }


def _write(given: Namespace, report: Report) -> None:
    numbers = report.rank.numbers
    at = numbers.at
    processes = f"{counted(at.world_size, 'process', 'processes')} on {at.device}, executor {at.executor}"
    threads = f"{at.reading_threads} reading, {at.loading_threads} loading, {at.compute_threads} computing"
    clips = f"{counted(at.clips_per_step, 'clip')} of {counted(at.frames_per_clip, 'frame')} a step"
    print(f"{processes}; of each, threads: {threads}; {clips}\n")
    words, tables = text_report(report).split("\n\n", maxsplit=1)
    print(f"{fill(words, TEXT_WIDTH)}\n\n{tables}")
    written = []
    for path, content in (
        (given.json, lambda: encode_json(plain_report(report))),
        (given.html, lambda: html_report(report, f"Throughput of {given.config}").encode()),
        (given.trace, lambda: json.dumps(trace_report(report)).encode()),
    ):
        if path is not None:
            write_bytes(path, content())
            written.append(str(path))
    if written:
        print(f"\nwritten: {', '.join(written)}")


def _compare(given: Namespace) -> None:
    reports = [_read_report(path) for path in given.compare]
    header, rows = compare_reports(*reports)
    words = [f"{path}: {report['verdict']['words']}" for path, report in zip(given.compare, reports, strict=True)]
    print(
        "\n".join(fill(word, TEXT_WIDTH, subsequent_indent="  ") for word in words) + f"\n\n{text_table(header, rows)}"
    )
    if given.html is not None:
        parts = [*(paragraph(word, "verdict") for word in words), html_table(header, rows)]
        write_bytes(given.html, make_page(f"{given.compare[0]} and {given.compare[1]}", parts).encode())


def _read_report(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    try:
        report: dict[str, Any] = json.loads(content)
        report["verdict"]["words"], report["numbers"]["data_parts"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            path, expected="a report that --json wrote", found=str(error), remedy="measure again with --json"
        ) from error
    return report


if __name__ == "__main__":
    main()
