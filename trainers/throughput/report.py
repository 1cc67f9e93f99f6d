"""A throughput measurement as text, as plain values for JSON, as a page with plots, as a trace, and beside another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trainers.pages import figure_html, heading, html_table, make_page, new_figure, paragraph, text_table
from trainers.throughput.measure import RankResult, slowest_rank
from trainers.throughput.timeline import chrome_trace, occupancy
from trainers.throughput.types import Measurement, Verdict
from trainers.throughput.verdict import judge, storage_rows, what_if

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Title, header, rows."""


@dataclass(frozen=True)
class Report:
    """Results of all ranks; facts: what was measured, on what, by which versions, as text."""

    results: Sequence[RankResult]
    facts: Mapping[str, str]

    @property
    def rank(self) -> RankResult:
        """The rank that waited longest, which all others wait for."""
        return self.results[slowest_rank(self.results)]

    @property
    def verdict(self) -> Verdict:
        """On the rank that waited longest."""
        return judge(self.rank.numbers)


def plain_report(report: Report) -> dict[str, Any]:
    """Everything but the spans, for JSON."""
    numbers = report.rank.numbers
    return {
        "facts": dict(report.facts),
        "verdict": asdict(report.verdict),
        "slowest_rank": slowest_rank(report.results),
        "numbers": numbers.as_plain(),
        "what_if": [asdict(row) for row in what_if(numbers)],
        "storage": [
            dict(zip(("nodes", "mb_per_s", "of_bandwidth"), row, strict=True)) for row in storage_rows(numbers)
        ],
        "waits_ms": [1e3 * wait for wait in report.rank.waits],
        "ready_batches": _queue(report.rank),
        "ranks": [result.numbers.as_plain() for result in report.results],
    }


def text_report(report: Report) -> str:
    """Verdict and tables for a terminal."""
    parts = [report.verdict.words]
    parts += [f"{title}\n{text_table(header, rows)}" for title, header, rows in _tables(report)]
    return "\n\n".join(parts)


def html_report(report: Report, title: str) -> str:
    """The same as a page with plots, in one file."""
    parts = [paragraph(report.verdict.words, "verdict")]
    parts.append(figure_html(_plot_runs(report.rank.numbers), "time of a step: data alone, compute alone, both"))
    for name, header, rows in _tables(report):
        parts += [heading(name), html_table(header, rows)]
        if name == DATA_TITLE:
            parts.append(figure_html(_plot_parts(report.rank.numbers), "a batch with each part taken away"))
    parts += [heading("While training"), figure_html(_plot_time(report.rank), "batches lying ready, and waits")]
    parts += [heading("Measured on"), html_table(["", ""], report.facts.items())]
    return make_page(title, parts)


def trace_report(report: Report) -> dict[str, Any]:
    """Trace Event Format, for chrome://tracing and ui.perfetto.dev: two processes per rank, data alone and training."""
    events = []
    for rank, result in enumerate(report.results):
        events += chrome_trace(result.data_spans, process=2 * rank, name=f"rank {rank}: data alone")
        events += chrome_trace(result.training_spans, process=2 * rank + 1, name=f"rank {rank}: training")
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every time of two plain reports and their ratio, second to first."""
    columns = [_flat_times(report["numbers"]) for report in (first, second)]
    rows = []
    for name in dict.fromkeys([*columns[0], *columns[1]]):
        pair = [column.get(name) for column in columns]
        cells = ["" if value is None else f"{value:.2f}" for value in pair]
        ratio = f"{pair[1] / pair[0]:.2f}" if pair[0] and pair[1] is not None else ""
        rows.append([name, *cells, ratio])
    return ["ms per step", "first", "second", "second / first"], rows


DATA_TITLE = "Loading, a batch: work on all threads, and the whole with this part taken away"


def _tables(report: Report) -> list[Table]:
    numbers = report.rank.numbers
    tables: list[Table] = [
        ("Alone and together", ["", "ms per step", "clips/s of this rank", "cores busy"], _run_rows(numbers)),
        (DATA_TITLE, ["part", "ms of work", "by", "batch without it, ms", "saves"], _part_rows(numbers)),
        ("Training, a step on a batch that lies ready", ["part", "ms", "share"], _compute_rows(numbers)),
        ("What if", ["change", "batch, ms", "step, ms", "limit", "known by"], _what_if_rows(numbers)),
        (
            "N nodes like this one on one storage",
            ["nodes", "MB/s at full speed", "of its bandwidth"],
            _storage(numbers),
        ),
    ]
    if len(report.results) > 1:
        tables.append(("Ranks", ["rank", "data, ms", "compute, ms", "both, ms", "waiting"], _rank_rows(report.results)))
    return tables


def _run_rows(found: Measurement) -> list[list[str]]:
    def row(name: str, ms: float, run: str) -> list[str]:
        return [name, f"{ms:.1f}", f"{1e3 * found.at.clips_per_step / ms:.1f}", f"{found.cores_busy[run]:.2f}"]

    waits = found.waits
    return [
        row("data alone", found.data_ms, "data"),
        row("compute alone", found.compute_ms, "compute"),
        row("both", found.both_ms, "both"),
        [f"of which waiting, mean of {waits.num_steps} steps", f"{waits.mean_ms:.1f}", "", ""],
        ["waiting, median", f"{waits.p50_ms:.1f}", "", ""],
        ["waiting, 99 % quantile", f"{waits.p99_ms:.1f}", "", ""],
        [_read_words(found), "", "", ""],
        [_storage_words(found), "", "", ""],
        *([f"{unit} busy in training: {percent:.0f} %", "", "", ""] for unit, percent in found.gpu_busy.items()),
    ]


def _read_words(found: Measurement) -> str:
    megabytes = found.bytes_per_step / 1e6
    pace = 1e3 * megabytes / found.data_ms
    return f"read: {megabytes:.2f} MB a step, {pace:.0f} MB/s in data alone ({found.read_rate:.0f} while a read lasts)"


def _storage_words(found: Measurement) -> str:
    speed = found.storage
    return f"storage: {1e3 * speed.latency:.2f} ms, {speed.bandwidth / 1e6:.0f} MB/s; read plan {found.at.reading}"


def _part_rows(found: Measurement) -> list[list[str]]:
    rows = []
    for name, work in found.data_parts.items():
        threads = found.at.reading_threads if name == "read" else found.at.loading_threads
        threads = 1 if name in found.serial_parts else threads
        without = found.without.get(name)
        measured = ["", ""] if without is None else [f"{without:.1f}", _saved(found, without)]
        rows.append([name, f"{work:.2f}", f"{threads} thread{'s' * (threads > 1)}", *measured])
        if name == "read":
            rows.append(["  of which checksum", f"{found.checksum_ms:.2f}", "", "", ""])
    for name, whole in (("augmentation", found.plain_ms), ("all: batches lie ready", found.synthetic_ms)):
        rows.append([name, "", "", f"{whole:.1f}", _saved(found, whole)])
    return rows


def _saved(found: Measurement, without: float) -> str:
    return f"{round(1 - without / found.data_ms, 2) + 0.0:.0%}"  # no "-0%"


def _compute_rows(found: Measurement) -> list[list[str]]:
    rows = [[name, f"{ms:.1f}", f"{ms / found.compute_ms:.0%}"] for name, ms in found.compute_parts.items()]
    if found.unsynchronised_ms is not None:
        exchange = found.compute_ms - found.unsynchronised_ms
        rows.append(["exchange of gradients, not hidden", f"{exchange:.1f}", f"{exchange / found.compute_ms:.0%}"])
    return rows


def _what_if_rows(found: Measurement) -> list[list[str]]:
    return [
        [row.change, f"{row.data_ms:.1f}", f"{row.step_ms:.1f}", row.limit, "a run" if row.measured else "the model"]
        for row in what_if(found)
    ]


def _storage(found: Measurement) -> list[list[str]]:
    return [[str(nodes), f"{demand:.1f}", f"{share:.2f}"] for nodes, demand, share in storage_rows(found)]


def _rank_rows(results: Sequence[RankResult]) -> list[list[str]]:
    rows = []
    for rank, result in enumerate(results):
        found = result.numbers
        times = [f"{ms:.1f}" for ms in (found.data_ms, found.compute_ms, found.both_ms)]
        rows.append([str(rank), *times, f"{found.wait_share:.1%}"])
    return rows


def _queue(result: RankResult) -> list[tuple[float, int]]:
    """(seconds since the first batch was taken, batches lying ready) at every change."""
    begin = result.taken[0] if result.taken else 0.0
    return [(at - begin, level) for at, level in occupancy(result.made, result.taken)]


def _flat_times(numbers: Mapping[str, Any]) -> dict[str, float]:
    times = {name: numbers[f"{name}_ms"] for name in ("data", "compute", "both", "plain", "synthetic")}
    times |= {f"wait, {name}": numbers["waits"][f"{name}_ms"] for name in ("mean", "p50", "p99")}
    for group in ("data_parts", "without", "compute_parts"):
        times |= {f"{group.replace('_', ' ')}: {name}": value for name, value in numbers[group].items()}
    return times


def _plot_runs(found: Measurement) -> Figure:
    figure = new_figure(9, 2.2)
    axes = figure.subplots()
    names = ["both", "compute alone", "data alone"]
    work = [found.both_ms - found.waits.mean_ms, found.compute_ms, found.data_ms]
    axes.barh(names, work, color=["#2f6fde", "#2f6fde", "#e08a1e"])
    axes.barh(["both"], [found.waits.mean_ms], left=[work[0]], color="#d64545", label="waiting for data")
    axes.set_xlabel("ms per step")
    axes.legend(fontsize="small", loc="lower right", bbox_to_anchor=(1, 1), frameon=False)  # above all bars
    return figure


def _plot_parts(found: Measurement) -> Figure:
    bars = dict(found.without) | {"augmentation": found.plain_ms, "all": found.synthetic_ms}
    figure = new_figure(9, 0.34 * len(bars) + 1)
    axes = figure.subplots()
    axes.barh([f"without {name}" for name in bars][::-1], list(bars.values())[::-1], color="#e08a1e")
    axes.axvline(found.data_ms, color="#1c1f24", linestyle="--", label="a whole batch")
    axes.axvline(found.compute_ms, color="#2f6fde", linestyle=":", label="a step of training")
    axes.set_xlabel("ms per batch")
    axes.legend(fontsize="small")
    return figure


def _plot_time(result: RankResult) -> Figure:
    figure = new_figure(9, 3.6)
    queue, waits = figure.subplots(2, 1)
    _plot_queue(queue, _queue(result))
    waits.bar(range(len(result.waits)), [1e3 * wait for wait in result.waits], color="#d64545")
    waits.set_xlabel("step")
    waits.set_ylabel("wait, ms")
    return figure


def _plot_queue(axes: Axes, levels: Sequence[tuple[float, int]]) -> None:
    axes.step([at for at, _ in levels], [level for _, level in levels], where="post", color="#2f6fde")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("batches ready")
