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


def test_a_box_is_filled_with_black_around_the_frame_and_comes_off_again() -> None:
    sight = Sight(box=(40, 48), fill_box=True, multiple=1, smallest=16)
    view = View((24, 16), CPU, sight)  # becomes 40 x 26: 11 columns on either side
    image, padding = view.image(torch.full((24, 16, 3), 255, dtype=torch.uint8))
    assert (image.shape, padding) == ((1, 3, 40, 48), Padding(11, 11, 0, 0))
    assert image[0, :, 7, 10].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(image[0, 0, :, 11:37], torch.full((40, 26), (1 - 0.485) / 0.229))
    masks = view.masks(np.full((24, 16), 5, np.uint8), [5])
    assert torch.equal(masks[0, 0].any(0).nonzero()[:, 0], torch.arange(11, 37))
    found = view.positions(torch.cat([1 - masks, masks], 1), padding)
    assert torch.equal(found, torch.ones(24, 16, dtype=torch.uint8))
    assert sight.settings()["fill_box"] is True


def test_a_box_to_fill_must_be_one_the_model_takes() -> None:
    for box in (None, (240, 427)):
        with pytest.raises(ValueError, match="needs a box with sides of 32 or more, multiples of 16"):
            Sight(box=box, fill_box=True)


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
