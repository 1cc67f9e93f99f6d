"""A png set is an ordinary WebDataset: DALI's own reader iterates it (`webdataset` itself: test_unshard)."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from shards.index.derive import as_numpy
from shards.index.stock_index import write_stock_indexes
from shards.reader import ShardSet
from tests.shards.small_tree import build_set


@pytest.fixture
def png_set(tree, tmp_path):
    """A set of one shard in which every frame has a mask, as stock readers without optional parts ask."""
    return build_set(tree, tmp_path / "out", mask_codec="png", splits=("train",)).root


def test_dali_reads_frames_by_an_index_in_its_own_format(png_set, tmp_path):
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def

    (tar,) = png_set.glob("*.tar")
    (index,) = write_stock_indexes(png_set, tmp_path / "dali")

    @pipeline_def(batch_size=4, num_threads=1, device_id=None)
    def read():
        images, masks = fn.readers.webdataset(paths=[str(tar)], index_paths=[str(index)], ext=["jpg", "png"])
        return images, masks

    pipeline = read()
    pipeline.build()
    with ShardSet.open(png_set) as shard_set:
        found = []
        while len(found) < shard_set.num_frames:
            images, masks = pipeline.run()
            found += [(bytes(images.at(n)), bytes(masks.at(n))) for n in range(4)]
        for row in range(shard_set.num_frames):
            encoded = shard_set.read(row)
            assert found[row] == (encoded.image, encoded.mask)
            labels = np.asarray(Image.open(io.BytesIO(found[row][1])))
            assert sorted(set(labels.ravel()) - {0}) == shard_set.objects(row).ids.tolist()


def test_the_index_for_dali_lists_the_places_of_our_own(png_set, tmp_path):
    (index,) = write_stock_indexes(png_set, tmp_path)
    header, *lines = index.read_text().splitlines()
    with ShardSet.open(png_set) as shard_set:
        assert header == f"v1.2 {shard_set.num_frames}"
        offsets = as_numpy(shard_set._batch("frames", 0), "offset")
    places = [int(words[words.index("jpg") + 1]) for words in map(str.split, lines)]
    assert places == offsets.tolist()
