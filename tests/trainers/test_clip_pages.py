"""The page to leaf through holds what the trainer gets: pixels, masks, numbers."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.reader import ShardSet
from tests.trainers.small_runs import build_shards, small_config
from trainers.config import Config
from trainers.looking.clip_pages import Look, clip_page, load_batches, look_sheet, plan_numbers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Six steps of two clips; the max gap falls from 2 to 1 at step 3."""
    folder = tmp_path_factory.mktemp("pages")
    return small_config(build_shards(folder), folder / "run")


def clips_of(page: str) -> list[dict[str, Any]]:
    """What the page's script is given."""
    start = page.index("const CLIPS = ") + len("const CLIPS = ")
    return json.JSONDecoder().raw_decode(page, start)[0]


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def test_a_page_holds_images_masks_and_numbers_of_every_clip(config: Config) -> None:
    look = Look(steps=(1, 4))
    clips = clips_of(clip_page(config, look, "t"))
    assert [(clip["step"], clip["clip"]) for clip in clips] == [(1, 2), (1, 3), (4, 8), (4, 9)]
    assert [clip["curriculum"]["max gap"] for clip in clips] == ["2", "2", "1", "1"]
    assert all(clip["gap_rule"].startswith("1 to max gap + 1, as published") for clip in clips)
    for clip in clips:
        assert all(abs(gap) <= int(clip["curriculum"]["max gap"]) + 1 for gap in clip["gaps"])
    with ExitStack() as stack:
        for number, (source, batch) in enumerate(load_batches(config, look, stack)):
            for position, plan in enumerate(batch.plans):
                clip = clips[2 * number + position]
                assert clip["video"] in source.describe(plan)
                for place, uri in enumerate(clip["masks"]):
                    labels = np.asarray(picture(uri))
                    assert (labels == batch.masks[position, place].numpy()).all(), "masks bit for bit"
                given = np.asarray(picture(clip["given"]))
                assert ((given == 1) == (batch.first_masks[position, 0].numpy() > 0.5)).all()
                images = batch.images[position].permute(0, 2, 3, 1).numpy()
                for place, uri in enumerate(clip["images"]):
                    shown = np.asarray(picture(uri)) / 255
                    wanted = images[place] * np.array([0.229, 0.224, 0.225]) + np.array([0.485, 0.456, 0.406])
                    assert np.abs(shown - wanted).mean() < 0.05


def test_background_is_transparent_and_void_is_white(config: Config) -> None:
    from trainers.looking.clip_pages import _label_png

    labels = np.array([[0, 1], [2, 255]], np.uint8)
    rgba = np.asarray(Image.open(io.BytesIO(_label_png(labels))).convert("RGBA"))
    assert rgba.reshape(4, 4).tolist() == [[0, 0, 0, 0], [128, 0, 0, 255], [0, 128, 0, 255], [255, 255, 255, 255]]


def test_ranks_see_their_own_share(config: Config) -> None:
    whole = clips_of(clip_page(config, Look(), "t"))
    shares = [clips_of(clip_page(config, Look(rank=rank, world_size=2), "t")) for rank in (0, 1)]
    assert [clip["clip"] for share in shares for clip in share] == [clip["clip"] for clip in whole] == [0, 1]
    assert [share[0]["images"] for share in shares] == [clip["images"] for clip in whole]
    assert [share[0]["rank"] for share in shares] == [0, 1]


def test_numbers_of_a_plan_say_what_its_matrices_do(config: Config) -> None:
    from dataclasses import replace

    with ExitStack() as stack:
        source, _ = next(load_batches(config, Look(), stack))
        plan = source.plan(0)
    angle = np.radians(30)
    turned = np.array([[2 * np.cos(angle), -2 * np.sin(angle), 0], [2 * np.sin(angle), 2 * np.cos(angle), 5]])
    mirrored = np.array([[-1.0, 0, 32], [0, 1, 0]])
    colours = np.repeat(np.array([[[0.5, 0, 0, 1], [0, 1, 0, 2], [0, 0, 2, 3]]], np.float32), 2, axis=0)
    plan = replace(plan, matrices=np.stack([turned, mirrored]).astype(np.float32), colours=colours)
    numbers = plan_numbers(plan)
    assert numbers["source pixels per output pixel, each frame"] == "2.00, 1.00"
    assert numbers["turned, degrees, each frame"] in ("30.0, 0.0", "30.0, -0.0")
    assert numbers["centre of each frame in the source (x, y)"] == "12, 49; 16, 16"
    assert numbers["mirrored"] == "no"
    assert numbers["published step: flip"] == ("yes" if plan.steps.flip else "no")
    assert numbers["published step: crop"] == ", ".join(map(str, plan.steps.crop))
    assert "published step: affines" not in numbers
    assert numbers["colour gain (r, g, b)"] == "0.50, 1.00, 2.00"
    assert numbers["colour offset (r, g, b)"] == "1.0, 2.0, 3.0"


def test_damaged_clips_are_shown_as_training_replaces_them(tmp_path: Path) -> None:
    shards = build_shards(tmp_path)
    with ShardSet.open(shards) as shard_set:
        extents = [shard_set.extent(row) for row in shard_set.frame_rows(shard_set.video_row("one"))]
        tar = shard_set.shard_path(0)
    content = bytearray(tar.read_bytes())
    for extent in extents:
        content[extent.start + extent.num_bytes // 2] ^= 0xFF
    tar.write_bytes(content)
    config = small_config(shards, tmp_path / "run")
    with pytest.raises(ValueError, match="CRC-32 differs"):
        clip_page(config, Look(), "t")
    tolerant = replace(config, reading=replace(config.reading, on_corrupt="substitute"))
    assert [clip["video"] for clip in clips_of(clip_page(tolerant, Look(), "t"))] == ["two", "two"]


def test_a_sheet_has_a_row_for_every_clip_of_every_step(config: Config) -> None:
    one, two = (look_sheet(config, Look(steps=steps), cell_height_px=32) for steps in ((0,), (0, 5)))
    assert one.width == two.width
    rows = (two.height - one.height) / 2  # two more clips
    assert rows == one.height // 2 - 9  # half of the sheet with two clips, but for margin and headings
    with pytest.raises(ValueError, match="a stage of 6 steps has no steps 6 to 7"):
        look_sheet(config, Look(steps=(6,)))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_a_browser_shows_the_clip_that_the_address_names(config: Config, tmp_path: Path) -> None:
    page = tmp_path / "clips.html"
    page.write_text(clip_page(config, Look(steps=(0, 3)), "t"))
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{page}#3"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    clip = clips_of(page.read_text())[3]
    body = result.stdout[result.stdout.index("<body>") : result.stdout.index("<script>")]
    assert f'<h2 id="name">{clip["dataset"]}: {clip["video"]}</h2>' in body
    assert 'class="chosen">step 3  clip 7' in body
    assert body.count('class="stack"') == 5
    assert body.count('class="mask"') == 5
    assert f"frame {clip['frames'][1]}, gap {clip['gaps'][0]}" in body
    assert "learning rate 1e-05, max gap 1" in body
