"""Shrinking: which sizes, which pixels, one statement for the whole set."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from shards.errors import DataError
from shards.findings import RefusedError, read_findings
from shards.images import read_image
from shards.masks import decode_label_map, decode_soft_mask
from shards.reader import ShardSet
from shards.scaling import Scaling
from shards.source_masks import read_mask
from shards.sources.options import SourceOptions
from tests.shards.other_trees import labels_of, write
from tests.shards.small_tree import build_kind, build_set, indexed_png, jpeg, label_maps, saved, write_tree


@pytest.mark.parametrize(
    ("shape", "scaling", "expected"),
    [
        ((720, 1280), Scaling(480), (480, 853)),  # the published example: 853.33
        ((1280, 720), Scaling(480), (853, 480)),
        ((1080, 1920), Scaling(480), (480, 853)),
        ((480, 1000), Scaling(480), (480, 1000)),
        ((404, 720), Scaling(480), (404, 720)),
        ((404, 720), Scaling(480, enlarge=True), (480, 855)),  # 855.45
        ((700, 1100), Scaling(480), (480, 754)),  # 754.29
        ((700, 1101), Scaling(480, rounding="nearest"), (480, 755)),  # 754.97
        ((700, 1101), Scaling(480), (480, 754)),
        ((3, 7), Scaling(9, enlarge=True), (9, 21)),  # exact: in floating point 7 * (9 / 3) may fall below
    ],
)
def test_the_size_of_scaled_images(shape, scaling, expected):
    assert scaling.target(shape) == expected


def test_no_side_is_ever_truncated_below_the_exact_quotient():
    for side in range(20, 2000, 7):
        assert min(Scaling(480, enlarge=True).target((side, 3 * side + 1))) == 480


@pytest.mark.parametrize("arguments", [{"shorter_side": 7}, {"shorter_side": 480, "jpeg_quality": 0}])
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must be at least 8"):
        Scaling(**arguments)


def test_images_are_scaled_as_pillow_does_it_bicubically():
    data = jpeg(4, 60, 90)
    scaled = read_image(data, Scaling(20, jpeg_quality=80))
    assert (scaled.shape, scaled.source_shape) == ((20, 30), (60, 90))
    with Image.open(io.BytesIO(data)) as image:
        expected = saved(image.resize((30, 20), Image.Resampling.BICUBIC), "jpeg", quality=80)
    assert scaled.data == expected


def test_images_of_the_right_size_keep_their_bytes():
    data = jpeg(4, 20, 90)
    assert read_image(data, Scaling(20)).data == data
    assert read_image(data, Scaling(30)).data == data


def test_label_maps_take_the_nearest_pixel_and_never_mix_ids():
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 20:40], labels[15:20, 25:35] = 7, 255
    mask = read_mask(indexed_png(labels), "png", scaling=Scaling(20))
    np.testing.assert_array_equal(decode_label_map(mask.data, "png"), labels[1::2, 1::2])
    assert mask.objects.ids.tolist() == [7] and mask.has_void


def test_soft_masks_are_averaged():
    levels = np.zeros((40, 60), np.uint8)
    levels[:, 31:] = 255
    mask = read_mask(saved(Image.fromarray(levels), "png"), "soft.png", "soft", Scaling(20))
    assert 0 < int(decode_soft_mask(mask.data, "soft.png")[10, 15]) < 255


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree", {"one": label_maps(3, (1, 2), 5)})


def test_a_scaled_set_says_so_once_for_all_frames(tree, tmp_path):
    options = SourceOptions(scaling=Scaling(20, jpeg_quality=90))
    result = build_set(tree, tmp_path / "out", options=options)
    facts = {"shorter_side": 20, "enlarge": False, "rounding": "truncate", "jpeg_quality": 90}
    assert result.manifest.options == {"scaling": facts}
    assert read_findings(result.root) == []
    with ShardSet.open(result.root) as shard_set:
        assert (shard_set.videos.height[0], shard_set.videos.width[0]) == (20, 28)
        for frame, labels in enumerate(label_maps(3, (1, 2), 5)):
            np.testing.assert_array_equal(labels_of(shard_set, "one", frame), labels[1::2, 1::2])


def test_sizes_are_compared_before_scaling(tree, tmp_path):
    write(tree / "Annotations/480p/one/00001.png", indexed_png(np.zeros((20, 28), np.uint8)))
    with pytest.raises(DataError, match="size of the image, 56x40, found 28x20"):
        build_set(tree, tmp_path / "out", options=SourceOptions(scaling=Scaling(20)))


def test_a_build_with_another_scaling_is_another_build(tree, tmp_path):
    build_set(tree, tmp_path / "out", options=SourceOptions(scaling=Scaling(20)))
    with pytest.raises(DataError, match="a finished set of other arguments"):
        build_set(tree, tmp_path / "out", options=SourceOptions(scaling=Scaling(30)))


def test_real_youtube_frames_shrink(shared_data, tmp_path):
    options = SourceOptions(scaling=Scaling(120))
    root = build_kind("youtube_vos", [shared_data / "ytvos_mini"], tmp_path, splits=("train",), options=options).root
    with ShardSet.open(root) as shard_set:
        sizes = list(zip(shard_set.videos.height.tolist(), shard_set.videos.width.tolist(), strict=True))
        assert sizes == [(120, 213), (120, 213), (160, 120)]  # 427x240 -> 213.5
        assert shard_set.videos.object_ids(1) == (1, 2)


def test_a_jpeg_that_claims_billions_of_pixels_is_refused_before_it_is_decoded():
    data = bytearray(jpeg(1))
    header = data.index(b"\xff\xc0")
    data[header + 5 : header + 9] = (60_000).to_bytes(2) + (60_000).to_bytes(2)
    with pytest.raises(RefusedError, match="absurd size"):
        read_image(bytes(data))


def test_a_strip_that_would_be_enlarged_beyond_all_bounds_is_refused():
    with pytest.raises(RefusedError) as caught:
        read_image(jpeg(1, 16, 4000), Scaling(480, enlarge=True))
    assert (caught.value.finding.reason, caught.value.finding.found) == ("absurd size", "120000x480")
