from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from shards.errors import DataError
from tests.trainers.scoring_oracle import slow_measure, slow_region
from tests.trainers.small_videos import HEIGHT, WIDTH, label_map, save_labels, write_tree
from trainers.label_files import LabelMap
from trainers.prediction.videos import open_videos
from trainers.scoring.davis import MAX_PROPOSALS, assign
from trainers.scoring.measures import score_frame, score_pairs
from trainers.scoring.protocols import PROTOCOLS, evaluate, global_scores
from trainers.scoring.types import ObjectScores, find_results

NUM_FRAMES = 4
RULES = PROTOCOLS["davis2017_unsupervised"]


def write_truth(root: Path, labels: list[LabelMap]) -> Path:
    write_tree(root, {"one": (1,)}, num_frames=len(labels))
    for frame, truth in enumerate(labels):
        save_labels(root / "Annotations_unsupervised" / "480p" / "one" / f"{frame:05d}.png", truth)
    return root


def score(truth: Path, results: Path) -> list[ObjectScores]:
    source = open_videos(truth, list_folders=RULES.list_folders, annotations=RULES.annotations)
    return evaluate(source, find_results(results, ["one"]), RULES, ["one"])


def random_maps(seed: int, highest: int) -> list[LabelMap]:
    """Blobs: coarse noise enlarged."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, highest + 1, (NUM_FRAMES, 8, 10), dtype=np.uint8)
    return [np.kron(labels, np.ones((5, 5), np.uint8)) for labels in coarse]


@pytest.mark.parametrize(("num_objects", "num_proposals"), [(3, 4), (3, 2), (1, 3), (3, 0)])
def test_proposals_are_assigned_as_trying_every_assignment_would(
    tmp_path: Path, num_objects: int, num_proposals: int
) -> None:
    truths, results = random_maps(1, num_objects), random_maps(2, num_proposals)
    for truth in truths:
        truth[10:14, 20:40] = 255
    truth_folder = write_truth(tmp_path / "truth", truths)
    for frame, result in enumerate(results):
        save_labels(tmp_path / "results" / "one" / f"{frame:05d}.png", result)
    num_rows = max(num_proposals, num_objects)
    curves = np.empty((num_rows, num_objects, NUM_FRAMES, 2))
    for row, column, frame in np.ndindex(curves.shape[:3]):
        seen = truths[frame] != 255
        masks = (truths[frame] == column + 1) & seen, (results[frame] == row + 1) & seen
        curves[row, column, frame] = slow_region(*masks), slow_measure(*masks)
    means = curves.mean(axis=(2, 3))
    best = max(
        itertools.permutations(range(num_rows), num_objects),
        key=lambda rows: sum(means[row, column] for column, row in enumerate(rows)),
    )
    for item, row in zip(score(truth_folder, tmp_path / "results"), best, strict=True):
        np.testing.assert_array_equal(item.region, curves[row, item.number - 1, :, 0])
        np.testing.assert_array_equal(item.boundary, curves[row, item.number - 1, :, 1])
        assert item.frames == tuple(f"{frame:05d}" for frame in range(NUM_FRAMES))


def test_void_is_left_out_on_both_sides(tmp_path: Path) -> None:
    truth, result = np.zeros((200, 200), np.uint8), np.zeros((200, 200), np.uint8)
    truth[100:150, 100:150], result[50:150, 100:150] = 1, 7
    plain = score_frame(truth, result // 7, (1,))
    assert plain.region[0] == 0.5
    assert plain.boundary[0] == pytest.approx(0.628, abs=5e-4)
    truth[50:100, 100:150] = 255
    folder = write_truth(tmp_path / "truth", [truth, truth])
    for frame in range(2):
        save_labels(tmp_path / "results" / "one" / f"{frame:05d}.png", result)
    (item,) = score(folder, tmp_path / "results")
    assert item.region.tolist() == item.boundary.tolist() == [1.0, 1.0]


def test_pairs_score_as_each_pair_alone() -> None:
    truth, result = random_maps(3, 3)[0], random_maps(4, 5)[0]
    pairs = score_pairs(truth, result, 5, 3)
    assert pairs.region.shape == pairs.boundary.shape == (5, 3)
    for proposal, number in np.ndindex(5, 3):
        alone = score_frame((truth == number + 1).view(np.uint8), (result == proposal + 1).view(np.uint8), (1,))
        assert pairs.region[proposal, number] == alone.region[0]
        assert pairs.boundary[proposal, number] == alone.boundary[0]


def test_assign_gives_each_object_its_own_row() -> None:
    values = np.array([[0.9, 0.8], [0.85, 0.1], [0.0, 0.2]])
    assert assign(values).tolist() == [1, 0]


def test_more_proposals_than_allowed_and_void_in_results_are_refused(tmp_path: Path) -> None:
    folder = write_truth(tmp_path / "truth", [label_map((1,), frame) for frame in range(3)])
    for stray in (MAX_PROPOSALS + 1, 255):
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        for frame in range(3):
            save_labels(tmp_path / "results" / "one" / f"{frame:05d}.png", labels)
        labels[0, 0] = stray
        save_labels(tmp_path / "results" / "one" / "00001.png", labels)
        with pytest.raises(DataError, match=rf"00001\.png: expected ids 0 to 20, .* found id {stray}"):
            score(folder, tmp_path / "results")


def test_first_and_last_frames_are_needed_here(tmp_path: Path) -> None:
    folder = write_truth(tmp_path / "truth", [label_map((1,), frame) for frame in range(3)])
    for frame in range(2):
        save_labels(tmp_path / "results" / "one" / f"{frame:05d}.png", label_map((1,), frame))
    with pytest.raises(DataError, match=r"00002\.png: expected results for the 3 scored frames of one, found 1 miss"):
        score(folder, tmp_path / "results")


def test_real_results_score_as_the_official_code_scores_them(shared_data: Path, tmp_path: Path) -> None:
    pack = shared_data / "davis_mini"
    for name, target in (("Annotations_unsupervised", "Annotations"), ("JPEGImages",) * 2, ("ImageSets",) * 2):
        (tmp_path / name).symlink_to(pack / target)
    reference = json.loads((pack / "Results" / "reference.json").read_text())["runs"]["unsup_davis_mini_osvos"]
    source = open_videos(tmp_path, annotations=RULES.annotations)
    videos = source.select("val")
    results = find_results(pack / "Results" / "Segmentations" / "480p" / "osvos", videos)
    scores = evaluate(source, results, RULES, videos)
    assert global_scores(scores) == pytest.approx(reference["global"], rel=0, abs=1e-9)
    for item in scores:
        expected = reference["objects"][item.name]
        found = [*item.region_statistics, *item.boundary_statistics]
        names = ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay")
        assert found == pytest.approx([expected[name] for name in names], rel=0, abs=1e-9)
