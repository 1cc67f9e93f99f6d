"""How a model sees frames: sizes, masks, normalisation, and the way back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from models.masks import Padding
from trainers.views import Sight, View

CPU = torch.device("cpu")
NOTHING = Padding(0, 0, 0, 0)


@pytest.mark.parametrize(
    ("size", "seen"),
    [((480, 854), (240, 427)), ((480, 910), (225, 427)), ((1280, 720), (240, 135)), ((60, 80), (240, 320))],
)
def test_frames_fill_a_box_as_far_as_their_aspect_allows(size: tuple[int, int], seen: tuple[int, int]) -> None:
    assert Sight(box=(240, 427)).seen_size(size) == seen


@pytest.mark.parametrize(("side", "seen"), [(24, (24, 42)), (None, (48, 84))])
def test_a_shorter_side_is_met_exactly_and_none_leaves_frames_alone(side: int | None, seen: tuple[int, int]) -> None:
    assert Sight(shorter_side=side).seen_size((48, 84)) == seen


def test_a_frame_is_not_padded_where_any_size_will_do() -> None:
    view = View((50, 70), CPU, Sight(multiple=1, smallest=16))
    image, padding = view.image(torch.zeros(50, 70, 3, dtype=torch.uint8))
    assert image.shape == (1, 3, 50, 70)
    assert padding == NOTHING


def test_pixels_are_normalised_by_the_numbers_asked_for() -> None:
    pixels = torch.full((16, 16, 3), 153, dtype=torch.uint8)
    image, _ = View((16, 16), CPU, Sight(smallest=16)).image(pixels)
    scalar, _ = View((16, 16), CPU, Sight(smallest=16, normalise="scalar")).image(pixels)
    assert image[0, :, 3, 3].tolist() == pytest.approx(
        [(0.6 - 0.485) / 0.229, (0.6 - 0.456) / 0.224, (0.6 - 0.406) / 0.225]
    )
    assert scalar[0, :, 3, 3].tolist() == pytest.approx([(0.6 - 0.45) / 0.226] * 3)


def test_truncated_masks_lose_the_pixels_that_two_labels_share() -> None:
    labels = np.zeros((32, 32), np.uint8)
    labels[8:24, 9:24] = 4  # the left edge lies within an output pixel, the others on borders of output pixels
    nearest = View((32, 32), CPU, Sight(box=(16, 16), multiple=1, smallest=16)).masks(labels, [4])[0, 0]
    eroded = View((32, 32), CPU, Sight(box=(16, 16), multiple=1, smallest=16, masks="truncated")).masks(labels, [4])[
        0, 0
    ]
    assert eroded.unique().tolist() == [0.0, 1.0]
    expected = torch.zeros(16, 16)
    expected[4:12, 5:12] = 1
    assert torch.equal(eroded, expected)
    assert nearest[4:12, 5:12].min() == 1


def test_found_positions_come_back_in_the_frames_size() -> None:
    probabilities = torch.zeros(1, 2, 16, 16)
    probabilities[:, 0], probabilities[:, 1, :, :8] = 0.5, 1.0
    for results in ("bilinear", "nearest"):
        view = View((32, 32), CPU, Sight(box=(16, 16), multiple=1, smallest=16, results=results))
        found = view.positions(probabilities, NOTHING)
        assert found.shape == (32, 32)
        assert found[:, :15].min() == 1
        assert found[:, 17:].max() == 0


def test_settings_name_what_differs_from_the_default_and_survive_json() -> None:
    assert Sight(shorter_side=480).settings() == {"shorter_side": 480}
    settings = Sight(box=(240, 427), multiple=1).settings()
    assert settings == {"shorter_side": None, "box": [240, 427], "multiple": 1}
    assert json.loads(json.dumps(settings)) == settings
