"""The published structure, which ours is measured against, computes the same; the options compute the same, too."""

from __future__ import annotations

import pytest
import torch

from models.rde import Rde
from tests.trainers.test_rde_objective import make_batch, make_model
from trainers.benchmarks.published_rde import PublishedStep
from trainers.benchmarks.rde_step import OURS, PUBLISHED, VARIANTS, StepSize, prepare, time_steps
from trainers.objectives.rde import RdeObjective

SMALL = StepSize(width=0.0625, size=32, batch_size=2)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("top_p", [1.0, 0.3])
def test_both_structures_have_the_same_loss_and_gradients(top_p: float) -> None:
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in make_batch().items()}
    ours, published = RdeObjective(make_model()), PublishedStep(make_model())
    loss, metrics = ours(**inputs, top_p=top_p)
    expected, _ = published(**inputs, top_p=top_p)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert len(published.logged) == 12  # values fetched from the device in every step
    for (name, parameter), other in zip(ours.named_parameters(), published.parameters(), strict=True):
        if "key_proj.bias" in name or "compress_key.bias" in name:
            continue  # cancel in the softmax: rounding noise
        assert parameter.grad is not None
        assert other.grad is not None
        error = (parameter.grad - other.grad).norm() / other.grad.norm().clamp(min=1e-8)
        assert error < 1e-3, f"{name}: relative error {error:.1e}"
    assert metrics["union_1"] == published.logged["9"]


def test_the_published_structure_does_more_passes() -> None:
    counts: dict[str, dict[str, int]] = {}
    for name, kind in ((OURS, RdeObjective), (PUBLISHED, PublishedStep)):
        model = Rde(width=0.0625)
        calls = counts[name] = {"value": 0, "decoder": 0, "key": 0, "sam": 0}
        parts = {"value": model.value_encoder.fuser.block2, "decoder": model.decoder.pred, "key": model.key_encoder}
        for part, module in (parts | {"sam": model.mem_compress}).items():
            module.register_forward_hook(lambda *_, part=part, calls=calls: calls.update({part: calls[part] + 1}))
        kind(model)(**make_batch(), top_p=1.0)
    assert counts == {
        OURS: {"value": 4, "decoder": 4, "key": 1, "sam": 3},
        PUBLISHED: {"value": 10, "decoder": 12, "key": 1, "sam": 3},
    }


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "ours, compile"])
def test_every_variant_takes_the_same_step(name: str) -> None:
    expected = prepare(SMALL, VARIANTS[OURS])()
    tolerance = 0.05 if "bf16" in name else 1e-5
    assert float(prepare(SMALL, VARIANTS[name])()) == pytest.approx(float(expected), rel=tolerance)


def test_costs_are_measured_for_every_name_asked_for() -> None:
    (cost,) = time_steps(SMALL, (OURS,), rounds=1).values()
    assert cost.step_ms > 0
    assert cost.memory_mb > 0
    assert cost.loss == pytest.approx(float(prepare(SMALL, VARIANTS[OURS])()), rel=1e-5)
    with pytest.raises(ValueError, match="variants are published structure, ours"):
        time_steps(SMALL, ("theirs",))
