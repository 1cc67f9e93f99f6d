"""Every case of shared/data/broken_mini in the DAVIS layout: what is done about it, as docs/data-format.md says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from shards.check import check_set
from shards.errors import DataError
from shards.findings import read_findings
from shards.masks import decode_label_map
from shards.reader import ShardSet
from tests.shards.small_tree import build_set

# case -> (findings as "severity: reason: what was done", frames kept, masks kept); None for the frames: video dropped.
SOUND: tuple[str, ...] = ()
CASES: dict[str, tuple[tuple[str, ...], int | None, int]] = {
    "ok_control": (("warning: name twice in a list: kept once",), 4, 4),
    "jpg_truncated": (("refused: damaged image: video dropped",), None, 0),
    "jpg_no_eoi": (("repaired: no end marker: end marker appended",), 4, 4),
    "jpg_trailing_garbage": (("warning: trailing bytes: kept",), 4, 4),
    "jpg_empty": (("refused: empty file: video dropped",), None, 0),
    "jpg_is_html": (("refused: no image: video dropped",), None, 0),
    "jpg_is_png": (("repaired: image is no JPEG: re-encoded",), 4, 4),
    "jpg_cmyk": (("repaired: CMYK image: re-encoded",), 4, 4),
    "jpg_gray": (("warning: grey image: kept",), 4, 4),
    "jpg_progressive": (("warning: progressive JPEG: kept",), 4, 4),
    "jpg_exif_rotated": (("repaired: EXIF orientation: re-encoded",), 4, 4),
    "jpg_exif_rotated_first": (("repaired: EXIF orientation: re-encoded", "warning: short video: kept"), 1, 1),
    "jpg_upper_ext": (SOUND, 4, 4),
    "frame_size_changes": (("refused: image size changes: video dropped",), None, 0),
    "mask_missing_middle": (("warning: frames without mask: kept",), 4, 3),
    "mask_missing_first": (("warning: frames without mask: kept", "warning: first frame without mask: kept"), 4, 3),
    "mask_dir_missing": (("refused: no masks: video dropped",), None, 0),
    "mask_first_only": (SOUND, 4, 1),
    "mask_orphan": (("warning: mask without image: ignored",), 4, 4),
    "mask_size_mismatch": (("refused: mask size differs: video dropped",), None, 0),
    "mask_size_off_by_one": (("refused: mask size differs: video dropped",), None, 0),
    "mask_transposed": (("refused: mask size differs: video dropped",), None, 0),
    "mask_16bit": (SOUND, 4, 4),
    "mask_16bit_big_ids": (("refused: ids above 255: video dropped",), None, 0),
    "mask_rgba": (("warning: ids stored as colours: kept",), 4, 4),
    "mask_rgb_coded": (("warning: ids stored as colours: kept",) * 4, 4, 4),
    "mask_rgb_unknown_colour": (("refused: unknown colour: video dropped",), None, 0),
    "mask_la": (("refused: 0/255 grey mask: video dropped",) * 3, None, 0),
    "mask_gray255": (("refused: 0/255 grey mask: video dropped",) * 4, None, 0),
    "mask_gray_ids": (SOUND, 4, 4),
    "mask_1bit": (("warning: 1-bit mask: kept",), 4, 4),
    "mask_void255": (SOUND, 4, 4),
    "mask_palette_permuted": (("warning: another palette: kept",), 4, 4),
    "mask_index_permuted": (("warning: another palette: kept",), 4, 4),
    "mask_antialiased": (("refused: soft edges: video dropped",), None, 0),
    "mask_as_jpg": (("refused: mask is no PNG: video dropped",), None, 0),
    "mask_truncated_png": (("refused: truncated mask: video dropped",), None, 0),
    "mask_bad_crc": (("refused: damaged mask: video dropped",), None, 0),
    "mask_empty_file": (("refused: empty file: video dropped",), None, 0),
    "mask_zero_objects_first": (("warning: first mask empty: kept",), 4, 4),
    "mask_zero_objects_all": (("refused: no object: video dropped",), None, 0),
    "mask_object_gone": (SOUND, 4, 4),
    "mask_noncontiguous_ids": (SOUND, 4, 4),
    "mask_late_object": (SOUND, 4, 4),
    "mask_many_ids": (SOUND, 3, 3),
    "mask_tiny_object": (SOUND, 4, 4),
    "mask_interlaced": (SOUND, 4, 4),
    "mask_4bit_palette": (SOUND, 4, 4),
    "vidéo_日本 1": (SOUND, 4, 4),
    "name.with.dots": (SOUND, 4, 4),
    "single_frame": (("warning: short video: kept",), 1, 1),
    "two_frames": (("warning: short video: kept",), 2, 2),
    "frame_gap": (SOUND, 4, 4),
    "nonzero_start": (SOUND, 4, 4),
    "unpadded_names": (SOUND, 4, 4),
    "junk_files": (("warning: no frame name: ignored",), 4, 4),
    "odd_size": (SOUND, 4, 4),
    "one_pixel": (("refused: tiny image: video dropped",), None, 0),
    "empty_dir": (("refused: no frames: video dropped",), None, 0),
}


@pytest.fixture(scope="module")
def source(shared_data) -> Path:
    return shared_data / "broken_mini"


@pytest.fixture(scope="module")
def skipped(source, tmp_path_factory):
    root = build_set(source, tmp_path_factory.mktemp("broken"), on_bad="skip").root
    with ShardSet.open(root) as shard_set:
        yield shard_set


def cases(source) -> dict[str, dict]:
    return {case["sequence"]: case for case in json.loads((source / "cases.json").read_text())["davis_layout"]}


def test_every_case_is_decided(source):
    assert set(cases(source)) == set(CASES)


def test_every_case_ends_as_decided(source, skipped):
    findings = read_findings(skipped.path)
    kept = dict(zip(skipped.videos.original_names[:], range(skipped.num_videos), strict=True))
    for name, (wanted, frames, masks) in CASES.items():
        found = [f"{one.severity}: {one.reason}: {one.what_was_done}" for one in findings if one.video == name]
        assert found == list(wanted), name
        if frames is None:
            assert name not in kept
        else:
            annotated = skipped.annotated(kept[name])
            assert (len(annotated), int(annotated.sum())) == (frames, masks), name
    others = [(one.reason, one.video) for one in findings if one.video not in CASES]
    assert others == [("no such video", "missing_sequence")]


def test_every_list_file_is_read_as_decided(source, skipped):
    listed = json.loads((source / "cases.json").read_text())["list_files"]
    assert set(listed) == {"ImageSets/2017/train.txt", "ImageSets/2017/val.txt"}
    in_train = {name for name, (_, frames, _) in CASES.items() if frames is not None}
    names = {
        split: {skipped.videos.original_names[int(row)] for row in skipped.select(split)} for split in ("train", "val")
    }
    assert names == {"train": in_train, "val": {"ok_control", "mask_void255"}}
    remarks = {(one.reason, one.video) for one in read_findings(skipped.path) if one.path.startswith("ImageSets")}
    assert remarks == {("no such video", "missing_sequence"), ("name twice in a list", "ok_control")}


def test_every_finding_names_a_file_or_folder_of_its_case(source, skipped):
    files = {name: case["files"] for name, case in cases(source).items()}
    for finding in read_findings(skipped.path):
        if finding.video not in CASES or finding.path.startswith("ImageSets"):
            continue
        assert finding.path.split("/")[:3] in [
            ["JPEGImages", "480p", finding.video],
            ["Annotations", "480p", finding.video],
        ]
        if finding.frame and finding.severity != "warning" and finding.video != "mask_la":
            assert any(finding.path.startswith(listed) for listed in files[finding.video]), finding


def test_the_set_made_of_them_is_sound(skipped):
    assert check_set(skipped.path, 1, lambda facts: None).problems == ()


def test_ids_of_the_odd_masks_are_right(skipped):
    """Each of these stores the control's second mask in another way."""

    def labels(video, frame):
        rows = skipped.frame_rows(skipped.video_row(video))
        return decode_label_map(skipped.read(rows[frame]).mask, skipped.mask_codec)

    control = labels("ok_control", 1)
    for video in ("mask_16bit", "mask_rgba", "mask_rgb_coded", "mask_gray_ids", "mask_interlaced", "mask_4bit_palette"):
        np.testing.assert_array_equal(labels(video, 1), control, err_msg=video)
    np.testing.assert_array_equal(labels("mask_1bit", 1), control > 0)
    assert skipped.videos.object_ids(skipped.video_row("mask_noncontiguous_ids")) == (1, 7)
    assert len(skipped.videos.object_ids(skipped.video_row("mask_many_ids"))) == 30
    assert skipped.videos.frame_step[skipped.video_row("nonzero_start")] == 5
    rows = skipped.frame_rows(skipped.video_row("unpadded_names"))
    assert [skipped.frame_name(row) for row in rows] == ["8", "9", "10", "11"]


@pytest.mark.parametrize("case", sorted(name for name, (found, _, _) in CASES.items() if "refused" in str(found)))
def test_stop_names_the_file_of_a_refused_case(source, tmp_path, case):
    tree = tmp_path / "tree"
    for folder in ("JPEGImages", "Annotations"):
        (tree / folder / "480p").mkdir(parents=True)
        if (source / folder / "480p" / case).exists():
            shutil.copytree(source / folder / "480p" / case, tree / folder / "480p" / case)
    (tree / "ImageSets/2017").mkdir(parents=True)
    (tree / "ImageSets/2017/train.txt").write_text(f"{case}\n")
    with pytest.raises(DataError, match=rf"480p/{re.escape(case)}.*: expected .*, found .*--on-bad skip") as caught:
        build_set(tree, tmp_path / "out")
    path = Path(caught.value.path).relative_to(tree).as_posix()
    # All masks of mask_la are 0/255, and the first one is met before the listed one.
    listed = ["Annotations/480p/mask_la/00000.png"] if case == "mask_la" else cases(source)[case]["files"]
    assert any(path.startswith(name) for name in listed)
    assert not (tmp_path / "out/davis2017/manifest.json").exists()
