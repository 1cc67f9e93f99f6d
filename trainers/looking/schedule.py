"""What a run will draw and when: every table of its stages, its data mix and passes over it, as rows and as a plot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.order.curriculum import Table
from pipelines.order.sampling import Mix
from pipelines.recipes import RdeVideo, Recipe, StmCycle
from pipelines.source import ClipSource
from trainers.config import Config, Stage, as_plain
from trainers.pages import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class MixPart:
    """One data set of a stage's mix. num_videos: that are sampled, not of the whole set. clips, share (0..1): of all
    clips of the stage.
    """

    name: str
    split: str
    num_videos: int
    clips: int
    share: float


@dataclass(frozen=True, slots=True)
class StageSchedule:
    """One stage. first_step: updates of the run before it. tables: name -> value as a function of the step.

    mix: None where the data was not opened.
    """

    name: str
    first_step: int
    steps: int
    batch_size: int
    tables: Mapping[str, Table]
    mix: Mix | None = None

    def passes_after(self, step: int) -> float | None:
        """Passes over the mix ("epochs") that `step` steps of the stage amount to; None without data."""
        return None if self.mix is None else self.mix.passes(step * self.batch_size)

    def mix_parts(self) -> list[MixPart]:
        """What the stage's clips are of; nothing without data."""
        if self.mix is None:
            return []
        clips = self.steps * self.batch_size
        parts = zip(self.mix.entries, self.mix.selections, self.mix.counts(clips), strict=True)
        return [
            MixPart(entry.dataset.name, entry.split, len(set(chosen.videos.tolist())), count, count / clips)
            for entry, chosen, count in parts
        ]

    def switches(self) -> list[int]:
        """Steps of the stage at which any table takes a new value, from 0 on."""
        return sorted({step for table in self.tables.values() for step, _ in table.switches(self.steps)} | {0})

    def values_at(self, step: int) -> dict[str, float]:
        """Every table's value at a step of the stage."""
        return {name: table.at(step, self.steps) for name, table in self.tables.items()}


def make_schedule(config: Config, sources: Sequence[ClipSource] | None) -> list[StageSchedule]:
    """The stages of a run in order. sources: of `stages.open_sources`, None if the data is not at hand."""
    schedules, first = [], 0
    for position, stage in enumerate(config.stages):
        mix = None if sources is None else sources[position].mix
        schedules.append(StageSchedule(stage.name, first, stage.steps, stage.batch_size, _tables(stage), mix))
        first += stage.steps
    return schedules


def schedule_rows(schedules: Sequence[StageSchedule]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: a row for every step at which something changes, and the end of the run."""
    names = list(dict.fromkeys(name for schedule in schedules for name in schedule.tables))
    rows = []
    for schedule in schedules:
        for step in schedule.switches():
            values = schedule.values_at(step)
            cells = [f"{values[name]:g}" if name in values else "" for name in names]
            rows.append([schedule.first_step + step, schedule.name, *cells, _passes(schedule, step)])
    last = schedules[-1]
    rows.append([last.first_step + last.steps, "end", *[""] * len(names), _passes(last, last.steps)])
    return ["from step", "stage", *names, "passes"], [[str(cell) for cell in row] for row in rows]


def mix_rows(schedules: Sequence[StageSchedule]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: the data sets of every stage, how often each of their videos is shown."""
    rows = []
    for schedule in schedules:
        for part in schedule.mix_parts():
            times = f"{part.clips / part.num_videos:.1f}"
            data = f"{part.name} {part.split}"
            rows.append([schedule.name, data, str(part.num_videos), f"{part.share:.2%}", str(part.clips), times])
    return ["stage", "data", "videos", "of the clips", "clips", "times each video"], rows


def gap_rule(recipe: Recipe) -> str:
    """How far apart neighbouring frames of a recipe's clips may lie, given its max_gap; "" where it has none."""
    if isinstance(recipe, RdeVideo):
        return "1 to max gap + 1, as published; less in short videos, negative where the clip runs backwards"
    return "1 to max gap" if isinstance(recipe, StmCycle) else ""


def plot_schedule(schedules: Sequence[StageSchedule]) -> Figure:
    """Every table over the steps of the run, one below the other, then the passes over the mix where data is known."""
    names = list(dict.fromkeys(name for schedule in schedules for name in schedule.tables))
    with_passes = any(schedule.mix is not None for schedule in schedules)
    figure = new_figure(9, 1.7 * (len(names) + with_passes) + 0.6)
    rows = figure.subplots(len(names) + with_passes, 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(rows, names, strict=False):
        _plot_table(axes, name, schedules)
    if with_passes:
        _plot_passes(rows[-1], schedules)
    rows[-1].set_xlabel("step of the run")
    return figure


def differences(first: Config, second: Config) -> list[tuple[str, str, str]]:
    """(dotted key, value in the first, value in the second) of all that differs; "" where one has no such key."""
    plain = [_flat(as_plain(config)) for config in (first, second)]
    keys = sorted(plain[0].keys() | plain[1].keys(), key=_natural)
    values = [(key, str(plain[0].get(key, "")), str(plain[1].get(key, ""))) for key in keys]
    return [row for row in values if row[1] != row[2]]


def config_path(given: Path) -> Path:
    """The config that a path names: a YAML file itself, or config.yaml in the folder of a run.

    A folder that is no run's stays what it is: its name may be that of a shipped config.
    """
    of_run = given / "config.yaml"
    return of_run if of_run.is_file() else given


def _tables(stage: Stage) -> dict[str, Table]:
    recipe: Any = stage.clip_recipe()
    of_recipe = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    tables = {name: value for name, value in of_recipe.items() if isinstance(value, Table)}
    for position, entry in enumerate(stage.data):
        tables |= {f"data.{position}.{name}": table for name, table in entry.tables().items()}
    return {"learning_rate": stage.learning_rate, **tables}


def _passes(schedule: StageSchedule, step: int) -> str:
    passes = schedule.passes_after(step)
    return "" if passes is None else f"{passes:.2f}"


def _plot_table(axes: Axes, name: str, schedules: Sequence[StageSchedule]) -> None:
    seen: set[float] = set()
    for schedule in schedules:
        table = schedule.tables.get(name)
        if table is not None:
            steps, values = zip(*table.switches(schedule.steps), strict=True)
            seen.update(values)
            ends = [*steps[1:], schedule.steps]
            axes.hlines(
                values, [schedule.first_step + step for step in steps], [schedule.first_step + end for end in ends]
            )
        axes.axvline(schedule.first_step, color="0.8", linewidth=0.8)
    axes.set_ylabel(name.replace("_", " "))
    if name == "learning_rate":
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.1 * max(seen))
        axes.locator_params(axis="y", integer=all(value == round(value) for value in seen), nbins=4)


def _plot_passes(axes: Axes, schedules: Sequence[StageSchedule]) -> None:
    for schedule in schedules:
        if schedule.mix is not None:
            steps = [*(first for first, _ in schedule.mix.phases), schedule.steps]
            passes = [schedule.mix.passes(step * schedule.batch_size) for step in steps]
            label = f"{schedule.name}: {passes[-1]:.1f}"
            axes.plot([schedule.first_step + step for step in steps], passes, label=label)
    axes.set_ylabel("passes")
    axes.legend(fontsize="small", loc="upper left")


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        items = [(str(name), inner) for name, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        items = [(str(place), inner) for place, inner in enumerate(value)]
    else:
        return {key: value}
    return {
        name: leaf for part, inner in items for name, leaf in _flat(inner, f"{key}.{part}" if key else part).items()
    }


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in key.split(".")]
