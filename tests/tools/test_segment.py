from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.rde import Rde
from shards.errors import DataError
from shards.palettes import voc_palette
from tests.trainers.small_videos import label_map, write_tree
from tools.segment import segment
from trainers.label_files import read_label_map
from trainers.prediction import ModelClock, segment_video, whole_script
from trainers.segmenters import RdeOptions, RdeSegmenter

VIDEOS = {"one": (7,), "two": (2, 5)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the form of our checkpoints: the state under "model"."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save({"model": small_model().state_dict(), "step": 3}, path)
    return path


def small_model() -> Rde:
    return Rde(width=0.125, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", VIDEOS, num_frames=5)


def run_segment(weights: Path, tree: Path, out: Path, *arguments: str) -> int:
    return segment(["--model", "rde", "--weights", str(weights), str(tree), str(out), "--device", "cpu", *arguments])


def test_every_frame_of_the_split_becomes_the_models_label_map(weights: Path, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_segment(weights, tree, out, "--mem-every", "2", "--top-k", "5") == 0
    for video, ids in VIDEOS.items():
        files = sorted((out / video).iterdir())
        assert [path.name for path in files] == [f"{frame:05d}.png" for frame in range(5)]
        images = []
        for path in sorted((tree / "JPEGImages" / "480p" / video).iterdir()):
            with Image.open(path) as image:
                images.append(np.array(image))
        first = label_map(ids, 0)
        expected = segment_video(
            RdeSegmenter(small_model(), RdeOptions(mem_every=2, top_k=5)),
            whole_script(first, 5),
            images,
            lambda _, first=first: first,
            device=torch.device("cpu"),
            clock=ModelClock(),
        )
        for path, (_, labels) in zip(files, expected, strict=True):
            found = read_label_map(path)
            # JPEG decoders differ by a grey level here and there, which moves a few borderline pixels.
            assert np.mean(found == labels) > 0.99
            assert set(np.unique(found)) <= {0, *ids}
        np.testing.assert_array_equal(read_label_map(files[0]), label_map(ids, 0))
        with Image.open(files[1]) as image:
            assert bytes(image.getpalette() or []) == voc_palette()


def test_finished_videos_are_skipped_and_unfinished_ones_done_again(
    weights: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run_segment(weights, tree, out)
    kept = (out / "one" / "00002.png").stat().st_mtime_ns
    whole = (out / "two" / "00004.png").read_bytes()
    (out / "two" / "00004.png").unlink()
    capsys.readouterr()
    assert run_segment(weights, tree, out) == 0
    printed = capsys.readouterr().out
    assert "skipped, finished before: one (--overwrite" in printed
    assert "1 videos segmented" in printed
    assert (out / "one" / "00002.png").stat().st_mtime_ns == kept
    assert (out / "two" / "00004.png").read_bytes() == whole
    assert run_segment(weights, tree, out, "--overwrite") == 0
    assert (out / "one" / "00002.png").stat().st_mtime_ns != kept


def test_predictions_of_other_settings_are_never_mixed_in(weights: Path, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_segment(weights, tree, out, "--videos", "one")
    with pytest.raises(
        DataError, match=r"segment\.json: expected mode gt, top_k 20, found mode two-frames-compress, top_k 40"
    ):
        run_segment(weights, tree, out, "--mode", "gt", "--top-k", "20")
    assert not (out / "two").exists()
    other = tmp_path / "other.pt"
    torch.save(Rde(width=0.125, generator=torch.Generator().manual_seed(6)).state_dict(), other)
    with pytest.raises(DataError, match="expected weights"):
        run_segment(other, tree, out)


def test_a_folder_with_other_files_is_left_alone(weights: Path, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(DataError, match="expected an empty folder, or one begun by this tool"):
        run_segment(weights, tree, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_damaged_settings_are_named(weights: Path, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for content, found in (("{", "no JSON"), ("[1, 2]", r"\[1, 2\]")):
        (tmp_path / "out" / "segment.json").write_text(content)
        with pytest.raises(DataError, match=rf"segment\.json: expected the settings of the run .* found {found}"):
            run_segment(weights, tree, tmp_path / "out")


def test_what_a_killed_run_left_unfinished_is_in_nobodys_way(weights: Path, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "segment.json.0123abcd.tmp").write_text("{")
    run_segment(weights, tree, out, "--videos", "one")
    (out / "one" / "00002.png").unlink()
    (out / "one" / "00002.png.0123abcd.tmp").write_bytes(b"half")
    run_segment(weights, tree, out, "--videos", "one")
    assert sorted(path.name for path in (out / "one").iterdir()) == [f"{frame:05d}.png" for frame in range(5)]


def test_the_settings_name_weights_and_bank(weights: Path, tree: Path, tmp_path: Path) -> None:
    run_segment(weights, tree, tmp_path / "out", "--videos", "one", "--top-k", "all", "--include-last")
    settings = json.loads((tmp_path / "out" / "segment.json").read_text())
    assert settings["top_k"] is None
    assert settings["include_last"] is True
    assert settings["dataset"] == "tree"
    assert len(settings["weights"]) == 64


def test_the_table_counts_frames_and_objects(
    weights: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_segment(weights, tree, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["video", "frames", "objects", "model", "fps", "wall", "fps"]
    assert [line.split()[:3] for line in lines[1:4]] == [["one", "5", "1"], ["two", "5", "2"], ["all", "10", "3"]]


def test_a_missing_first_mask_is_named_before_any_work(weights: Path, tree: Path, tmp_path: Path) -> None:
    (tree / "Annotations" / "480p" / "two" / "00000.png").unlink()
    with pytest.raises(
        DataError, match=r"two/00000\.jpg: expected a first frame with its label map, found no label map"
    ):
        run_segment(weights, tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_annotated_frame_without_its_image_is_named_before_any_work(
    weights: Path, tree: Path, tmp_path: Path
) -> None:
    (tree / "JPEGImages" / "480p" / "two" / "00003.jpg").unlink()
    with pytest.raises(
        DataError, match=r"two/00003\.jpg: expected the image of an annotated frame, found no such file"
    ):
        run_segment(weights, tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_frame_stops_with_its_name_and_leaves_no_partial_file(
    weights: Path, tree: Path, tmp_path: Path
) -> None:
    (tree / "JPEGImages" / "480p" / "one" / "00003.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"one/00003\.jpg: expected a whole JPEG"):
        run_segment(weights, tree, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert not (tmp_path / "out" / "one" / "00003.png").exists()


def test_weights_that_are_none_are_refused(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.pt"
    path.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.pt: expected a checkpoint"):
        run_segment(path, tree, tmp_path / "out")
    with pytest.raises(OSError, match=r"nowhere\.pt"):
        run_segment(tmp_path / "nowhere.pt", tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--top-k=0", "neither a positive number nor all"),
        ("--mem-every=0", "--mem-every is 0"),
        ("--mode=x", "invalid choice"),
    ],
)
def test_bad_usage_ends_with_status_2(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_segment(Path("weights"), Path("tree"), Path("out"), argument)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
