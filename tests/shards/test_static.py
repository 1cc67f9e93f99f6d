"""Still images: soft masks that nobody can take for ids, pairs in every layout of the six sets, names that collide."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from shards import png
from shards.check import check_set
from shards.errors import DataError
from shards.findings import RefusedError, read_findings
from shards.masks import SOFT_CODECS, decode_label_map, decode_soft_mask, encode_soft_mask, label_map_size
from shards.reader import ShardSet
from shards.source_masks import read_mask
from shards.sources.options import SourceOptions
from tests.shards.other_trees import write
from tests.shards.small_tree import HEIGHT, WIDTH, build_kind, indexed_png, jpeg, saved


def soft(seed=0):
    """Levels (40, 56) with a soft-edged disc."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(rows - 20, columns - 20 - seed)
    return np.clip(255 - 20 * (distance - 8), 0, 255).astype(np.uint8)


def grey(levels):
    return saved(Image.fromarray(levels), "png")


@pytest.fixture
def tree(tmp_path):
    """The layout of STCN and RDE beside the layouts the sets are published in."""
    root = tmp_path / "tree"
    files = [
        ("DUTS-TR/a_1.jpg", "DUTS-TR/a_1.png"),
        ("DUTS-TE/DUTS-TE-Image/a_1.jpg", "DUTS-TE/DUTS-TE-Mask/a_1.png"),
        ("ecssd/images/0001.jpg", "ecssd/ground_truth_mask/0001.png"),
        ("fss/abe's_flyingfish/1.jpg", "fss/abe's_flyingfish/1.png"),
        ("fss/gas_mask/1.JPG", "fss/gas_mask/1.png"),
        ("BIG_small/b.x_im.jpg", "BIG_small/b.x_gt.png"),
    ]
    for number, (image, mask) in enumerate(files):
        write(root / image, jpeg(number))
        write(root / mask, grey(soft(number)))
    return root


NAMES = ["BIG_small/b.x", "DUTS-TE/a_1", "DUTS-TR/a_1", "ecssd/0001", "fss/abe's_flyingfish/1", "fss/gas_mask/1"]


def built(tree, out, **arguments):
    return ShardSet.open(build_kind("static", [tree], out, **arguments).root)


def level_map(shard_set, name):
    row = shard_set.frame_rows(shard_set.video_row(name))[0]
    return decode_soft_mask(shard_set.read(row).mask, shard_set.mask_codec)


def test_every_layout_is_paired_and_every_image_has_a_name_of_its_own(tree, tmp_path):
    shard_set = built(tree, tmp_path / "out")
    assert shard_set.videos.original_names[:] == NAMES
    assert shard_set.manifest.splits == {
        "BIG_small": 1, "DUTS-TE": 1, "DUTS-TR": 1, "ecssd": 1, "fss": 2, "train": 6,
    }  # fmt: skip
    assert read_findings(shard_set.path) == []
    for number, name in enumerate(["DUTS-TR/a_1", "DUTS-TE/a_1", "ecssd/0001", *NAMES[4:], NAMES[0]]):
        np.testing.assert_array_equal(level_map(shard_set, name), soft(number), err_msg=name)
    assert shard_set.file_name(0) == "b.x_im.jpg"


@pytest.mark.parametrize("codec", ["lz4", "png"])
def test_soft_masks_are_marked_in_manifest_and_member_and_never_decode_as_ids(tree, tmp_path, codec):
    shard_set = built(tree, tmp_path / "out", mask_codec=codec)
    assert shard_set.mask_codec == f"soft.{codec}"
    mask = shard_set.read(0).mask
    with pytest.raises(ValueError, match="unknown mask codec 'soft"):
        decode_label_map(mask, shard_set.mask_codec)
    if codec == "lz4":
        with pytest.raises(ValueError, match="not an lz4 mask of VFM1"):
            decode_label_map(mask, "lz4")
    assert check_set(shard_set.path, 1, lambda facts: None).problems == ()


def test_the_object_is_where_the_level_is_half_or_more(tree, tmp_path):
    shard_set = built(tree, tmp_path / "out")
    inside = soft(0) >= 128
    rows, columns = np.nonzero(inside)
    objects = shard_set.objects(shard_set.frame_rows(shard_set.video_row("DUTS-TR/a_1"))[0])
    assert objects.ids.tolist() == [1] and objects.areas.tolist() == [int(inside.sum())]
    assert objects.boxes.tolist() == [[rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]]


@pytest.mark.parametrize("codec", SOFT_CODECS)
def test_all_levels_survive(codec):
    levels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    data = encode_soft_mask(levels, codec)
    np.testing.assert_array_equal(decode_soft_mask(data, codec), levels)
    assert label_map_size(data, codec) == (8, 32)


LEVELS = soft(3)
BINARY = (LEVELS > 127).astype(np.uint8)
GREYS = bytes(value for level in range(256) for value in (level, level, level))
STORED = {
    "grey": (grey(LEVELS), LEVELS),
    "colour with equal channels": (saved(Image.fromarray(LEVELS).convert("RGB"), "png"), LEVELS),
    "opaque colour": (saved(Image.fromarray(LEVELS).convert("RGBA"), "png"), LEVELS),
    "1 bit": (saved(Image.fromarray(BINARY > 0), "png"), BINARY * np.uint8(255)),
    "0 and 1": (grey(BINARY), BINARY * np.uint8(255)),
    "0 and 1 in colour": (saved(Image.fromarray(BINARY).convert("RGB"), "png"), BINARY * np.uint8(255)),
    "16 bits": (saved(Image.fromarray(LEVELS.astype(np.uint16) * 257), "png"), LEVELS),
    "grey palette": (indexed_png(LEVELS, GREYS), LEVELS),
}


@pytest.mark.parametrize("way", STORED)
def test_levels_are_read_from_every_way_of_storing_them(way):
    data, expected = STORED[way]
    mask = read_mask(data, "soft.png", "soft")
    np.testing.assert_array_equal(decode_soft_mask(mask.data, "soft.png"), expected)


COLOURED = Image.fromarray(np.stack([LEVELS, LEVELS, 255 - LEVELS], axis=-1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(COLOURED, "png"), "coloured mask"),
        (indexed_png(BINARY, bytes([0, 0, 0, 128, 0, 0])), "coloured mask"),
        (
            saved(Image.merge("LA", (Image.fromarray(LEVELS), Image.new("L", (WIDTH, HEIGHT), 9))), "png"),
            "transparent mask",
        ),
        (jpeg(1), "mask is no PNG"),
    ],
)
def test_colours_and_transparency_are_refused(data, reason):
    with pytest.raises(RefusedError) as caught:
        read_mask(data, "soft.lz4", "soft")
    assert caught.value.finding.reason == reason


def test_empty_masks_are_counted_and_dropped(tree, tmp_path):
    write(tree / "ecssd/ground_truth_mask/0001.png", grey(np.full((HEIGHT, WIDTH), 127, np.uint8)))
    with pytest.raises(DataError, match="an object in some frame"):
        built(tree, tmp_path / "stop")
    shard_set = built(tree, tmp_path / "skip", on_bad="skip")
    assert shard_set.num_videos == 5 and shard_set.manifest.refused == 1


@pytest.mark.parametrize(
    "bad_mask",
    [grey(np.zeros((HEIGHT, WIDTH), np.uint8)), grey(soft()[:, 1:]), grey(soft())[:-30], b""],
    ids=["empty", "narrow", "truncated", "no bytes"],
)
def test_of_twins_one_whose_mask_is_sound_stays(tmp_path, bad_mask):
    for name, mask in (("a", bad_mask), ("b", grey(soft(1))), ("c", grey(soft(2)))):
        write(tmp_path / f"tree/ecssd/{name}.jpg", jpeg(1))
        write(tmp_path / f"tree/ecssd/{name}.png", mask)
    options = SourceOptions(duplicates="drop")
    with pytest.raises(DataError, match="ecssd/a"):
        built(tmp_path / "tree", tmp_path / "stop", options=options)
    shard_set = built(tmp_path / "tree", tmp_path / "skip", options=options, on_bad="skip")
    assert shard_set.videos.original_names[:] == ["ecssd/b"]
    np.testing.assert_array_equal(level_map(shard_set, "ecssd/b"), soft(1))
    found = [(one.severity, one.video, one.found) for one in read_findings(shard_set.path)]
    assert sorted(found)[1] == ("warning", "ecssd/c", "those of ecssd/b")
    assert [(severity, video) for severity, video, _ in sorted(found)[::2]] == [("refused", "ecssd/a")]


def test_one_set_can_be_taken_alone(tree, tmp_path):
    assert built(tree, tmp_path / "out", splits=("fss",)).videos.original_names[:] == NAMES[4:]
    with pytest.raises(DataError, match="found only BIG_small, DUTS-TE, DUTS-TR, ecssd, fss"):
        built(tree, tmp_path / "other", splits=("duts",))


def test_a_mask_of_another_size_is_refused(tree, tmp_path):
    write(tree / "DUTS-TR/a_1.png", grey(soft()[:, 1:]))
    with pytest.raises(DataError, match="size of the image, 56x40, found 55x40"):
        built(tree, tmp_path / "out")


def test_the_real_pack(shared_data, tmp_path):
    source = shared_data / "static_mini"
    shard_set = built(source, tmp_path / "out")
    splits = {"BIG_small": 1, "DUTS-TE": 2, "DUTS-TR": 3, "HRSOD_small": 1, "ecssd": 2, "fss": 8, "train": 17}
    assert shard_set.manifest.splits == splits
    assert [one.severity for one in read_findings(shard_set.path) if one.severity == "refused"] == []
    for name in shard_set.videos.original_names[:]:
        with Image.open(source / f"{name}.png") as image:
            expected = np.array(image.convert("L"))
        np.testing.assert_array_equal(level_map(shard_set, name), expected, err_msg=name)
        row = shard_set.frame_rows(shard_set.video_row(name))[0]
        assert shard_set.read(row).image == (source / f"{name}.jpg").read_bytes()


def test_a_png_bomb_is_refused_before_it_is_decoded():
    chunks = png.read_chunks(grey(LEVELS))
    header = (60_000).to_bytes(4) + (60_000).to_bytes(4) + chunks[0][1][8:]
    data = png.SIGNATURE + b"".join(map(png._encode_chunk, [(b"IHDR", header), *chunks[1:]]))
    for reading in ("ids", "soft"):
        with pytest.raises(RefusedError, match="absurd size"):
            read_mask(data, "lz4", reading)
