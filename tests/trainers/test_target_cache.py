"""Fitted target models on disk: what comes back, who may write, and what is not believed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from models.target_fitting import Weights
from shards.errors import DataError
from trainers.targets.cache import LevelShape, Subject, TargetCache

LEVELS = (LevelShape(6, 2), LevelShape(10, 2))
RECORD = 16 + 4 * (2 * (6 + 9) + 2 * (10 + 9)) + 4


def weights_of(number: int) -> list[Weights]:
    generator = torch.Generator().manual_seed(number)
    return [
        Weights(torch.randn(1, 2, level.num_in, generator=generator), torch.randn(1, 2, 9, generator=generator))
        for level in LEVELS
    ]


def open_cache(folder: Path, **settings: object) -> TargetCache:
    return TargetCache(folder, {"dataset": "abc", **settings}, LEVELS)


def assert_same(found: list[Weights] | None, expected: list[Weights]) -> None:
    assert found is not None
    for one, other in zip(found, expected, strict=True):
        assert one.project is not None
        assert other.project is not None
        assert torch.equal(one.project, other.project)
        assert torch.equal(one.filter, other.filter)


def test_what_is_put_comes_back_bit_for_bit_in_this_and_later_processes(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    for number in range(3):
        cache.put(Subject(number, 1), weights_of(number))
    for reader in (cache, open_cache(tmp_path)):
        assert_same(reader.get([Subject(1, 1)])[0], weights_of(1))
        assert reader.get([Subject(1, 2)]) == [None]


def test_ranks_write_beside_each_other_and_see_what_the_others_have(tmp_path: Path) -> None:
    first, second = open_cache(tmp_path), open_cache(tmp_path)
    first.put(Subject(0, 1), weights_of(0))
    second.put(Subject(1, 1), weights_of(1))
    second.put(Subject(0, 1), weights_of(0))
    first.refresh()
    assert_same(first.get([Subject(1, 1)])[0], weights_of(1))
    assert open_cache(tmp_path).report().models == 2


@pytest.mark.parametrize("change", [{"dataset": "xyz"}, {"targets": {"forgetting_rate": 750}}])
def test_other_settings_never_share_models(tmp_path: Path, change: dict[str, object]) -> None:
    open_cache(tmp_path).put(Subject(0, 1), weights_of(0))
    assert open_cache(tmp_path, **change).get([Subject(0, 1)]) == [None]


def test_a_record_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.put(Subject(0, 1), weights_of(0))
    cache.put(Subject(1, 1), weights_of(1))
    (path,) = cache.folder.glob("models-*.bin")
    path.write_bytes(path.read_bytes()[:-7])
    again = open_cache(tmp_path)
    assert_same(again.get([Subject(0, 1)])[0], weights_of(0))
    assert again.get([Subject(1, 1)]) == [None]


def test_a_flipped_bit_is_fitted_again_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = open_cache(tmp_path)
    cache.put(Subject(0, 1), weights_of(0))
    (path,) = cache.folder.glob("models-*.bin")
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert open_cache(tmp_path).get([Subject(0, 1)]) == [None]
    assert "fails its checksum" in caplog.text


def test_a_damaged_record_does_not_hide_the_one_that_was_fitted_in_its_place(tmp_path: Path) -> None:
    first, second = open_cache(tmp_path), open_cache(tmp_path)
    for cache in (first, second):
        cache.put(Subject(0, 1), weights_of(0))
    path = min(first.folder.glob("models-*.bin"))
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    assert_same(open_cache(tmp_path).get([Subject(0, 1)])[0], weights_of(0))


def test_the_report_says_how_much_there_is(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.put(Subject(0, 1), weights_of(0))
    cache.put(Subject(0, 2), weights_of(1))
    report = cache.report()
    assert (report.models, report.bytes, report.bytes_each) == (2, 2 * RECORD, RECORD)
    assert str(report) == "2 target models, 0.0 MB, 0.3 kB each"


def test_a_folder_whose_settings_were_changed_is_refused(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    path = cache.folder / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "other"}))
    with pytest.raises(DataError, match="remove"):
        open_cache(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this cache holds"):
        open_cache(tmp_path).put(Subject(0, 1), weights_of(0)[:1])
