"""The refiner against the acceptance vectors of its spec, its names and its gradients."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.refiner import DESIGNS, LEVELS, TO_EVEN, TO_ODD, Refiner, double, refiner_options
from tests.models.conftest import REPOSITORY

CHANNELS = dict(zip(LEVELS, (512, 256, 128, 64), strict=True))
OF_RESNET101 = dict(zip(LEVELS, (2048, 1024, 512, 256), strict=True))

VECTORS = {
    "bise": (0.06738669, 0.01995215, 0.00180418, 0.07566708, 0.07453158, 0.02042472),
    "initial": (0.05786253, 0.02471379, -0.02687769, 0.06500405, 0.06684465, -0.05561971),
    "bise-full": (-0.03954027, 0.01147511, -0.02589262, -0.03694594, -0.03877378, -0.05447563),
}
COUNTS = {  # trainable parameters with ResNet-101 and ResNet-18, entries of the state dict
    "bise": (1_144_985, 960_665, 112),
    "initial": (1_422_193, 1_237_873, 140),
    "bise-full": (1_457_305, 1_272_985, 152),
    "frtm": (1_410_449, 1_226_129, 140),
}


def fill(refiner: Refiner) -> None:
    """The weights of the acceptance vectors."""
    state = {f"refiner.{name}": tensor for name, tensor in refiner.state_dict().items()}
    names = sorted(name for name in state if not name.endswith("num_batches_tracked"))
    for position, name in enumerate(names):
        tensor = state[name]
        wave = torch.sin(1 + position + 0.37 * torch.arange(tensor.numel(), dtype=tensor.dtype))
        if tensor.dim() == 4:
            values = 1.5 * wave / math.sqrt(tensor[0].numel())
        elif name.endswith("bblock.1.weight"):
            values = 1 + 0.1 * wave
        elif name.endswith("running_var"):
            values = 1 + 0.5 * wave**2
        else:
            values = 0.05 * wave
        tensor.copy_(values.view_as(tensor))


def grid(height: int, width: int, down: float, right: float) -> Tensor:
    rows, columns = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    return down * rows[:, None] + right * columns


def inputs() -> tuple[list[Tensor], list[Tensor]]:
    features = [
        (0.3 * torch.arange(count)[:, None, None] + grid(2 * 2**level, 3 * 2**level, 0.5, 0.7) + level)
        .sin()
        .abs()[None]
        for level, count in enumerate(CHANNELS.values())
    ]
    return features, [grid(8, 12, 0.4, 0.3).sin()[None, None], grid(4, 6, 0.4, 0.6).cos()[None, None]]


@torch.no_grad()
@pytest.mark.parametrize("variant", VECTORS)
def test_logits_are_those_of_the_acceptance_vectors(variant: str) -> None:
    refiner = Refiner(variant, CHANNELS).double().eval()
    fill(refiner)
    logits = refiner(*inputs(), (64, 95))[0, 0]
    points = [logits[place].item() for place in ((0, 0), (10, 20), (33, 47), (63, 94))]
    found = (logits.mean().item(), logits.std().item(), *points)
    assert found == pytest.approx(VECTORS[variant], abs=1e-8)


@pytest.mark.parametrize("variant", COUNTS)
def test_parameters_are_as_many_as_published(variant: str) -> None:
    large, small, entries = COUNTS[variant]
    assert sum(weight.numel() for weight in Refiner(variant, OF_RESNET101).parameters()) == large
    refiner = Refiner(variant, CHANNELS)
    assert sum(weight.numel() for weight in refiner.parameters()) == small
    assert len(refiner.state_dict()) == entries


def test_names_shapes_and_order_are_those_of_the_released_files() -> None:
    listing = REPOSITORY.parent / "shared" / "spec" / "mtmfi_state_dict.txt"
    if not listing.is_file():
        pytest.skip("no ../shared/spec beside the checkout")
    listed = read_listing(listing)
    assert len(listed) == 8
    for (trunk, variant), expected in listed.items():
        refiner = Refiner(variant, OF_RESNET101 if trunk == "resnet101" else CHANNELS)
        found = {f"refiner.{name}": tuple(tensor.shape) for name, tensor in refiner.state_dict().items()}
        assert list(found.items()) == list(expected.items())


def read_listing(path: Path) -> dict[tuple[str, str], dict[str, tuple[int, ...]]]:
    listed: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {}
    current: dict[str, tuple[int, ...]] = {}
    for line in path.read_text().splitlines():
        if heading := re.match(r"## backbone=(\w+) variant=([\w-]+)", line):
            current = listed.setdefault((heading[1], heading[2]), {})
        elif entry := re.match(r"(refiner\.\S+)\s+\(([\d, ]*)\)", line):
            current[entry[1]] = tuple(int(number) for number in entry[2].split(",") if number.strip())
    return listed


@pytest.mark.parametrize("variant", DESIGNS)
def test_the_variant_is_read_from_names_and_shapes(variant: str) -> None:
    state = {f"refiner.{name}": tensor for name, tensor in Refiner(variant, CHANNELS).state_dict().items()}
    assert refiner_options(state) == (variant, CHANNELS)


def test_weights_of_something_else_are_no_refiner() -> None:
    with pytest.raises(ValueError, match="no refiner"):
        refiner_options({"trunk.conv1.weight": torch.zeros(64, 3, 7, 7)})


@torch.no_grad()
def test_objects_of_one_image_at_once_are_the_same_as_one_by_one() -> None:
    refiner = Refiner("bise", CHANNELS).double().eval()
    fill(refiner)
    features, (score3, score4) = inputs()
    scores = [torch.cat([score3, -score3, score3 + 1]), torch.cat([score4, score4, -score4])]
    together = refiner(features, scores, (64, 95))
    alone = [refiner(features, [score[n : n + 1] for score in scores], (64, 95)) for n in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 12)])
def test_doubling_is_bicubic_interpolation_and_so_is_its_gradient(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = F.interpolate(features, scale_factor=2, mode="bicubic", align_corners=False)
    towards = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    doubled = double(features, torch.tensor((TO_EVEN, TO_ODD), dtype=torch.float64))
    torch.testing.assert_close(doubled, expected)
    gradients = [torch.autograd.grad(each, features, towards)[0] for each in (doubled, expected)]
    torch.testing.assert_close(*gradients)


def test_two_scores_are_refused_where_one_is_read() -> None:
    features, scores = inputs()
    with pytest.raises(ValueError, match="2 scores, but frtm reads 1"):
        Refiner("frtm", CHANNELS).double()(features, scores, (64, 95))


@pytest.mark.parametrize("variant", DESIGNS)
def test_a_gradient_reaches_every_parameter(variant: str) -> None:
    refiner = Refiner(variant, CHANNELS).double()
    features, scores = inputs()
    refiner(features, scores[2 - refiner.num_scores :], (64, 95)).square().sum().backward()
    silent = [name for name, weight in refiner.named_parameters() if weight.grad is None or not weight.grad.any()]
    # A bias before batch norm with batch statistics moves nothing.
    assert [name for name in silent if not name.endswith("bblock.0.bias")] == []
