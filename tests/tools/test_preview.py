"""tools/preview.py by the files it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.trainers.small_runs import build_shards, plain_config, write_config
from tools.preview import preview


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tmp_path_factory.mktemp("preview"))


@pytest.fixture(scope="module")
def config(shards: Path) -> Path:
    return write_config(shards.parent / "small.yaml", plain_config(shards, shards.parent / "run"))


def test_a_config_becomes_a_page_or_a_sheet(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, sheet = tmp_path / "new" / "clips.html", tmp_path / "clips.png"
    assert preview([str(config), "--step", "0", "4", "--out", str(page), "--stage", "small"]) == 0
    assert preview([str(config), "stages.0.batch_size=1", "--out", str(sheet)]) == 0
    assert capsys.readouterr().out == f"written: {page}\nwritten: {sheet}\n"
    assert page.read_text().count('"plan": {') == 4
    with Image.open(sheet) as picture:
        assert picture.height < 200


def test_a_shard_set_becomes_a_page_of_its_videos(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "set.html"
    assert preview([str(shards), "--out", str(out)]) == 0
    assert "one: 6 frames, 2 objects" in out.read_text()
    assert preview([str(shards), "--videos", "two", "--out", str(out)]) == 0
    assert "one: 6 frames" not in out.read_text()
    with pytest.raises(ValueError, match="no video 'three'"):
        preview([str(shards), "--videos", "three", "--out", str(out)])
    with pytest.raises(ValueError, match="a shard set is shown as a page"):
        preview([str(shards), "--out", str(tmp_path / "set.png")])


def test_wrong_words_are_one_line_and_status_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        preview([str(config), "--out", "clips.gif"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("preview.py: --out is clips.gif, expected a name that ends in .html or .png")
    assert error.count("\n") == 1
    with pytest.raises(ValueError, match=r"expected a finished shard set .* or a run .*, found neither"):
        preview([str(config.parent.parent), "--out", "clips.html"])
    with pytest.raises(ValueError, match="no stage 'large'; there are: small"):
        preview([str(config), "--stage", "large"])
