"""MTMFI's training step: what is judged, what learns, and that a cache changes nothing but the time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from pipelines.source import ClipSource
from tests.trainers.small_mtmfi import small_batch, small_network
from trainers.objectives.mtmfi import MtmfiObjective, MtmfiObjectiveOptions

SMALL: dict[str, Any] = {
    "num_channels": 4,
    "num_samples": 3,
    "hole": "smooth",
    "init_iterations": (3, 3),
    "update_iterations": (3,),
}


def objective(variant: str = "bise", *, train_trunk: bool = False, **options: Any) -> MtmfiObjective:
    return MtmfiObjective(
        small_network(variant, train_trunk=train_trunk), MtmfiObjectiveOptions(**{**SMALL, **options})
    )


def run(module: MtmfiObjective, **changes: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = small_batch()
    inputs = {name: getattr(batch, name) for name in ("images", "masks", "num_objects", "first_masks")} | changes
    loss, scalars = module(**inputs, **module.arguments(batch))
    return loss, scalars


def source_of(folder: Path, fingerprint: str = "f" * 64) -> ClipSource:
    """A stand-in for the clips of a stage: what names them and where they lie."""
    shard_set = SimpleNamespace(fingerprint=fingerprint, path=folder, name="small")
    mix = SimpleNamespace(entries=[SimpleNamespace(dataset=shard_set)])
    return cast(ClipSource, SimpleNamespace(mix=mix, recipe="recipe"))


@pytest.mark.parametrize("variant", ["bise", "initial", "frtm"])
def test_a_gradient_reaches_the_refiner_and_nothing_else(variant: str) -> None:
    module = objective(variant)
    run(module)[0].backward()
    with_gradient = {name for name, weight in module.named_parameters() if weight.grad is not None}
    assert with_gradient == {name for name, _ in module.named_parameters() if ".refiner." in name}
    silent = [name for name, weight in module.named_parameters() if name in with_gradient and not weight.grad.any()]  # type: ignore[union-attr]
    # Biases before batch norm with batch statistics move nothing.
    assert [name for name in silent if not name.endswith("bblock.0.bias")] == []


def test_a_trunk_that_is_to_learn_gets_a_gradient() -> None:
    module = objective(train_trunk=True)
    run(module)[0].backward()
    stem = module.model.trunk.conv1.weight.grad
    assert stem is not None
    assert stem.any()


def test_the_loss_is_the_sum_over_frames_of_mean_cross_entropies() -> None:
    module, batch = objective(), small_batch()
    arguments = module.arguments(batch)
    module.eval()
    loss, scalars = module(batch.images, batch.masks, batch.num_objects, batch.first_masks, **arguments)
    expected = 0.0
    for frame in (1, 2):
        for clip in range(2):
            targets = [(project[clip : clip + 1], taps[clip : clip + 1]) for project, taps in arguments["targets"]]
            probabilities = module._segment(batch.images[clip : clip + 1, frame], targets).sigmoid()
            truth = batch.masks[clip : clip + 1, frame].float()
            expected += F.binary_cross_entropy(probabilities, truth).item() / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx((scalars["loss_frame_1"] + scalars["loss_frame_2"]).item())


def test_void_pixels_and_frames_without_labels_are_not_judged() -> None:
    module, batch = objective().eval(), small_batch()
    masks = batch.masks.clone()
    masks[:, 1, :10] = 255
    masks[:, 2] = 255
    arguments = module.arguments(batch)
    _, scalars = module(batch.images, masks, batch.num_objects, batch.first_masks, **arguments)
    assert scalars["loss_frame_2"].item() == 0
    logits = module._segment(batch.images[:, 1], arguments["targets"])[:, 10:]
    expected = F.binary_cross_entropy_with_logits(logits, batch.masks[:, 1, 10:].float())
    assert scalars["loss_frame_1"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_target_models_do_not_depend_on_what_they_are_fitted_with() -> None:
    module = objective()
    together = module.arguments(small_batch((0, 3)))["targets"]
    alone = [module.arguments(small_batch((number,)))["targets"] for number in (0, 3)]
    for level in range(2):
        for clip in range(2):
            torch.testing.assert_close(together[level][1][clip], alone[clip][level][1][0], rtol=1e-3, atol=1e-5)


def test_fitted_scores_are_higher_on_the_object() -> None:
    module, batch = objective(init_iterations=(5, 10, 10)), small_batch((0,))
    targets = module.arguments(batch)["targets"]
    features = module.model.target_features(module.model.look(batch.images[:, 1]))
    mask = batch.masks[0, 1] > 0
    for feature, (project, filters) in zip(features, targets, strict=True):
        taps = (filters[0].T @ project[0]).T.view(1, -1, 3, 3)
        score = F.interpolate(F.conv2d(feature, taps, padding=1), mask.shape, mode="bilinear")[0, 0]
        assert score[mask].mean() > score[~mask].mean() + 0.3


def test_a_cache_gives_back_what_was_fitted(tmp_path: Path) -> None:
    plain, first, second = objective(), objective(cache=True), objective(cache=True)
    plain.use_source(source_of(tmp_path))
    expected = plain.arguments(small_batch())
    assert not list(tmp_path.iterdir())
    first.use_source(source_of(tmp_path))
    fitted = first.arguments(small_batch())
    second.use_source(source_of(tmp_path))
    kept = second.arguments(small_batch())
    assert (fitted["kept"], kept["kept"]) == (0, 1)
    for plainly, once, again in zip(expected["targets"], fitted["targets"], kept["targets"], strict=True):
        for tensors in zip(plainly, once, again, strict=True):
            assert torch.equal(tensors[0], tensors[1])
            assert torch.equal(tensors[1], tensors[2])


FITTING: dict[str, Any] = {
    "num_channels": 5,
    "num_samples": 2,
    "num_made": 18,
    "hole": "grey",
    "regularisation": (1e-4, 1e-4),
    "init_iterations": (3, 4),
    "update_iterations": (4,),
    "forgetting_rate": 10.0,
    "weighting": "hinge",
    "target_seed": 1,
}


def test_every_option_that_changes_a_fit_has_a_cache_of_its_own(tmp_path: Path) -> None:
    assert {field.name for field in dataclasses.fields(MtmfiObjectiveOptions)} == {
        *FITTING,
        "name",
        "fit_at_once",
        "cache",
        "cache_folder",
    }
    folders = [cache_folder(tmp_path, **change) for change in ({}, *({key: FITTING[key]} for key in FITTING))]
    assert len(set(folders)) == 1 + len(FITTING)
    assert cache_folder(tmp_path, fit_at_once=3) == folders[0]
    assert cache_folder(tmp_path, variant="frtm") not in folders
    assert cache_folder(tmp_path, variant="initial") == folders[0]  # which refiner learns from them changes nothing


def cache_folder(parent: Path, variant: str = "bise", **options: Any) -> Path:
    """Where target models of these options are kept."""
    module = objective(variant, cache=True, cache_folder=parent, **options)
    module.use_source(source_of(parent))
    return module._caches[0].folder


def test_another_data_set_or_trunk_has_a_cache_of_its_own(tmp_path: Path) -> None:
    first = objective(cache=True, cache_folder=tmp_path)
    first.use_source(source_of(tmp_path))
    first.arguments(small_batch((0,)))
    moved = objective(cache=True, cache_folder=tmp_path)
    moved.use_source(source_of(tmp_path, "e" * 64))
    assert moved.arguments(small_batch((0,)))["kept"] == 0
    changed = objective(cache=True, cache_folder=tmp_path)
    with torch.no_grad():
        changed.model.trunk.conv1.weight[0, 0, 0, 0] += 1
    changed.use_source(source_of(tmp_path))
    assert changed.arguments(small_batch((0,)))["kept"] == 0


def test_a_clip_without_an_object_makes_no_nan() -> None:
    module = objective()
    batch = small_batch((0,), object_ids=())
    batch.first_masks.zero_()
    batch.masks.zero_()
    loss, _ = module(batch.images, batch.masks, batch.num_objects, batch.first_masks, **module.arguments(batch))
    assert loss.isfinite()


def test_the_models_of_a_learning_trunk_are_not_kept() -> None:
    with pytest.raises(ValueError, match=r"set objective\.cache: false"):
        objective(train_trunk=True, cache=True)


def test_a_cache_folder_without_a_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="add cache: true"):
        MtmfiObjectiveOptions(cache_folder=Path("somewhere"))
