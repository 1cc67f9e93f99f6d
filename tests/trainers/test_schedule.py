"""What a run will draw is what it draws: schedules, passes and found clips against the sources themselves."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.order.curriculum import Table
from tests.trainers.small_runs import build_shards, plain_config, small_config, two_stages
from trainers.config import Config, Stage, make_config
from trainers.looking.drawn_clips import find_clips, first_other_step
from trainers.looking.schedule import differences, make_schedule, mix_rows, plot_schedule, schedule_rows
from trainers.running.stages import open_sources


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Two stages, of 2 and 3 steps of 2 clips, on two videos."""
    folder = tmp_path_factory.mktemp("schedule")
    return make_config(two_stages(plain_config(build_shards(folder), folder / "run")), source="test")


def test_rows_are_the_steps_at_which_something_changes(config: Config) -> None:
    header, rows = schedule_rows(make_schedule(config, None))
    assert header == ["from step", "stage", "learning_rate", "max_gap", "passes"]
    assert rows == [
        ["0", "small", "0.0001", "2", ""],
        ["1", "small", "1e-05", "1", ""],
        ["2", "second", "0.0001", "2", ""],
        ["4", "second", "1e-05", "1", ""],
        ["5", "end", "", "", ""],
    ]


def test_with_data_the_mix_and_the_passes_are_those_of_the_clips_drawn(config: Config) -> None:
    with ExitStack() as stack:
        sources = open_sources(config, stack)
        schedules = make_schedule(config, sources)
        clips = list(find_clips(sources, range(5)))
    assert [row[-1] for row in schedule_rows(schedules)[1]] == ["0.00", "1.00", "0.00", "2.00", "3.00"]
    _, rows = mix_rows(schedules)
    assert rows == [
        ["small", "davis2017 val", "2", "100.00%", "4", "2.0"],
        ["second", "davis2017 val", "2", "100.00%", "6", "3.0"],
    ]
    assert Counter(clip.video for clip in clips if clip.step < 2) == {"one": 2, "two": 2}


def test_weights_that_change_are_a_table_and_the_passes_and_clips_follow_them(config: Config) -> None:
    stage = config.stages[0]
    changing = replace(stage.data[0], repeat=Table(((0, 1), (0.5, 0), (0.75, 2))))
    other = replace(stage.data[0], repeat=Table(((0, 0), (0.5, 1))))
    run = replace(config, stages=(replace(stage, steps=4, data=(changing, other)),))
    with ExitStack() as stack:
        (source,) = open_sources(run, stack)
        (schedule,) = make_schedule(run, [source])
        drawn = Counter(source.plan(number).dataset for number in range(8))
        header, rows = schedule_rows([schedule])
        # Two videos; by step: 1 and 0 times each, the same, 0 and 1, 2 and 1.
        assert header == ["from step", "stage", "learning_rate", "max_gap", "data.0.repeat", "data.1.repeat", "passes"]
        assert [(row[0], row[4], row[5], row[6]) for row in rows] == [
            ("0", "1", "0", "0.00"), ("2", "0", "1", "2.00"), ("3", "2", "1", "3.00"), ("4", "", "", "3.33"),
        ]  # fmt: skip
        assert [part.clips for part in schedule.mix_parts()] == [drawn[0], drawn[1]] == [5, 3]
        *_, passes = plot_schedule([schedule]).axes
        assert passes.lines[0].get_ydata() == pytest.approx([0, 2, 3, 10 / 3])


def test_a_found_clip_is_the_clip_its_step_and_rank_train_on(config: Config) -> None:
    with ExitStack() as stack:
        sources = open_sources(config, stack)
        found = list(find_clips(sources, range(1, 4), world_size=2))
        assert [(clip.step, clip.rank, clip.clip) for clip in found] == [
            (1, 0, 2), (1, 1, 3), (2, 0, 0), (2, 1, 1), (3, 0, 2), (3, 1, 3),
        ]  # fmt: skip
        for clip in found:
            plan = sources[0 if clip.step < 2 else 1].plan(clip.clip)
            first = sources[0].shard_set(plan).frame_rows(plan.video).start
            assert tuple(first + frame for frame in clip.frames) == tuple(plan.frames)
            assert clip.object_ids == tuple(plan.object_ids)
            assert [clip.frames[0] + sum(clip.gaps[:n]) for n in range(len(clip.frames))] == list(clip.frames)
        with pytest.raises(ValueError, match=r"not in a run of 5 steps, 0\.\.4"):
            list(find_clips(sources, range(3, 6)))


def test_runs_are_told_apart_by_the_first_step_with_other_clips(config: Config) -> None:
    longer = replace(config, stages=(config.stages[0], replace(config.stages[1], steps=4)))
    changes = {
        "rate": (replace(config, stages=(_with_rate(config.stages[0], 0.5), config.stages[1])), None),
        "seed": (replace(config, seed=2), 0),
        # Its max gap changes at progress 0.5: step 2 of 3 becomes step 2 of 4, and a fourth step follows.
        "longer": (longer, 5),
        "second stage": (replace(config, stages=(config.stages[0], replace(config.stages[1], batch_size=4))), 2),
    }
    for name, (other, expected) in changes.items():
        with ExitStack() as stack:
            sources = [open_sources(each, stack) for each in (config, other)]
            assert first_other_step(*sources, range(6 if name == "longer" else 5)) == expected, name


def _with_rate(stage: Stage, rate: float) -> Stage:
    return replace(stage, learning_rate=Table(((0.0, rate),)))


def test_differences_name_each_key_once_and_nothing_else(config: Config, tmp_path: Path) -> None:
    assert differences(config, config) == []
    stage = replace(config.stages[0], batch_size=4)
    other = replace(config, seed=1, stages=(stage, *config.stages[1:]))
    assert differences(config, other) == [("seed", "14159265", "1"), ("stages.0.batch_size", "2", "4")]
    one_stage = replace(config, stages=config.stages[:1])
    gone = differences(config, one_stage)
    assert gone
    assert all(key.startswith("stages.1.") and not second for key, _, second in gone)


def test_the_plot_shows_every_table_over_the_whole_run(config: Config) -> None:
    figure = plot_schedule(make_schedule(config, None))
    rate, gap = figure.axes
    assert (rate.get_ylabel(), gap.get_ylabel()) == ("learning rate", "max gap")
    spans = [tuple(segment[:, 0]) for lines in gap.collections for segment in lines.get_segments()]
    assert spans == [(0, 1), (1, 2), (2, 4), (4, 5)]
    assert all(tick == round(tick) for tick in gap.get_yticks()) and gap.get_ylim()[0] == 0, "no gap of half a frame"


def test_small_config_is_read_the_same_from_a_runs_folder(tmp_path: Path) -> None:
    from trainers.looking.schedule import config_path

    assert config_path(tmp_path) == tmp_path
    (tmp_path / "config.yaml").touch()
    assert config_path(tmp_path) == tmp_path / "config.yaml"
    assert config_path(tmp_path / "x.yaml") == tmp_path / "x.yaml"
    assert small_config(tmp_path, tmp_path).stages[0].steps == 6
