"""The fast target models follow the plain ones, which work at full size through autograd, over a whole small video."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.target_fitting import Regularisation, Targets, Weights, condense, pixel_weights
from models.target_models import TargetModels, TargetOptions, fit_first, random_weights
from trainers.benchmarks.published_targets import PlainTargetModel

NUM_OBJECTS, NUM_SAMPLES, SIZE, LABELS = 2, 3, (5, 7), (33, 50)


def blob(time: float, number: int) -> Tensor:
    """A soft mask (33, 50) of an object that moves, in 0..1."""
    y, x = torch.arange(33.0, dtype=torch.float64)[:, None], torch.arange(50.0, dtype=torch.float64)
    distance = ((y - 14 - 4 * number) ** 2 + (x - 12 - 10 * number - time) ** 2).sqrt()
    return torch.sigmoid(6 - distance)


@pytest.mark.parametrize(("growth", "rate"), [("mtmfi", 750), ("frtm", 75)])
def test_scores_of_a_video_are_those_of_the_plain_version(growth: str, rate: float) -> None:
    generator = torch.Generator().manual_seed(11)
    options = TargetOptions(
        num_channels=3,
        regularisation=Regularisation(1e-2, 1e-1),
        init_iterations=(3, 4),
        update_iterations=(3,),
        capacity=5,
        refit_every=2,
        growth=growth,
        forgetting_rate=rate,
    )
    features = torch.randn(NUM_OBJECTS, NUM_SAMPLES, 6, *SIZE, generator=generator, dtype=torch.float64)
    masks = torch.stack(
        [torch.stack([blob(k, o) > 0.5 for k in range(NUM_SAMPLES)]) for o in range(NUM_OBJECTS)]
    ).double()
    start = random_weights(NUM_OBJECTS, 6, 3, generator)
    assert start.project is not None
    start = Weights(start.project.double(), start.filter.double())
    assert start.project is not None
    flat = condense(masks.flatten(0, 1), pixel_weights(masks.flatten(0, 1)), SIZE)
    targets = Targets(*(tensor.unflatten(0, (NUM_OBJECTS, NUM_SAMPLES)) for tensor in flat))
    fast = TargetModels([fit_first(features, targets, start, options)], options)
    plain = [
        PlainTargetModel(start.project[o][:, :, None, None], start.filter[o].view(1, 3, 3, 3), options)
        for o in range(NUM_OBJECTS)
    ]
    for number, model in enumerate(plain):
        model.start(features[number], masks[number])
    for time in range(1, 8):
        frame = torch.randn(1, 6, *SIZE, generator=generator, dtype=torch.float64)
        expected = torch.cat([model.score(frame) for model in plain])
        torch.testing.assert_close(fast.score([frame])[0], expected, rtol=1e-6, atol=1e-9)
        soft = torch.stack([0.9 * blob(time, number) for number in range(NUM_OBJECTS)])
        if time == 4:
            soft[1] = 0  # lost: neither version remembers it
        fast.update(soft)
        for model, mask in zip(plain, soft, strict=True):
            model.update(mask)
