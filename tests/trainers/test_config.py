"""Configs say what is wrong, where, and what to do; right ones survive the way through YAML and checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.recipes import RECIPES, RdeStatic, RdeVideo, make_recipe, recipe_options
from trainers.config import Config, ConfigError, as_plain, load_config, make_config
from trainers.config_reading import apply_overrides

CONFIGS = Path(__file__).resolve().parents[2] / "trainers" / "configs"

MINIMAL = """
stages:
  - name: video
    steps: 1_000
    batch_size: 4
    data: [{path: data/davis2017}]
    learning_rate: [[0.0, 1e-5], [0.5, 1.0e-6]]
"""


def write(folder: Path, text: str = MINIMAL) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_a_minimal_file_gets_the_published_values(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    stage = config.stages[0]
    assert (config.name, config.folder, config.seed) == ("mine", Path("runs/mine"), 14159265)
    assert (stage.steps, stage.weight_decay, stage.objective.top_p) == (1000, 1e-7, 0.15)
    assert stage.clip_recipe() == RdeVideo()
    assert stage.data[0].path == Path("data/davis2017")


def test_a_number_like_1e_5_is_a_number(tmp_path: Path) -> None:
    table = load_config(write(tmp_path)).stages[0].learning_rate
    assert table.rows == ((0.0, 1e-5), (0.5, 1e-6))
    assert table.at(499, 1000) == 1e-5
    assert table.at(500, 1000) == 1e-6


def test_overrides_reach_into_lists_and_make_missing_mappings(tmp_path: Path) -> None:
    words = ["stages.0.steps=10", "stages.0.objective.top_p=0.5", "model.width=0.25", "output=here/run", "threads=null"]
    config = load_config(write(tmp_path), words)
    assert (config.stages[0].steps, config.stages[0].objective.top_p, config.model.width) == (10, 0.5, 0.25)
    assert config.folder == Path("here/run")
    config = load_config(write(tmp_path), ["stages.0.data=[{path: a, repeat: 5}, {path: b, gap_step: 5}]"])
    assert [(str(entry.path), entry.repeat, entry.gap_step) for entry in config.stages[0].data] == [
        ("a", 5, 1),
        ("b", 1, 5),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stages.0.stepz=10"], r"command line: stages.0.stepz: unknown key; did you mean 'steps'\?"),
        (["modle.width=1"], r"command line's changes: modle: unknown key; did you mean 'model'\?"),
        (["stages.0.objective.topp=1"], r"stages.0.objective.topp: unknown key; did you mean 'top_p'\?"),
        (["stages.0.data.0.splitt=val"], r"stages.0.data.0.splitt: unknown key; did you mean 'split'\?"),
        (["zzz=1"], "zzz: unknown key; known here: .*seed"),
        (["stages.0.steps=ten"], "command line: stages.0.steps: 'ten' does not fit; .*integer"),
        (["stages.0.steps=0"], "stages.0.steps: 0 does not fit; .*greater than 0"),
        (["stages.0.steps=yes"], "stages.0.steps: should be a number, not yes or no"),
        (["stages.0.precision=fp8"], "stages.0.precision: 'fp8' does not fit; .*'fp32', 'bf16' or 'fp16'"),
        (["stages.0.objective.top_p=2"], r"stages.0.objective: top_p must lie in \(0, 1\]"),
        (["stages.0.learning_rate=1e-4"], r"stages.0.learning_rate: should be a table of rows"),
        (["stages.0.learning_rate=[[0.5, 1e-4]]"], r"stages.0.learning_rate: a table starts with a row at progress 0"),
        (["stages.0.data=[]"], "stages.0: data names no shard set"),
        (["stages.0.recipe={name: rde_vidoe}"], "stages.0: no recipe 'rde_vidoe', did you mean 'rde_video'"),
        (["stages.0.recipe={name: rde_video, max_gapp: 3}"], "did you mean 'max_gap'"),
        (["stages.0.recipe={size: 64}"], "recipe has no name; there are: rde_static, rde_bl30k, rde_video"),
        (
            ["stages.0.recipe={name: rde_video, size: 40}"],
            "multiples of 16 and at least 32, got 40x40; set recipe.size",
        ),
        (
            ["stages.0.recipe={name: rde_video, num_frames: 2}"],
            "clips of 3 frames or more, got 2; set recipe.num_frames",
        ),
        (["stages.0.recipe={name: rde_video, clip_length: [[0, 2], [0.5, 5]]}"], "of 3 frames or more, got 2"),
        (["stages.0.learning_rate=[[0, 1e-4], [0.5, -1e-4]]"], "learning_rate has a negative value"),
        (
            ["stages.0.data.0.repeat=0"],
            r"line: stages.0.data.0.repeat: 0 is no count; give a whole number from 1, or rows",
        ),
        (["stages.0.data.0.repeat=yes"], r"stages.0.data.0.repeat: True is no count"),
        (["stages.0.data.0.repeat=[[0, 1.5]]"], "stages.0.data.0.repeat: .* other values than whole numbers from 0"),
        (["stages.0.data.0.repeat=[[0, 0], [0.5, 0]]"], "or nothing but 0; correct them"),
        (["stages.0.data.0.repeat=[[0.5, 1]]"], "stages.0.data.0.repeat: a table starts with a row at progress 0"),
        (["stages.0.data=[{path: a, repeat: 2, clips_per_pass: 9}]"], "repeat does nothing beside clips_per_pass"),
        (["stages.0.data.0.repeat=[[0, 1], [0.5, 0]]"], "stages.0: no data set has clips from step 500 on; give one"),
        (["stages.0.weight_decay=.inf"], "stages.0.weight_decay: inf does not fit; .*finite"),
        (["seed=99999999999999999999"], "seed: 99999999999999999999 does not fit; .*less than 1844674407370955"),
        (["model.name=rdee"], r"model: .*'rdee'"),
        (["model.width=0.3"], r"command line: model.width: width is 0.3, expected a positive multiple of 1/16"),
        (["model.width=.inf"], r"command line: model.width: width is inf, expected a number"),
        (["name=../x"], r"command line: name: '\.\./x' is no name of a folder; give output=FOLDER"),
        (["name='..'"], r"command line: name: '\.\.' is no name of a folder"),
        (["name=/tmp"], r"command line: name: '/tmp' is no name of a folder"),
        (["stages=[]"], "stages is empty"),
        (
            ["stages.3.steps=1"],
            "command line: stages.3.steps: '3' is no position in a list of 1; use a position from 0",
        ),
        (["stages.0.steps.x=1"], "'steps' is the value 1000, with nothing below it"),
        (["steps"], "'steps' is not key=value; write for example stages.0.steps=10"),
        (["seed=[1"], "seed: .* is not valid YAML"),
    ],
)
def test_a_wrong_word_is_named_with_its_place_and_remedy(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path), words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL.replace("steps", "step"), r"mine.yaml: stages.0.step: unknown key; did you mean 'steps'\?"),
        (MINIMAL.replace("    steps: 1_000\n", ""), "mine.yaml: stages.0.steps: missing; give it a value"),
        (MINIMAL + "seed: 1\nseed: 2\n", "mine.yaml: is not valid YAML: .*'seed' is given twice.*line"),
        ("- 1\n", "mine.yaml: holds list, not a mapping"),
        ("a: [", "mine.yaml: is not valid YAML"),
        (MINIMAL + MINIMAL.replace("stages:\n", ""), "equal names: video, video"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_a_file_that_is_not_there_is_a_config_error_with_status_2(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"none.yaml: is not there; give the path of a YAML file; shipped: demo, "
    ) as caught:
        load_config(tmp_path / "none.yaml")
    assert caught.value.exit_status == 2


def test_a_config_survives_json_and_yaml(tmp_path: Path) -> None:
    words = [
        "stages.0.recipe={name: rde_video, size: 64, max_gap: [[0, 2], [0.5, 1]], clip_length: [[0, 3], [0.5, 5]]}",
        "stages.0.data=[{path: a, repeat: [[0, 5], [0.9, 0]]}, {path: b, clips_per_pass: [[0, 0], [0.5, 9]]}]",
    ]
    config = load_config(write(tmp_path), words)
    assert [sorted(entry.tables()) for entry in config.stages[0].data] == [["repeat"], ["clips_per_pass"]]
    for plain in (json.loads(json.dumps(as_plain(config))), yaml.safe_load(yaml.safe_dump(as_plain(config)))):
        again = make_config(plain, source="checkpoint")
        assert as_plain(again) == as_plain(config)
        assert again.stages[0].clip_recipe() == config.stages[0].clip_recipe()


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_as_plain_values_has_every_field_of_its_recipe(name: str) -> None:
    recipe = make_recipe(name, {})
    plain = json.loads(json.dumps(recipe_options(recipe)))
    assert plain.keys() == {field.name for field in dataclasses.fields(RECIPES[name])}
    assert make_recipe(name, plain) == recipe
    assert recipe_options(make_recipe(name, plain)) == plain


def test_overrides_say_which_keys_they_set() -> None:
    values: dict[str, Any] = {"a": [{"b": 1}]}
    assert apply_overrides(values, ["a.0.b=2", "c.d=x"]) == {"a.0.b", "c.d"}
    assert values == {"a": [{"b": 2}], "c": {"d": "x"}}


PUBLISHED_SWITCHES = {
    "rde_stage1.yaml": (48_724, 101_196, 149_920, 202_392, 401_036),
    "rde_stage2.yaml": (7_520, 15_040, 22_560, 30_080, 67_680),
    "rde_stage3.yaml": (15_040, 30_080, 45_120, 60_160, 135_360),
}


@pytest.mark.parametrize("name", PUBLISHED_SWITCHES)
def test_video_recipes_switch_gaps_at_the_published_steps(name: str) -> None:
    (stage,) = load_config(CONFIGS / name).stages
    recipe = stage.clip_recipe()
    assert isinstance(recipe, RdeVideo)
    switches = zip((0, *PUBLISHED_SWITCHES[name]), (5, 10, 15, 20, 25, 5), strict=True)
    assert recipe.max_gap.switches(stage.steps) == tuple(switches)
    assert dataclasses.replace(recipe, max_gap=type(recipe)().max_gap) == type(recipe)()


@pytest.mark.parametrize(
    ("name", "sizes", "rates", "weights", "top_p"),
    [
        ("stage0", (75_000, 64), (2e-5, 37_500), (10,), (5_000, 17_500)),
        ("stage1", (500_000, 8), (1e-5, 400_000), (10, 10, 10), (20_000, 70_000)),
        ("stage2", (75_000, 16), (2e-5, 62_500), (5, 5, 5), (5_000, 17_500)),
        ("stage3", (150_000, 8), (2e-5, 125_000), (10, 10, 10), (20_000, 70_000)),
    ],
)
def test_recipes_hold_the_published_numbers(
    name: str, sizes: tuple[int, int], rates: tuple[float, int], weights: tuple[float, ...], top_p: tuple[int, int]
) -> None:
    (stage,) = load_config(CONFIGS / f"rde_{name}.yaml").stages
    assert (stage.name, stage.steps, stage.batch_size, stage.weight_decay) == (name, *sizes, 1e-7)
    assert stage.learning_rate.switches(stage.steps) == ((0, rates[0]), (rates[1], pytest.approx(rates[0] / 10)))
    objective = stage.objective
    assert (objective.top_p, objective.top_p_start_step, objective.top_p_end_step) == (0.15, *top_p)
    assert objective.weights == weights
    repeats = {"stage0": [1, 1, 1, 1, 5, 5], "stage1": [1]}.get(name, [5, 1])
    assert [entry.repeat for entry in stage.data] == repeats
    if name == "stage0":
        assert stage.clip_recipe() == RdeStatic()
    if name in ("stage2", "stage3"):
        assert [entry.gap_step for entry in stage.data] == [1, 5]


def test_the_run_of_all_stages_is_made_of_the_same_stages() -> None:
    alone = {
        name: load_config(CONFIGS / f"rde_{name}.yaml").stages[0] for name in ("stage0", "stage1", "stage2", "stage3")
    }
    together = load_config(CONFIGS / "rde_all.yaml").stages
    assert together == (alone["stage0"], alone["stage1"], alone["stage2"])
    without_bl30k = load_config(CONFIGS / "rde_all.yaml", ["use_stages=[stage0, stage3]"]).stages
    assert without_bl30k == (alone["stage0"], alone["stage3"])


@pytest.mark.parametrize("words", ["use_stages=[video, other]", "use_stages=other"])
def test_stages_that_are_not_there_cannot_be_used(tmp_path: Path, words: str) -> None:
    with pytest.raises(ConfigError, match=r"use_stages: 'other' names no stages; give a list of: video"):
        load_config(write(tmp_path), [words])


def test_options_of_one_objective_are_unknown_to_the_other(tmp_path: Path) -> None:
    still = ["stages.0.objective={name: rde_still, frame_2_weight: 3}", "stages.0.recipe={name: rde_static}"]
    with pytest.raises(
        ConfigError, match=r"stages.0.objective.frame_2_weight: unknown key; did you mean 'frame_weighting'"
    ):
        load_config(write(tmp_path), still)
    with pytest.raises(
        ConfigError, match=r"stages.0.objective: unknown objective 'rde_stil'; did you mean 'rde_still'"
    ):
        load_config(write(tmp_path), ["stages.0.objective.name=rde_stil"])
    with pytest.raises(ConfigError, match=r"stages.0.objective.top_q: unknown key; did you mean 'top_p'"):
        load_config(write(tmp_path), ["stages.0.objective.top_q=1"])


def test_stills_cannot_follow_video() -> None:
    with pytest.raises(ConfigError, match=r"a stage of still images follows one of video; put it first"):
        load_config(CONFIGS / "rde_all.yaml", ["use_stages=[stage3, stage0]"])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_of_ours_loads(path: Path) -> None:
    assert isinstance(load_config(path), Config)
