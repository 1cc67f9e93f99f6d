"""Made-up videos are in the DAVIS layout, repeatable, and hard enough to need a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from shards.palettes import voc_palette
from shards.sources.moving_shapes import MovingShapes, write_moving_shapes

SMALL = MovingShapes(num_train=3, num_val=2, num_frames=6, height=48, width=80)


def read_masks(folder: Path, video: str) -> list[np.ndarray]:
    paths = sorted((folder / "Annotations" / "480p" / video).glob("*.png"))
    return [np.array(Image.open(path)) for path in paths]


def test_lists_images_and_masks_lie_where_davis_has_them(tmp_path: Path) -> None:
    splits = write_moving_shapes(tmp_path, SMALL)
    assert splits == {"train": ["shapes-000", "shapes-001", "shapes-002"], "val": ["shapes-003", "shapes-004"]}
    assert (tmp_path / "ImageSets/2017/val.txt").read_text() == "shapes-003\nshapes-004\n"
    for video in splits["train"] + splits["val"]:
        images = sorted((tmp_path / "JPEGImages/480p" / video).iterdir())
        assert [path.name for path in images] == [f"{frame:05d}.jpg" for frame in range(6)]
        with Image.open(images[0]) as image:
            assert (image.format, image.size) == ("JPEG", (80, 48))
        with Image.open(tmp_path / "Annotations/480p" / video / "00000.png") as mask:
            assert mask.mode == "P"
            assert bytes(mask.getpalette() or [])[:12] == voc_palette()[:12]


def test_objects_start_visible_with_ids_without_holes_and_then_move(tmp_path: Path) -> None:
    splits = write_moving_shapes(tmp_path, SMALL)
    for video in splits["train"]:
        masks = read_masks(tmp_path, video)
        ids = np.unique(masks[0])
        assert ids.tolist() == list(range(len(ids))) and len(ids) >= 2
        assert (masks[0] != masks[-1]).mean() > 0.01


def test_equal_arguments_give_equal_files_and_another_seed_other_ones(tmp_path: Path) -> None:
    write_moving_shapes(tmp_path / "a", SMALL)
    write_moving_shapes(tmp_path / "b", SMALL)
    write_moving_shapes(tmp_path / "c", MovingShapes(3, 2, 6, 48, 80, seed=1))
    name = "JPEGImages/480p/shapes-001/00003.jpg"
    first, second, third = ((tmp_path / folder / name).read_bytes() for folder in "abc")
    assert first == second
    assert first != third


def test_the_palette_is_that_of_davis() -> None:
    colours = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)
    assert colours[:6].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert colours[255].tolist() == [224, 224, 192]
