from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import DataError
from tests.trainers.scoring_oracle import slow_measure, slow_region
from tests.trainers.small_videos import HEIGHT, WIDTH, label_map, save_labels, write_results, write_tree
from trainers.label_files import LabelMap, read_label_map, write_label_map
from trainers.prediction.video_folders import DavisFolder, read_split_list, time_order
from trainers.prediction.videos import open_videos
from trainers.scoring.protocols import PROTOCOLS, evaluate, global_scores
from trainers.scoring.reports import Report, format_report, write_report
from trainers.scoring.types import ObjectScores, find_results

VIDEOS = {"one": (1,), "two": (1, 2)}


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "truth", VIDEOS)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results", VIDEOS)


def score(truth: Path, results: Path, protocol: str = "davis2017", *, jobs: int = 1) -> list[ObjectScores]:
    rules = PROTOCOLS[protocol]
    source = open_videos(truth, list_folders=rules.list_folders, annotations=rules.annotations)
    videos = source.select("val")
    return evaluate(source, find_results(results, videos), rules, videos, jobs=jobs)


def test_every_object_gets_the_curve_of_the_literal_definition(truth: Path, results: Path) -> None:
    scores = score(truth, results)
    assert [(item.video, item.number) for item in scores] == [("one", 1), ("two", 1), ("two", 2)]
    for item in scores:
        assert item.frames == ("00001", "00002", "00003", "00004")
        for position, frame in enumerate(range(1, 5)):
            ids = VIDEOS[item.video]
            masks = label_map(ids, frame) == item.number, label_map(ids, frame - 1) == item.number
            assert item.region[position] == slow_region(*masks)
            assert item.boundary[position] == slow_measure(*masks)


def test_global_figures_are_means_over_objects_not_videos(truth: Path, results: Path) -> None:
    for frame in range(1, 5):
        save_labels(results / "one" / f"{frame:05d}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    figures = global_scores(score(truth, results))
    lagging = (12 - 2) / (12 + 2)  # rectangles 12 wide, 2 apart
    assert figures["J-Mean"] == pytest.approx((0 + lagging + lagging) / 3)
    assert figures["J-Recall"] == pytest.approx(2 / 3)
    assert figures["J&F-Mean"] == (figures["J-Mean"] + figures["F-Mean"]) / 2


def test_processes_change_nothing(truth: Path, results: Path) -> None:
    alone, shared = score(truth, results), score(truth, results, jobs=2)
    for ours, theirs in zip(alone, shared, strict=True):
        assert (ours.video, ours.number, ours.frames) == (theirs.video, theirs.number, theirs.frames)
        np.testing.assert_array_equal(ours.region, theirs.region)
        np.testing.assert_array_equal(ours.boundary, theirs.boundary)


def test_a_picture_too_large_to_be_true_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_labels(tmp_path / "huge.png", label_map((1,), 0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"huge\.png: expected a PNG label map, .*exceeds limit"):
        read_label_map(tmp_path / "huge.png")


class DyingFolder(DavisFolder):
    """A folder that costs its reader's life."""

    def read_labels(self, video: str, frame: str) -> LabelMap:
        os._exit(9)


def test_a_killed_process_is_one_message(truth: Path, results: Path) -> None:
    videos = DavisFolder(truth, ("2017",)).select("val")
    with pytest.raises(OSError, match=r"a worker process was killed .* fewer --jobs"):
        evaluate(DyingFolder(truth, ("2017",)), find_results(results, videos), PROTOCOLS["davis2017"], videos, jobs=2)


def test_an_error_in_a_process_reaches_the_caller_whole(truth: Path, results: Path) -> None:
    (results / "two" / "00002.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"two/00002\.png: expected a PNG label map, found damaged or not PNG"):
        score(truth, results, jobs=2)


def test_results_of_first_and_last_frame_are_never_opened(truth: Path, results: Path) -> None:
    for frame in ("00000", "00005"):
        (results / "one" / f"{frame}.png").write_bytes(b"not a picture")
    assert len(score(truth, results)) == 3


def test_void_in_the_truth_is_background_in_2017_and_foreground_in_2016(truth: Path, results: Path) -> None:
    for frame in range(6):
        labels = label_map((1,), frame)
        labels[30:34, 30:34] = 255
        save_labels(truth / "Annotations" / "480p" / "one" / f"{frame:05d}.png", labels)
    plain = score(truth, results)[0]
    assert plain.region[0] == slow_region(label_map((1,), 1) == 1, label_map((1,), 0) == 1)
    write_list(truth, "2016", "one\n")
    merged = score(truth, results, "davis2016")[0]
    assert merged.region[0] == pytest.approx(80 / (112 + 16))


def test_2016_takes_any_id_for_the_one_object(truth: Path, results: Path) -> None:
    write_list(truth, "2016", "two\n")
    for frame in range(1, 5):
        save_labels(
            results / "two" / f"{frame:05d}.png", np.where(label_map((1, 2), frame) > 0, 255, 0).astype(np.uint8)
        )
    (only,) = score(truth, results, "davis2016")
    assert (only.video, only.number) == ("two", 1)
    assert only.region.tolist() == [1.0] * 4


def test_2016_lists_of_file_pairs_name_their_videos(truth: Path, results: Path) -> None:
    lines = "".join(f"/JPEGImages/480p/one/{n:05d}.jpg /Annotations/480p/one/{n:05d}.png \n" for n in range(3))
    write_list(truth, "480p", lines)
    assert [item.video for item in score(truth, results, "davis2016")] == ["one"]


def test_a_hole_in_the_first_frames_ids_counts_as_an_object_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth = write_tree(tmp_path / "holes", {"lab": (3, 4)})
    results = write_results(tmp_path / "lab", {"lab": (3, 4)}, lag=0)
    with caplog.at_level(logging.WARNING):
        scores = score(truth, results)
    assert [item.number for item in scores] == [1, 2, 3, 4]
    assert all(item.region.tolist() == [1.0] * 4 for item in scores)
    assert "lab: the first frame has ids [3 4]; as in the official code all of 1 to 4 count" in caplog.text


def test_nested_annotation_folders_are_found(truth: Path, tmp_path: Path) -> None:
    results = write_results(tmp_path / "run" / "Annotations" / "480p", VIDEOS)
    assert find_results(tmp_path / "run", ["one"]).root == results
    assert len(score(truth, tmp_path / "run")) == 3


def test_a_missing_frame_is_named_before_anything_is_scored(truth: Path, results: Path) -> None:
    (results / "one" / "00001.png").write_bytes(b"would be refused when opened")
    (results / "two" / "00003.png").unlink()
    with pytest.raises(
        DataError, match=r"two/00003\.png: expected results for the 4 scored frames of two, found 1 miss"
    ):
        score(truth, results)


def test_a_missing_video_and_a_missing_folder_are_named(truth: Path, results: Path, tmp_path: Path) -> None:
    (results / "two").rename(results / "other")
    with pytest.raises(DataError, match="found no folder of that video"):
        score(truth, results)
    with pytest.raises(DataError, match="nowhere: expected folders of results such as one, found no such folder"):
        score(truth, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found no folders"):
        score(truth, tmp_path / "empty")


def test_a_result_of_another_size_is_refused(truth: Path, results: Path) -> None:
    save_labels(results / "two" / "00003.png", np.zeros((20, 25), np.uint8))
    with pytest.raises(DataError, match=r"two/00003\.png: expected 50x40 pixels as in the truth, found 25x20"):
        score(truth, results)


@pytest.mark.parametrize(("stray", "remedy"), [(3, "write the ids of the first"), (255, "write 0 where")])
def test_an_id_above_the_object_count_is_refused(truth: Path, results: Path, stray: int, remedy: str) -> None:
    labels = label_map((1, 2), 2)
    labels[0, 0] = stray
    save_labels(results / "two" / "00002.png", labels)
    with pytest.raises(DataError, match=rf"expected ids 0 to 2, .* found id {stray}; {remedy}"):
        score(truth, results)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_colours_are_refused_because_they_hold_no_ids(truth: Path, results: Path, mode: str) -> None:
    Image.new(mode, (WIDTH, HEIGHT)).save(results / "one" / "00002.png")
    with pytest.raises(DataError, match=f"found a PNG of mode {mode}; save the ids, not their colours"):
        score(truth, results)


def test_truth_without_scorable_frames_or_objects_is_refused(tmp_path: Path, results: Path) -> None:
    with pytest.raises(DataError, match=r"at least 3 annotated frames.*found 2"):
        score(write_tree(tmp_path / "short", {"one": (1,)}, num_frames=2), results)
    with pytest.raises(DataError, match="first frame of one: expected at least one object"):
        score(write_tree(tmp_path / "blank", {"one": ()}), results)


def test_an_unknown_split_lists_those_there_are(truth: Path) -> None:
    with pytest.raises(DataError, match=r"found only ImageSets/2017/val\.txt"):
        open_videos(truth).select("train")


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a shard set .* or a DAVIS folder"):
        open_videos(tmp_path)


def test_split_lists_survive_windows_editors(tmp_path: Path) -> None:
    path = tmp_path / "val.txt"
    path.write_bytes("\ufeffbear\r\n\r\n  vidéo 1 \r\nbear\r\n".encode())
    assert read_split_list(path) == ("bear", "vidéo 1")


def test_frames_are_ordered_by_number() -> None:
    assert time_order(["frame_10", "frame_9", "cover", "00000"]) == ("00000", "frame_9", "frame_10", "cover")


def test_label_maps_survive_the_palette_png_with_all_256_ids(tmp_path: Path) -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_label_map(tmp_path / "all.png", labels)
    np.testing.assert_array_equal(read_label_map(tmp_path / "all.png"), labels)
    with Image.open(tmp_path / "all.png") as image:
        assert image.mode == "P"
        assert image.convert("RGB").getpixel((1, 0)) == (128, 0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["all.png"]


@pytest.mark.parametrize("bit_depth", [2, 4, 8])
def test_grey_of_few_bits_reads_as_the_ids_that_were_stored(tmp_path: Path, bit_depth: int) -> None:
    per_byte = 8 // bit_depth
    ids = (np.arange(2 * 4 * per_byte).reshape(2, -1) % 2**bit_depth).astype(np.uint8)
    packed = sum(ids[:, position::per_byte] << (8 - bit_depth * (position + 1)) for position in range(per_byte))
    header = struct.pack(">IIBBBBB", ids.shape[1], 2, bit_depth, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(packed)))
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    ]
    (tmp_path / "grey.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    np.testing.assert_array_equal(read_label_map(tmp_path / "grey.png"), ids)


def test_grey_and_alpha_of_davis_2016_read_as_the_grey(tmp_path: Path) -> None:
    Image.merge("LA", [Image.new("L", (4, 3), 255), Image.new("L", (4, 3), 7)]).save(tmp_path / "la.png")
    assert np.unique(read_label_map(tmp_path / "la.png")).tolist() == [255]


def test_reports_have_the_official_columns_and_full_precision(truth: Path, results: Path, tmp_path: Path) -> None:
    scores = score(truth, results)
    report = Report(PROTOCOLS["davis2017"], "val", "truth", "results", scores, global_scores(scores))
    for path in write_report(tmp_path / "scores", report):
        assert path.is_file()
    lines = (tmp_path / "scores" / "global_results-val.csv").read_text().splitlines()
    figures = global_scores(scores)
    assert lines[0] == "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay"
    assert lines[1] == ",".join(f"{figures[name]:.3f}" for name in lines[0].split(","))
    rows = (tmp_path / "scores" / "per-sequence_results-val.csv").read_text().splitlines()
    assert rows[0] == "Sequence,J-Mean,F-Mean"
    assert rows[1] == f"one_1,0.714,{scores[0].boundary_statistics.mean:.3f}"
    everything = json.loads((tmp_path / "scores" / "results-val.json").read_text())
    assert everything["objects"]["two_2"]["J"]["per_frame"] == scores[2].region.tolist()
    assert everything["global"] == figures
    assert "J&F-Mean" in format_report(report)
    assert "two_2" in format_report(report)


def test_real_results_score_as_the_official_code_scores_them(shared_data: Path) -> None:
    folder = shared_data / "davis_mini"
    reference = json.loads((folder / "Results" / "reference.json").read_text())["runs"]["semi_davis_mini_osvos"]
    scores = score(folder, folder / "Results" / "Segmentations" / "480p" / "osvos")
    assert global_scores(scores) == pytest.approx(reference["global"], rel=0, abs=1e-9)
    assert len(scores) == len(reference["objects"]) == 3
    for item in scores:
        expected = reference["objects"][f"{item.video}_{item.number}"]
        found = [*item.region_statistics, *item.boundary_statistics]
        names = ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay")
        assert found == pytest.approx([expected[name] for name in names], rel=0, abs=1e-9)
        np.testing.assert_allclose(item.region, expected["J_per_frame"], rtol=0, atol=5.1e-7)
        np.testing.assert_allclose(item.boundary, expected["F_per_frame"], rtol=0, atol=5.1e-7)


def test_real_2016_truth_scored_against_itself_is_perfect(shared_data: Path) -> None:
    folder = shared_data / "davis2016_mini"
    scores = score(folder, folder, "davis2016")
    assert [item.video for item in scores] == ["libby"]
    assert global_scores(scores)["J&F-Mean"] == 1.0


def write_list(truth: Path, folder: str, text: str) -> None:
    path = truth / "ImageSets" / folder / "val.txt"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
