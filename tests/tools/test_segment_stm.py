"""segment.py --model stm from its command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.stm import Query, Stm
from shards.errors import DataError
from tests.trainers.small_videos import HEIGHT, WIDTH, label_map, write_tree
from tests.trainers.small_youtube import BEGINS, write_youtube_tree
from tests.trainers.stm_clips import small_stm
from tools.argument_types import UsageError
from tools.segment import segment
from trainers.label_files import read_label_map
from trainers.looking.cycle_erf import LEGEND_PX, draw_heat, heat_range, with_legend
from trainers.prediction.following import ModelClock, segment_video, whole_script
from trainers.segmenters.stm import StmOptions, StmSegmenter
from trainers.segmenters.stm_correction import CorrectionOptions
from trainers.views import Sight

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL_BOX = ("--box", "32x40")
SIGHT = Sight(box=(32, 40), multiple=1, smallest=16, images="bilinear")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the authors' container."""
    path = tmp_path_factory.mktemp("weights") / "model.pth.tar"
    torch.save({"epoch": 1, "state_dict": small_stm().state_dict(), "max_skip": [5, 3]}, path)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", {"one": (2, 5)}, num_frames=5)


def run_segment(weights: Path, tree: Path, out: Path, *arguments: str) -> int:
    return segment(["--model", "stm", "--weights", str(weights), str(tree), str(out), "--device", "cpu", *arguments])


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((), StmOptions()),
        (("--mem-every", "2", "--max-kept", "all"), StmOptions(mem_every=2, max_kept=None)),
        (
            ("--mem-every", "2", "--correct", "1", "--correction-rate", "900", "--write", "corrected"),
            StmOptions(mem_every=2, correction=CorrectionOptions(1, 900.0), written="corrected"),
        ),
    ],
)
def test_label_maps_are_those_of_the_segmenter_with_the_options_given(
    arguments: tuple[str, ...], options: StmOptions, weights: Path, tree: Path, tmp_path: Path
) -> None:
    assert run_segment(weights, tree, tmp_path / "out", *SMALL_BOX, *arguments) == 0
    first = label_map((2, 5), 0)
    expected = segment_video(
        StmSegmenter(model_of(weights), options),
        whole_script(first, 5),
        frames_of(tree),
        lambda _: first,
        device=torch.device("cpu"),
        clock=ModelClock(),
        sight=SIGHT,
    )
    for number, labels in expected:
        found = read_label_map(tmp_path / "out" / "one" / f"{number:05d}.png")
        assert np.mean(found == labels) > 0.98  # JPEG decoders differ by a grey level here and there
    settings = json.loads((tmp_path / "out" / "segment.json").read_text())
    assert (settings["model"], settings["box"], settings["mem_every"]) == ("stm", [32, 40], options.mem_every)


def test_late_objects_of_youtube_vos_begin_where_they_are_given(weights: Path, tmp_path: Path) -> None:
    tree = write_youtube_tree(tmp_path / "tree")
    for switch in ("merge", "replace"):
        out = tmp_path / switch
        assert run_segment(weights, tree, out, *SMALL_BOX, "--late-objects", switch, "--correct", "1") == 0
        for video, begins in BEGINS.items():
            for object_id, start in begins.items():
                maps = {path.stem: read_label_map(path) for path in (out / "Annotations" / video).iterdir()}
                before = [labels for name, labels in maps.items() if int(name) < start]
                assert not any((labels == object_id).any() for labels in before)
                assert (maps[f"{start:05d}"] == object_id).any()


def test_label_maps_of_all_frames_and_of_the_listed_ones_are_never_mixed(weights: Path, tmp_path: Path) -> None:
    tree, out = write_youtube_tree(tmp_path / "tree"), tmp_path / "out"
    assert run_segment(weights, tree, out, *SMALL_BOX, "--all-frames", "--videos", min(BEGINS)) == 0
    with pytest.raises(DataError, match="found all_frames True"):
        run_segment(weights, tree, out, *SMALL_BOX)


def test_a_cycle_erf_picture_has_a_bar_from_its_lowest_to_its_highest_heat() -> None:
    heat = torch.zeros(10, 100)
    heat[:, 50:] = 0.25
    drawn = draw_heat(torch.zeros(40, 400, 3, dtype=torch.uint8), heat)
    picture = np.asarray(with_legend(drawn, heat, "empty masks after 3 steps of 180"))
    assert picture.shape == (40 + LEGEND_PX, 400, 3)
    bar = picture[44 + 5].astype(int)  # in the middle of its height
    lowest, highest = 2 * drawn[0, 0].astype(int), 2 * drawn[0, -1].astype(int)  # the frame is black
    coloured = np.flatnonzero((bar.max(1) - bar.min(1)) > 100)
    assert np.abs(bar[coloured[0]] - lowest).max() <= 2
    assert np.abs(bar[coloured[-1]] - highest).max() <= 2
    assert coloured[-1] - coloured[0] > 300
    assert lowest.argmax() == 2 and highest.argmax() == 0  # blue and red


def test_single_hot_pixels_do_not_hide_the_rest_of_a_cycle_erf() -> None:
    heat = torch.linspace(0, 0.25, 10_000).view(100, 100)
    hot = heat.clone()
    hot[0, :5] = 6.4
    assert heat_range(hot)[1] == pytest.approx(0.25, abs=1e-3)
    frame = torch.zeros(100, 100, 3, dtype=torch.uint8)
    plain, capped = (draw_heat(frame, some).astype(int) for some in (heat, hot))
    assert np.abs(plain - capped)[1:].max() <= 3
    assert capped[0, 0].argmax() == 0  # red
    only_hot = torch.where(hot > 1, hot, 0)
    assert heat_range(only_hot) == (0, pytest.approx(6.4))
    assert heat_range(torch.zeros(3, 4)) == (0, 0)
    assert draw_heat(frame, torch.zeros(100, 100)).max() == 64  # half of the darkest blue, everywhere


def test_cycle_erf_pictures_have_the_size_of_the_frames_and_a_legend(
    weights: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    arguments = ("--cycle-erf", str(pictures), "--cycle-erf-every", "2", "--correct", "1", "--correction-rate", "900")
    assert run_segment(weights, tree, tmp_path / "out", *SMALL_BOX, *arguments) == 0
    assert sorted(path.name for path in (pictures / "one").iterdir()) == ["00002.png", "00004.png"]
    with Image.open(pictures / "one" / "00002.png") as picture:
        assert (picture.size, picture.mode) == ((WIDTH, HEIGHT + LEGEND_PX), "RGB")
        drawn = np.asarray(picture).astype(int)[:HEIGHT]
    frame = frames_of(tree)[2].astype(int)
    heat = 2 * drawn - frame  # what was mixed in, half and half
    assert heat.min() >= -3
    assert heat.max() <= 258
    assert heat.std() > 10
    assert "2 cycle-ERF pictures of 1 video" in capsys.readouterr().out


def test_a_stop_while_pictures_are_drawn_says_how_many_there_are(
    weights: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_the_second(picture: Image.Image, path: Path) -> None:
        if path.stem == "00002":
            raise KeyboardInterrupt

    monkeypatch.setattr("trainers.looking.cycle_erf.save_png", stop_at_the_second)
    arguments = ("--cycle-erf", str(tmp_path / "pictures"), "--cycle-erf-every", "1", "--correct", "1")
    with pytest.raises(KeyboardInterrupt) as stopped:
        run_segment(weights, tree, tmp_path / "out", *SMALL_BOX, *arguments)
    assert stopped.value.__notes__ == ["1 of 4 cycle-ERF pictures drawn; the same command draws all again"]


def test_a_filled_box_is_what_the_model_sees(
    weights: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, encode = set(), Stm.encode_query

    def watch(model: Stm, images: torch.Tensor) -> Query:
        seen.add(tuple(images.shape[2:]))
        return encode(model, images)

    monkeypatch.setattr(Stm, "encode_query", watch)
    assert run_segment(weights, tree, tmp_path / "out", "--box", "32x60", "--fill-box") == 0
    assert seen == {(32, 60)}
    assert json.loads((tmp_path / "out" / "segment.json").read_text())["fill_box"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fill-box", "--shorter-side", "32"), "--fill-box is about the box, which --shorter-side replaces"),
        (("--box", "32x40", "--shorter-side", "native"), "--box is about the box, which --shorter-side replaces"),
        (("--shorter-side", "native", "--mask-resize", "truncated"), "native resizes no masks"),
        (("--clamp",), "--clamp is about the gradient correction: add --correct"),
        (("--cycle-erf-every", "2"), "--cycle-erf-every is about the pictures of --cycle-erf FOLDER: add that"),
        (("--late-objects", "replace"), "davis2017 follows those of the first frame: leave it out, or use --protocol"),
        (("--cycle-erf", __file__), "is a file, expected a folder for pictures: name another"),
        (("--all-frames",), "davis2017 writes every frame anyway: leave --all-frames out"),
        (("--cycle-erf", "OUT"), "would write pictures over the label maps: name another folder"),
    ],
)
def test_an_argument_that_would_change_nothing_beside_the_others_is_refused(
    weights: Path, tree: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    given = [str(out) if word == "OUT" else word for word in arguments]
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        run_segment(weights, tree, out, *given)
    assert error.value.exit_status == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--box", "240"), "no size like 240x427"),
        (("--box", "8x8"), "in pixels from 16"),
        (("--correct", "0"), "no whole number of at least 1"),
        (("--correct", "--correction-rate", "nan"), "no number from 0"),
        (("--max-kept", "none"), "'none' is neither a positive number nor all"),
        (("--top-k", "5"), "--top-k goes with --model rde, not stm"),
    ],
)
def test_bad_usage_ends_with_status_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_segment(Path("weights"), Path("tree"), Path("out"), *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def model_of(weights: Path) -> Stm:
    model = small_stm()
    model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    return model


def frames_of(tree: Path) -> list[np.ndarray]:
    frames = []
    for path in sorted((tree / "JPEGImages" / "480p" / "one").iterdir()):
        with Image.open(path) as image:
            frames.append(np.array(image))
    return frames
