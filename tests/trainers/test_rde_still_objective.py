"""Stage 0's objective against a literal transcription of the published step: one clip, one frame at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.rde import Rde
from tests.trainers.test_rde_objective import make_batch as make_video_batch
from tests.trainers.test_rde_objective import make_model as make_video_model
from trainers.objectives.rde import RdeObjective
from trainers.objectives.rde_still import RdeStillObjective, RdeStillOptions

SIZE = 32


pytestmark = pytest.mark.usefixtures("one_thread")


def make_batch(seed: int = 0, num_clips: int = 3, *, num_frames: int = 3) -> dict[str, Tensor]:
    """Soft masks; the last clip shows no object above one half."""
    generator = torch.Generator().manual_seed(seed)
    soft = torch.rand(num_clips, num_frames, SIZE, SIZE, generator=generator)
    soft[-1] *= 0.4
    damaged = soft[:, :1].clone()
    damaged[:, :, 4:9, 3:12] = 0
    return {
        "images": torch.randn(num_clips, num_frames, 3, SIZE, SIZE, generator=generator),
        "masks": (soft > 0.5).to(torch.uint8),
        "num_objects": torch.tensor([1, 1, 0])[:num_clips],
        "first_masks": damaged,
        "clean_masks": soft[:, :1],
    }


def make_model(seed: int = 0) -> Rde:
    return Rde(stage0=True, width=0.0625, generator=torch.Generator().manual_seed(seed)).double()


def literal_clip_loss(model: Rde, clip: dict[str, Tensor], top_p: float) -> Tensor:
    """Section "stage 0 forward", with the reader, the aggregation and the losses written out. clip: one sample.

    Published clips have three frames; step 4 is done for every frame from 2 on.
    """
    images = clip["images"].double()
    frames = [model.encode_key(images[:, t : t + 1]).frame(0) for t in range(images.shape[1])]

    def value(t: int, mask: Tensor) -> Tensor:
        return model.encode_value(images[:, t], frames[t].f16, mask[:, None])[:, 0]  # (1, C, 1, h, w)

    def segment(t: int, keys: list[Tensor], values: list[Tensor]) -> tuple[Tensor, Tensor]:
        key = torch.stack(keys, 2).flatten(2)[0]  # (C, N)
        similarity = 2 * key.T @ frames[t].key.flatten(2)[0] - (key**2).sum(0)[:, None]
        weights = torch.softmax(similarity / key.shape[0] ** 0.5, 0)
        readout = (torch.cat(values, 2).flatten(2)[0] @ weights).view(1, -1, *frames[t].thin.shape[-2:])
        decoder_input = torch.cat([readout, frames[t].thin], 1)
        p = torch.sigmoid(model.decode(decoder_input[:, None], frames[t].f8, frames[t].f4)[:, 0])
        clamped = [x.clamp(1e-7, 1 - 1e-7) for x in (1 - p, p)]
        logits = torch.stack([torch.log(x / (1 - x)) for x in clamped], 1)
        return logits, torch.softmax(logits, 1)[:, 1]

    v0, v0c = value(0, clip["first_masks"][:, 0].double()), value(0, clip["clean_masks"][:, 0].double())
    seen, values = [segment(1, [frames[0].key], [v0])], [v0]
    for t in range(2, len(frames)):
        values.append(value(t - 1, seen[-1][1]))
        seen.append(segment(t, [frame.key for frame in frames[:t]], values))
    total = torch.zeros((), dtype=torch.float64)
    for t, (logits, _) in enumerate(seen, start=1):
        pixels = torch.nn.functional.cross_entropy(logits, clip["masks"][:, t].long(), reduction="none").flatten()
        kept = pixels.sort(descending=True).values[: int(pixels.numel() * top_p)] if top_p < 1 else pixels
        total = (total + kept.mean()) / 2
    student, teacher = torch.log_softmax(v0, 1), torch.softmax(v0c, 1)
    divergence = (teacher * (teacher.log() - student)).mean()
    return total + 10 * divergence


@pytest.mark.parametrize(("top_p", "num_frames"), [(1.0, 3), (0.3, 3), (0.3, 2), (0.3, 5)])
def test_loss_and_gradients_equal_the_literal_transcription(top_p: float, num_frames: int) -> None:
    batch, batched, literal = make_batch(num_frames=num_frames), make_model(), make_model()
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    loss, _ = RdeStillObjective(batched)(**inputs, top_p=top_p)
    loss.backward()
    clips = [{name: tensor[b : b + 1] for name, tensor in batch.items()} for b in range(3)]
    expected = torch.stack([literal_clip_loss(literal, clip, top_p) for clip in clips]).mean()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    for (name, found), wanted in zip(batched.named_parameters(), literal.parameters(), strict=True):
        assert found.grad is not None, name
        assert wanted.grad is not None, name
        if name == "key_proj.key_proj.bias":  # cancels in the softmax: both gradients are rounding noise
            assert max(found.grad.norm(), wanted.grad.norm()) < 1e-6
            continue
        error = (found.grad - wanted.grad).norm() / wanted.grad.norm().clamp(min=1e-8)
        assert error < 1e-3, f"{name}: relative error {error:.1e}"


def test_switches_and_metrics() -> None:
    batch, model = make_batch(), Rde(stage0=True, width=0.0625)
    published = RdeStillOptions()

    def parts(options: RdeStillOptions) -> tuple[float, dict[str, float]]:
        loss, metrics = RdeStillObjective(model, options)(**batch, top_p=1.0)
        return float(loss.detach()), {name: float(value) for name, value in metrics.items()}

    loss, metrics = parts(published)
    halved = metrics["loss_frame_1"] / 4 + metrics["loss_frame_2"] / 2
    assert metrics["divergence_value"] > 0
    assert loss == pytest.approx(halved + 10 * metrics["divergence_value"], rel=1e-5)
    uniform, _ = parts(replace(published, frame_weighting="uniform", value_weight=0.0))
    assert uniform == pytest.approx(metrics["loss_frame_1"] + metrics["loss_frame_2"], rel=1e-5)
    assert {"iou_1", "cross_entropy", "top_p"} <= RdeStillObjective.summarise(metrics).keys()


def test_label_maps_serve_as_clean_masks_where_there_are_no_soft_ones() -> None:
    batch, objective = make_batch(), RdeStillObjective(Rde(stage0=True, width=0.0625))
    hard = (batch["clean_masks"] > 0.5).float()
    given, _ = objective(**(batch | {"clean_masks": hard}), top_p=1.0)
    del batch["clean_masks"]
    derived, _ = objective(**batch, top_p=1.0)
    assert torch.equal(given, derived)


def test_bootstrapping_follows_the_published_steps_of_stage_0() -> None:
    objective = RdeStillObjective(Rde(stage0=True, width=0.0625))
    shares = [objective.options.share_at(step) for step in (0, 4_999, 5_000, 11_250, 17_500, 60_000)]
    assert shares == pytest.approx([1.0, 1.0, 1.0, 0.575, 0.15, 0.15])


def test_clips_and_frames_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="clips of 2 frames or more, got 1; set"):
        RdeStillOptions.require_clips(1, (32, 32))
    with pytest.raises(ValueError, match="multiples of 16 and at least 16, got 24x32"):
        RdeStillOptions.require_clips(3, (24, 32))


@pytest.mark.parametrize("kind", ["still", "video"])
def test_activation_checkpointing_changes_memory_and_nothing_else(kind: str) -> None:
    results = []
    for keep_little in (False, True):
        model = make_model() if kind == "still" else make_video_model()
        model.checkpoint_activations = keep_little
        batch = make_batch() if kind == "still" else make_video_batch()
        inputs = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        objective = RdeStillObjective(model) if kind == "still" else RdeObjective(model)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss, _ = objective(**inputs, top_p=0.3)
        loss.backward()
        results.append((loss.detach(), [parameter.grad for parameter in model.parameters()], sum(saved.values())))
    (loss, gradients, kept), (other_loss, other_gradients, other_kept) = results
    assert torch.equal(loss, other_loss)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-12)
    assert other_kept < 0.6 * kept
