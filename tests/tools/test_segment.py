from __future__ import annotations

import json
import os
import re
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.rde import Rde
from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.errors import DataError
from shards.palettes import voc_palette
from tests.trainers.small_videos import label_map, write_tree
from tests.trainers.small_youtube import BEGINS, NUM_FRAMES, listed_frames, write_youtube_tree
from tools.argument_types import UsageError
from tools.cli import TerminatedError
from tools.progress import Progress
from tools.segment import segment
from trainers.label_files import read_label_map
from trainers.prediction.following import ModelClock, segment_video, whole_script
from trainers.prediction.plan import SEGMENTATION_PROTOCOLS, plan_video
from trainers.prediction.submission import write_submission
from trainers.prediction.video_folders import UnknownNameError
from trainers.prediction.videos import open_videos
from trainers.segmenters.rde import RdeOptions, RdeSegmenter

VIDEOS = {"one": (7,), "two": (2, 5)}


pytestmark = pytest.mark.usefixtures("one_thread")


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
    assert "1 video segmented" in printed
    assert (out / "one" / "00002.png").stat().st_mtime_ns == kept
    assert (out / "two" / "00004.png").read_bytes() == whole
    assert run_segment(weights, tree, out, "--overwrite") == 0
    assert (out / "one" / "00002.png").stat().st_mtime_ns != kept


def test_a_video_with_a_damaged_file_is_not_finished(
    weights: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run_segment(weights, tree, out)
    before = segmented(out)
    path = out / "two" / "00003.png"
    path.write_bytes(path.read_bytes()[:-20])
    damaged = bytearray((out / "one" / "00001.png").read_bytes())
    damaged[-30] ^= 1  # among the pixels
    (out / "one" / "00001.png").write_bytes(damaged)
    capsys.readouterr()
    assert run_segment(weights, tree, out) == 0
    assert "2 videos segmented" in capsys.readouterr().out
    assert segmented(out) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_says_how_far_it_is_and_the_same_command_goes_on(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    tree = write_tree(tmp_path / "tree", {f"video{n}": (n,) for n in range(1, 4)}, num_frames=5)
    run_segment(weights, tree, tmp_path / "undisturbed", "--threads", "1")
    out, handler = tmp_path / "out", signal.getsignal(signal.SIGTERM)

    def stop_in_the_second_video(_bar: Progress, _count: int) -> None:
        if (out / "video2" / "00000.png").exists():
            os.kill(os.getpid(), number)
            time.sleep(2)  # this thread segments; the main one is told, later on a busy machine

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "add", stop_in_the_second_video)
        with pytest.raises(KeyboardInterrupt) as stopped:
            run_segment(weights, tree, out, "--threads", "1")
    assert isinstance(stopped.value, TerminatedError) == (number == signal.SIGTERM)
    assert stopped.value.__notes__ == [f"1 of 3 videos are whole in {out}; the same command goes on with the others"]
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not (out / "video2" / "00004.png").exists() and not list(out.rglob("*.tmp"))
    kept = (out / "video1" / "00002.png").stat().st_mtime_ns
    assert run_segment(weights, tree, out, "--threads", "1") == 0
    assert segmented(out) == segmented(tmp_path / "undisturbed")
    assert (out / "video1" / "00002.png").stat().st_mtime_ns == kept


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
    run_segment(
        weights, tree, tmp_path / "out", "--videos", "one", "--top-k", "all", "--include-last", "--first-frame-once"
    )
    settings = json.loads((tmp_path / "out" / "segment.json").read_text())
    assert settings["top_k"] is None
    assert settings["include_last"] is True
    assert settings["first_frame_once"] is True
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
    with pytest.raises(DataError, match=r"one/00003\.jpg: expected a whole JPEG, found 13 bytes .* b'not a"):
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


def segmented(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_several_videos_in_flight_give_the_same_files(weights: Path, tree: Path, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "more", {f"video{n}": (n, n + 1) for n in range(1, 5)}, num_frames=5)
    run_segment(weights, tree, tmp_path / "alone", "--threads", "1")
    run_segment(weights, tree, tmp_path / "together", "--threads", "1", "--videos-in-flight", "3")
    assert len(segmented(tmp_path / "alone")) == 20
    assert segmented(tmp_path / "alone") == segmented(tmp_path / "together")


def test_the_first_error_ends_all_videos_in_flight(weights: Path, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "more", {f"video{n}": (n,) for n in range(1, 6)}, num_frames=8)
    (tree / "JPEGImages" / "480p" / "video1" / "00001.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"video1/00001\.jpg: expected a whole JPEG"):
        run_segment(weights, tree, tmp_path / "out", "--threads", "1", "--videos-in-flight", "2")
    assert "video5/00007.png" not in segmented(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_davis_2016_is_one_object_in_grey(weights: Path, tmp_path: Path) -> None:
    two = write_tree(tmp_path / "two", {"one": (2, 255)}, num_frames=4)
    merged = write_tree(tmp_path / "merged", {"one": (1, 1)}, num_frames=4)
    for path in sorted((two / "JPEGImages").rglob("*.jpg")):
        (merged / path.relative_to(two)).write_bytes(path.read_bytes())
    lists = two / "ImageSets" / "2016"
    (two / "ImageSets" / "2017").rename(lists)
    run_segment(weights, two, tmp_path / "grey", "--protocol", "davis2016")
    run_segment(weights, two, tmp_path / "palette", "--protocol", "davis2016", "--png", "palette")
    run_segment(weights, merged, tmp_path / "expected")
    for frame in range(4):
        name = f"one/{frame:05d}.png"
        with Image.open(tmp_path / "grey" / name) as image:
            assert image.mode == "L"
            grey = np.array(image)
        expected = read_label_map(tmp_path / "expected" / name)
        np.testing.assert_array_equal(grey, expected * 255)
        np.testing.assert_array_equal(read_label_map(tmp_path / "palette" / name), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--png", "grey"), "--png grey holds one object; davis2017 has several"),
        (("--include-last", "--mem-every", "2"), "--include-last memorises every frame: leave --mem-every out"),
        (("--mode", "gt", "--mem-every", "2"), "--mode gt remembers the first frame alone: leave --mem-every out"),
        (("--mode", "gt", "--include-last"), "leave --include-last out"),
        (
            ("--mode", "stm", "--first-frame-once"),
            "--mode stm holds the first frame once anyway; --first-frame-once is for gt-compress, two-frames",
        ),
    ],
)
def test_an_argument_that_would_change_nothing_beside_the_others_is_refused(
    weights: Path, tree: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        run_segment(weights, tree, tmp_path / "out", *arguments)
    assert error.value.exit_status == 2
    assert not (tmp_path / "out").exists()


def test_target_models_learn_from_every_frame_and_take_no_stride(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="learn from every frame, --mem-every says nothing to them"):
        segment(["--model", "mtmfi", "--weights", "none", str(tree), str(tmp_path / "out"), "--mem-every", "2"])


def test_a_set_without_a_fingerprint_is_told_once(
    weights: Path, tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = BuildRequest("davis2017", (tree,), tmp_path / "sets")
    root = build(request, make_plan(request), silent).root
    manifest = json.loads((root / "manifest.json").read_text())
    del manifest["fingerprint"]
    (root / "manifest.json").write_text(json.dumps(manifest))
    with caplog.at_level("WARNING"):
        assert run_segment(weights, root, tmp_path / "out") == 0
    assert caplog.text.count("holds no fingerprint") == 1


def test_an_archive_of_some_videos_is_not_called_a_submission(
    weights: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_segment(weights, tree, tmp_path / "out", "--zip", str(tmp_path / "all.zip"))
    assert "all.zip: 10 label maps of 2 videos, to submit" in capsys.readouterr().out
    run_segment(weights, tree, tmp_path / "out", "--zip", str(tmp_path / "one.zip"), "--videos", "one")
    assert "one.zip: 5 label maps of 1 video, of the videos named, not of a whole split" in capsys.readouterr().out


def test_youtube_vos_is_written_and_packed_as_its_server_takes_it(weights: Path, tmp_path: Path) -> None:
    tree = write_youtube_tree(tmp_path / "tree")
    arguments = ("--shorter-side", "48", "--threads", "1")
    run_segment(weights, tree, tmp_path / "some", "--zip", str(tmp_path / "some.zip"), *arguments)
    run_segment(weights, tree, tmp_path / "all", "--all-frames", "--zip", str(tmp_path / "all.zip"), *arguments)
    listed = {f"Annotations/{video}/{frame}.png" for video in BEGINS for frame in listed_frames(0)}
    some, everything = segmented(tmp_path / "some"), segmented(tmp_path / "all")
    assert set(some) == listed
    assert len(everything) == 2 * NUM_FRAMES
    assert all(everything[name] == data for name, data in some.items())
    for archive in ("some.zip", "all.zip"):
        with zipfile.ZipFile(tmp_path / archive) as packed:
            assert {name: packed.read(name) for name in packed.namelist()} == some
    assert (tmp_path / "some.zip").read_bytes() == (tmp_path / "all.zip").read_bytes()
    for frame in ("00000", "00005"):
        assert not read_label_map(tmp_path / "some" / "Annotations" / "dark" / f"{frame}.png").any()
    assert set(np.unique(read_label_map(tmp_path / "some" / "Annotations" / "dark" / "00010.png"))) == {0, 3}
    settings = json.loads((tmp_path / "some" / "segment.json").read_text())
    assert [settings[name] for name in ("protocol", "top_k", "mem_every")] == ["youtube_vos", 20, 4]
    assert settings["dataset"] == "tree/valid_all_frames"


def test_shards_and_folder_of_youtube_vos_give_the_same_label_maps(weights: Path, tmp_path: Path) -> None:
    tree = write_youtube_tree(tmp_path / "tree")
    request = BuildRequest("youtube_vos", (tree,), tmp_path / "sets", splits=("valid_all_frames",))
    shards = build(request, make_plan(request), silent).root
    for name, dataset in (("folder", tree), ("shards", shards)):
        run_segment(weights, dataset, tmp_path / name, "--shorter-side", "48", "--threads", "1")
    assert segmented(tmp_path / "folder") == segmented(tmp_path / "shards")


def test_davis_is_packed_with_its_videos_at_the_top(weights: Path, tree: Path, tmp_path: Path) -> None:
    run_segment(weights, tree, tmp_path / "out", "--zip", str(tmp_path / "val.zip"))
    with zipfile.ZipFile(tmp_path / "val.zip") as packed:
        assert sorted(packed.namelist()) == [f"{video}/{frame:05d}.png" for video in VIDEOS for frame in range(5)]
        assert packed.testzip() is None
    (tmp_path / "out" / "one" / "00003.png").unlink()
    source = open_videos(tree)
    plan = plan_video(source, "one", SEGMENTATION_PROTOCOLS["davis2017"], RdeOptions().memorised)
    with pytest.raises(DataError, match=r"one/00003\.png: expected a label map, found no such file"):
        write_submission(tmp_path / "half.zip", tmp_path / "out", [plan])
    assert not list(tmp_path.glob("half*"))


def test_real_youtube_vos_keeps_its_ids_and_sizes(weights: Path, shared_data: Path, tmp_path: Path) -> None:
    pack = shared_data / "ytvos_mini"
    run_segment(weights, pack, tmp_path / "out", "--shorter-side", "96", "--threads", "1")
    for video, ids in (("4f1c0ffee0", {0, 1, 2}), ("e2d00d0b02", {0, 3})):
        for truth in (pack / "valid_gt" / "Annotations" / video).iterdir():
            found = read_label_map(tmp_path / "out" / "Annotations" / video / truth.name)
            assert found.shape == read_label_map(truth).shape
            assert set(np.unique(found)) <= ids
    assert not read_label_map(tmp_path / "out" / "Annotations" / "e2d00d0b02" / "00000.png").any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--videos", "tow"], "no video 'tow'; did you mean 'two'?"),
        (["--split", "vall"], "no split 'vall'; did you mean 'val'?"),
        (["--split", "val", "--videos", "three"], "no video 'three' in split 'val'; there are one, two"),
    ],
)
def test_a_name_the_data_set_does_not_have_is_bad_usage(
    weights: Path, tree: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UnknownNameError, match=re.escape(message)) as error:
        run_segment(weights, tree, tmp_path / "out", *arguments)
    assert error.value.exit_status == 2
    assert not (tmp_path / "out").exists()


def test_the_only_split_of_a_set_is_segmented_without_being_named(
    weights: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "ImageSets" / "2017" / "val.txt").rename(tree / "ImageSets" / "2017" / "mine.txt")
    assert run_segment(weights, tree, tmp_path / "out") == 0
    assert "davis2017 mine: 2 videos segmented" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--videos-in-flight=0", "--videos-in-flight is 0"),
        ("--shorter-side=big", "neither a positive number nor native"),
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
