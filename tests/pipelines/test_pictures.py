"""Overlays show ids in their colours and leave the background alone; sheets hold what they were given."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipelines.pictures import overlay, save_png, sheet

GREY = np.full((20, 30, 3), 100, np.uint8)


def test_background_stays_and_objects_take_their_palette_colour() -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[5:15, 10:20] = 2  # (0, 128, 0) in the DAVIS palette
    drawn = overlay(GREY, labels, opacity=0.5)
    assert (drawn[labels == 0] == 100).all()
    assert drawn[10, 15].tolist() == [50, 114, 50]
    assert drawn[5, 10].tolist() == [96, 224, 96]  # the outline is solid and brighter


def test_void_is_drawn_white() -> None:
    drawn = overlay(GREY, np.full((20, 30), 255, np.uint8), opacity=1.0)
    assert (drawn == 255).all()


def test_a_sheet_scales_pictures_to_one_height_and_fits_the_longest_row() -> None:
    picture = np.full((40, 60, 3), 200, np.uint8)
    made = sheet([[picture], [picture, picture]], ["one", "two"], cell_height_px=20)
    assert made.size == (2 * (30 + 4) + 4, 2 * (20 + 14 + 4) + 4)
    cell = np.asarray(made)[4 + 14 : 4 + 14 + 20, 4 : 4 + 30]
    assert (cell == 200).all()


def test_headings_stand_once_above_the_rows() -> None:
    picture = np.full((40, 60, 3), 200, np.uint8)
    plain = np.asarray(sheet([[picture], [picture]], ["", ""], cell_height_px=20))
    headed = np.asarray(sheet([[picture], [picture]], ["", ""], cell_height_px=20, headings=["true"]))
    assert headed.shape[0] == plain.shape[0] + 14
    assert (headed[4 + 14 :] == plain[4:]).all()
    assert len(np.unique(headed[: 4 + 14].reshape(-1, 3), axis=0)) > 1


def test_a_sheet_without_a_caption_per_row_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1 rows and 2 captions"):
        sheet([[GREY]], ["one", "two"], cell_height_px=20)


def test_a_saved_picture_leaves_no_partial_file(tmp_path: Path) -> None:
    save_png(sheet([[GREY]], ["one"], cell_height_px=20), tmp_path / "deep" / "sheet.png")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["sheet.png"]


def test_a_picture_that_cannot_be_written_leaves_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, path = sheet([[GREY]], ["one"], cell_height_px=20), tmp_path / "sheet.png"
    save_png(picture, path)
    before = path.read_bytes()

    def full_disk(_descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_png(sheet([[GREY]], ["two"], cell_height_px=40), path)
    assert path.read_bytes() == before
