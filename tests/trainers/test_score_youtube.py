from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.errors import DataError
from tests.trainers.scoring_oracle import slow_measure, slow_region
from tests.trainers.small_videos import HEIGHT, WIDTH, save_labels
from tests.trainers.small_youtube import BEGINS, listed_frames, truth, write_youtube_tree
from trainers.prediction.videos import VideoSource, open_videos
from trainers.scoring.protocols import PROTOCOLS, evaluate
from trainers.scoring.types import ObjectScores, find_results
from trainers.scoring.youtube import Categories, read_categories, youtube_vos_scores

RULES = PROTOCOLS["youtube_vos"]
TABLE = {
    "seen": ["cat"],
    "unseen": ["owl"],
    "videos": {"late": {"2": "cat", "5": "owl"}, "dark": {"3": "owl"}},
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_youtube_tree(tmp_path / "tree")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Masks one rectangle step behind the truth, in the server's folder."""
    root = tmp_path / "results"
    for video, begins in BEGINS.items():
        for name in listed_frames(min(begins.values())):
            frame = int(name)
            labels = truth(video, frame)
            labels[:, 2:], labels[:, :2] = labels[:, :-2].copy(), 0
            save_labels(root / "Annotations" / video / f"{name}.png", labels)
    return root


def score(tree: Path, results: Path, *, jobs: int = 1) -> tuple[VideoSource, list[ObjectScores]]:
    source = open_videos(tree, splits=("valid_gt",))
    videos = source.select("valid_gt")
    return source, evaluate(source, find_results(results, videos), RULES, videos, jobs=jobs)


def test_objects_are_scored_in_their_frames_but_the_first_the_last_included(tree: Path, results: Path) -> None:
    for jobs in (1, 2):
        _, scores = score(tree, results, jobs=jobs)
        assert [(item.video, item.number) for item in scores] == [("dark", 3), ("late", 2), ("late", 5)]
        for item in scores:
            assert list(item.frames) == listed_frames(BEGINS[item.video][item.number])[1:]
            for place, name in enumerate(item.frames):
                labels = truth(item.video, int(name))
                moved = np.zeros_like(labels)
                moved[:, 2:] = labels[:, :-2]
                masks = labels == item.number, moved == item.number
                assert item.region[place] == slow_region(*masks)
                assert item.boundary[place] == slow_measure(*masks)


def test_g_is_the_mean_of_the_four_means_over_objects(tree: Path, results: Path, tmp_path: Path) -> None:
    source, scores = score(tree, results)
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    figures = youtube_vos_scores(source, scores, read_categories(tmp_path / "table.json"))
    dark, cat, owl = scores
    expected = {
        "J-seen": cat.region.mean(),
        "J-unseen": (dark.region.mean() + owl.region.mean()) / 2,
        "F-seen": cat.boundary.mean(),
        "F-unseen": (dark.boundary.mean() + owl.boundary.mean()) / 2,
    }
    expected["G"] = sum(expected.values()) / 4
    assert figures == pytest.approx({**expected, "objects-seen": 1, "objects-unseen": 2})


def test_without_a_table_every_object_is_seen(tree: Path, results: Path) -> None:
    source, scores = score(tree, results)
    figures = youtube_vos_scores(source, scores, Categories())
    assert set(figures) == {"G", "J-seen", "F-seen", "objects-seen"}
    assert figures["G"] == pytest.approx((figures["J-seen"] + figures["F-seen"]) / 2)


def test_categories_may_come_from_the_data_set(tree: Path, results: Path) -> None:
    meta = json.loads((tree / "valid" / "meta.json").read_text())
    for video, objects in TABLE["videos"].items():  # type: ignore[attr-defined]
        for key, category in objects.items():
            meta["videos"][video]["objects"][key]["category"] = category
    (tree / "valid_gt" / "meta.json").write_text(json.dumps(meta))
    source, scores = score(tree, results)
    assert youtube_vos_scores(source, scores, Categories(frozenset({"owl"})))["objects-unseen"] == 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"unseen": ["owl"], "videos": {"late": {"2": "cat"}}}, "dark_3: expected a category .* found none"),
        ({**TABLE, "seen": ["dog"]}, "late_2: expected a category .* found cat"),
    ],
)
def test_objects_of_no_known_category_are_named(
    tree: Path, results: Path, tmp_path: Path, table: dict, message: str
) -> None:
    (tmp_path / "table.json").write_text(json.dumps(table))
    source, scores = score(tree, results)
    with pytest.raises(DataError, match=message):
        youtube_vos_scores(source, scores, read_categories(tmp_path / "table.json"))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"seen": []}', '{"unseen": 3}', '{"unseen": [], "videos": {"a": {"x": 1}}}']
)
def test_a_table_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(DataError, match=r"table\.json: expected a table"):
        read_categories(tmp_path / "table.json")


def test_an_object_missing_from_a_result_is_an_empty_mask(tree: Path, results: Path) -> None:
    for name in listed_frames(0):
        save_labels(results / "Annotations" / "late" / f"{name}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    _, scores = score(tree, results)
    assert scores[1].region.max() == 0
    assert scores[0].region.min() > 0.5


@pytest.mark.parametrize(("stray", "remedy"), [(7, "write the ids of the given"), (255, "write 0 where")])
def test_ids_of_no_object_are_refused(tree: Path, results: Path, stray: int, remedy: str) -> None:
    save_labels(results / "Annotations" / "late" / "00010.png", np.full((HEIGHT, WIDTH), stray, np.uint8))
    with pytest.raises(
        DataError, match=rf"00010\.png: expected the ids of the video, 2, 5, found id {stray}; {remedy}"
    ):
        score(tree, results)


def test_truth_that_holds_first_masks_only_is_refused(tree: Path, results: Path) -> None:
    source = open_videos(tree, splits=("valid",))
    with pytest.raises(DataError, match=r"truth of late, frame 00010: expected masks of the 4 frames .* 2 is scored"):
        evaluate(source, find_results(results, ["late"]), RULES, ["late"])


def test_shards_with_complete_masks_score_like_the_folder(tree: Path, results: Path, tmp_path: Path) -> None:
    (tree / "valid" / "Annotations").rename(tmp_path / "given")
    (tree / "valid_gt" / "Annotations").rename(tree / "valid" / "Annotations")
    job = BuildRequest("youtube_vos", (tree,), tmp_path / "sets", splits=("valid",))
    source = open_videos(build(job, make_plan(job), silent).root)
    videos = sorted(source.select("valid"))
    scores = evaluate(source, find_results(results, videos), RULES, videos)
    (tree / "valid" / "Annotations").rename(tree / "valid_gt" / "Annotations")
    for ours, theirs in zip(scores, score(tree, results)[1], strict=True):
        assert (ours.name, ours.frames) == (theirs.name, theirs.frames)
        np.testing.assert_array_equal(ours.region, theirs.region)


def test_an_object_that_begins_in_its_last_frame_is_not_scored(
    tree: Path, results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    meta = json.loads((tree / "valid" / "meta.json").read_text())
    meta["videos"]["late"]["objects"]["5"]["frames"] = ["00020"]
    (tree / "valid_gt" / "meta.json").write_text(json.dumps(meta))
    with caplog.at_level(logging.WARNING):
        _, scores = score(tree, results)
    assert [item.name for item in scores] == ["dark_3", "late_2"]
    assert "late: object 5 begins in its last frame" in caplog.text


def test_real_truth_scored_against_itself_is_perfect(shared_data: Path) -> None:
    pack = shared_data / "ytvos_mini"
    source, scores = score(pack, pack / "valid_gt")
    figures = youtube_vos_scores(source, scores, read_categories(pack / "valid_gt" / "categories.json"))
    assert figures["G"] == 1.0
    assert (figures["objects-seen"], figures["objects-unseen"]) == (1, 2)
    assert [len(item.frames) for item in scores] == [7, 6, 4]
