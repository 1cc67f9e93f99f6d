"""tools/plan.py by what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainers.small_runs import build_shards, plain_config, write_config
from tools.plan import plan


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of two clips."""
    folder = tmp_path_factory.mktemp("plan")
    return write_config(folder / "small.yaml", plain_config(build_shards(folder), folder / "run"))


def test_show_lists_what_changes_and_says_when_there_is_no_data(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]
    assert plan(["show", str(config), *files]) == 0
    text = capsys.readouterr().out
    assert [line.split() for line in text.splitlines()[1:4]] == [
        ["0", "small", "0.0001", "2", "0.00"],
        ["3", "small", "1e-05", "1", "3.00"],
        ["6", "end", "6.00"],
    ]
    stage = json.loads((tmp_path / "a.json").read_bytes())[0]
    assert (stage["passes"], stage["tables"]["max_gap"]) == (6.0, [[0, 2.0], [3, 1.0]])
    assert "gaps between frames of a clip (small): 1 to max gap + 1, as published" in text
    assert "data:image/png;base64," in (tmp_path / "a.html").read_text()
    assert plan(["show", str(config), f"stages.0.data.0.path={tmp_path}"]) == 0
    assert "no mix and no passes, because the data was not found" in capsys.readouterr().out


def test_find_takes_steps_and_names_clips(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(["find", str(config), "--steps", "4..5", "stages.0.recipe.num_frames=5"]) == 0
    header, *lines, _, rule = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["step", "rank"]
    assert [line.split()[:4] for line in lines] == [
        [step, "0", clip, "davis2017"] for step, clip in (("4", "8"), ("4", "9"), ("5", "10"), ("5", "11"))
    ]
    assert rule.startswith("gaps between frames of a clip (small): 1 to max gap + 1, as published")
    file = tmp_path / "new" / "found.json"
    alone = ["find", str(config), "--steps", "0", "stages.0.batch_size=1"]
    assert plan([*alone, "--json", str(file)]) == 0
    (clip,) = json.loads(file.read_text())
    (other,) = {"one", "two"} - {clip["video"]}
    capsys.readouterr()
    assert plan([*alone, "--video", other]) == 0
    assert capsys.readouterr().out == f"no clip of {other} in these steps\n"
    with pytest.raises(ValueError, match="no video 'nobody' in the data of this run: davis2017"):
        plan(["find", str(config), "--steps", "0", "--video", "nobody"])


def test_quality_stands_beside_a_uniform_shuffle(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(["quality", str(config)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("small: 8 clips of 2 videos in batches of 2")
    assert "uniform shuffle of the same clips" in text
    assert "different videos in a batch, mean" in text


def test_quality_looks_at_every_mix_of_a_stage(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "quality.json"
    assert plan(["quality", str(config), "stages.0.data.0.repeat=[[0, 1], [0.5, 3]]", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    assert "small: 6 clips of 2 videos in batches of 2" in text
    assert "small from step 3: 6 clips of 2 videos in batches of 2" in text
    assert list(json.loads(file.read_bytes())) == ["small", "small from step 3"]


def test_diff_of_a_config_with_itself_is_nothing_and_of_two_is_their_keys(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(["diff", str(config), str(config)]) == 0
    assert capsys.readouterr().out == "the two are equal in every key\n"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text(config.read_text().replace("steps: 6", "steps: 8"))
    assert plan(["diff", str(config), str(tmp_path / "other")]) == 0
    text = capsys.readouterr().out
    assert ["stages.0.steps", "6", "8"] in [line.split() for line in text.splitlines()]
    # The max gap changes at step 3 of 6, but at step 4 of 8.
    assert text.endswith("clips: others at step 3, the first of 5 steps looked at\n")


def test_any_order_out_of_a_file_has_a_quality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = tmp_path / "order.txt"
    order.write_text("\n".join("abcd" * 5 + "aaaa") + "\n")
    found = tmp_path / "found.json"
    assert plan(["quality", str(order), "--batch-size", "4", "--clips", "20", "--json", str(found)]) == 0
    assert capsys.readouterr().out.startswith("order.txt: 20 clips of 4 videos in batches of 4\n")
    values = json.loads(found.read_text())["order"]
    assert (values["distinct_per_batch"], values["repeat_distance"]) == (4, [4, 4, 4])
    assert values["autocorrelation"]["4"] == pytest.approx(1)
    for words in ([], ["--batch-size", "4", "seed=1"]):
        with pytest.raises(ValueError, match="is a list of videos: say --batch-size B"):
            plan(["quality", str(order), *words])
    with pytest.raises(ValueError, match=r"an order needs at least one batch of 30 clips, got 24"):
        plan(["quality", str(order), "--batch-size", "30"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["find", "x.yaml", "--steps", "a..b"], "'a..b' is neither a step nor A..B"),
        (["find", "x.yaml", "--steps", "7..5"], "'7..5' ends before it begins; write 5..7"),
        (["quality", "x.yaml", "--clips", "-3"], "'-3' is no whole number of at least 1"),
        (["show", "x.yaml", "--html", "."], ". is a folder, expected the name of a file"),
        (["show", "x.yaml", "--json", "/dev/null/x/y.json"], "/dev/null/x/y.json cannot be written"),
        (["show", "x.yaml", "--stepz"], "unrecognized arguments: --stepz"),
        (["paint"], "invalid choice: 'paint'"),
    ],
)
def test_wrong_words_are_one_line_and_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        plan(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
