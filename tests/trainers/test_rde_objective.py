"""The batched objective against a literal, one-object-at-a-time transcription of the published step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.rde import Rde
from trainers.objectives.rde import RdeObjective, RdeObjectiveOptions, slots_in_use

SIZE = 32


pytestmark = pytest.mark.usefixtures("one_thread")


def make_batch(seed: int = 0, num_clips: int = 3, *, num_frames: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    num_objects = torch.tensor([2, 1, 0])[:num_clips]
    masks = torch.randint(0, 3, (num_clips, num_frames, SIZE, SIZE), generator=generator)
    masks = torch.minimum(masks, num_objects[:, None, None, None]).to(torch.uint8)
    first = torch.stack([(masks[:, 0] == slot).float() for slot in (1, 2)], dim=1)
    first[:, :, 4:9, 3:12] = 0  # the damage
    return {
        "images": torch.randn(num_clips, num_frames, 3, SIZE, SIZE, generator=generator),
        "masks": masks,
        "num_objects": num_objects,
        "first_masks": first,
    }


def make_model(seed: int = 0) -> Rde:
    return Rde(width=0.0625, generator=torch.Generator().manual_seed(seed)).double()


def literal_loss(
    model: Rde, batch: dict[str, Tensor], top_p: float, *, of_clip: Callable[..., Tensor] | None = None
) -> Tensor:
    """Steps 1 to 10 of the published stage-3 forward and its losses: one clip, one object, one frame at a time."""
    of_clip = of_clip or literal_clip_loss
    losses = [of_clip(model, {name: value[b : b + 1] for name, value in batch.items()}, top_p) for b in range(3)]
    return torch.stack(losses).mean()


class LiteralClip:
    """One clip's features and the published operations on it, without batching of any kind."""

    def __init__(self, model: Rde, clip: dict[str, Tensor]) -> None:
        self.model = model
        self.image = clip["images"].double()
        self.selector = (1.0, 1.0) if int(clip["num_objects"]) >= 2 else (1.0, 0.0)
        self.features = [model.encode_key(self.image[:, t : t + 1]).frame(0) for t in range(self.image.shape[1])]
        self.keys = [features.key[:, :, None] for features in self.features]

    def values(self, t: int, masks: list[Tensor]) -> list[Tensor]:
        """Value of each object with the other one beside it."""
        pairs = ([masks[0], masks[1]], [masks[1], masks[0]])
        f16 = self.features[t].f16
        return [self.model.encode_value(self.image[:, t], f16, torch.stack(pair, 1))[:, 0] for pair in pairs]

    def read(self, t: int, keys: list[Tensor], values: list[list[Tensor]]) -> list[Tensor]:
        """Decoder input of each object, by the written-out formula of the memory reader."""
        inputs = []
        for o in range(2):
            memory_key = torch.cat(keys, 2).flatten(2)[0]  # (C, N)
            memory_value = torch.cat([entry[o] for entry in values], 2).flatten(2)[0]
            similarity = 2 * memory_key.T @ self.features[t].key.flatten(2)[0] - (memory_key**2).sum(0)[:, None]
            weights = torch.softmax(similarity / memory_key.shape[0] ** 0.5, 0)
            thin = self.features[t].thin
            inputs.append(torch.cat([(memory_value @ weights).view(1, -1, *thin.shape[-2:]), thin], 1))
        return inputs

    def segment(self, t: int, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits with background, and the soft masks of both objects."""
        f8, f4 = self.features[t].f8, self.features[t].f4
        p = [torch.sigmoid(self.model.decode(inputs[o][:, None], f8, f4)[:, 0]) * self.selector[o] for o in range(2)]
        clamped = [x.clamp(1e-7, 1 - 1e-7) for x in ((1 - p[0]) * (1 - p[1]), p[0], p[1])]
        logits = torch.stack([torch.log(x / (1 - x)) for x in clamped], 1)
        prob = torch.softmax(logits, 1)
        return logits, [prob[:, 1], prob[:, 2]]

    def compress(self, keys: list[Tensor], values: list[list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """The SAM on two entries, objects apart."""
        results = [
            self.model.compress(torch.cat(keys, 2), torch.cat([entry[o] for entry in values], 2)[:, None])
            for o in range(2)
        ]
        return results[0][0], [results[o][1][:, 0] for o in range(2)]


def literal_clip_loss(model: Rde, batch: dict[str, Tensor], top_p: float) -> Tensor:
    clip = LiteralClip(model, batch)
    keys = clip.keys
    clean = [(batch["masks"][:, 0] == o).double() for o in (1, 2)]
    v0, v0c = clip.values(0, [batch["first_masks"][:, o].double() for o in range(2)]), clip.values(0, clean)
    l1, m1 = clip.segment(1, clip.read(1, keys[:1], [v0]))
    v1 = clip.values(1, m1)
    key_2, value_2 = clip.compress(keys[:2], [v0, v1])
    d2t = clip.read(2, [key_2], [value_2])
    l2, _ = clip.segment(2, d2t)
    d2f = clip.read(2, keys[:2], [v0, v1])
    v2 = clip.values(2, clip.segment(2, d2f)[1])
    l3, m3 = clip.segment(3, clip.read(3, keys[:3], [v0, v1, v2]))
    v3 = clip.values(3, m3)
    key_3, value_3 = clip.compress([key_2, keys[2]], [value_2, v2])
    key_4, value_4 = clip.compress([key_3, keys[3]], [value_3, v3])
    d4t = clip.read(4, [key_4], [value_4])
    l4, _ = clip.segment(4, d4t)
    d4f = clip.read(4, keys[:4], [v0, v1, v2, v3])

    return literal_sum(clip, batch, [l1, l2, l3, l4], [(v0, v0c), (d2t, d2f), (d4t, d4f)], top_p)


def continued_clip_loss(model: Rde, batch: dict[str, Tensor], top_p: float) -> Tensor:
    """The same of any number of frames: steps 4 to 7 and 8 to 10 again and again, two frames at a time."""
    clip = LiteralClip(model, batch)
    clean = [(batch["masks"][:, 0] == o).double() for o in (1, 2)]
    values = [clip.values(0, [batch["first_masks"][:, o].double() for o in range(2)])]
    logits, pairs = [], [(values[0], clip.values(0, clean))]
    thin = clip.keys[0], values[0]  # the compressed memory
    for t in range(1, len(clip.keys)):
        whole = clip.read(t, clip.keys[:t], values)
        if t % 2:
            judged, shown = clip.segment(t, whole)
        else:
            for new in range(max(1, t - 2), t):
                thin = clip.compress([thin[0], clip.keys[new]], [thin[1], values[new]])
            inputs = clip.read(t, [thin[0]], [thin[1]])
            judged, shown = clip.segment(t, inputs)[0], clip.segment(t, whole)[1]
            pairs.append((inputs, whole))
        logits.append(judged)
        values.append(clip.values(t, shown))
    return literal_sum(clip, batch, logits, pairs, top_p)


def literal_sum(
    clip: LiteralClip,
    batch: dict[str, Tensor],
    judged: list[Tensor],
    pairs: list[tuple[list[Tensor], list[Tensor]]],
    top_p: float,
) -> Tensor:
    """The published losses of a clip, frames 1 onwards, and of (student, teacher) pairs."""
    total = torch.zeros((), dtype=torch.float64)
    for t, logits in enumerate(judged, start=1):
        channels = 3 if clip.selector[1] else 2
        labels = batch["masks"][:, t].long()
        losses = torch.nn.functional.cross_entropy(logits[:, :channels], labels, reduction="none").flatten()
        kept = losses.sort(descending=True).values[: int(losses.numel() * top_p)] if top_p < 1 else losses
        total = (total + kept.mean()) / 2  # the released loop halves its running total
    for students, teachers in pairs:
        for student, teacher in zip(students, teachers, strict=True):
            a, b = torch.log_softmax(student, 1), torch.softmax(teacher, 1)
            total = total + 10 * (b * (b.log() - a)).mean()
    return total


@pytest.mark.parametrize("top_p", [1.0, 0.3])
def test_loss_and_gradients_equal_the_literal_transcription(top_p: float) -> None:
    batch, batched, literal = make_batch(), make_model(), make_model()
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    loss, _ = RdeObjective(batched)(**inputs, top_p=top_p)
    loss.backward()
    expected = literal_loss(literal, batch, top_p)
    expected.backward()
    # The losses themselves are computed in float32, the oracle in float64.
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    for (name, found), wanted in zip(batched.named_parameters(), literal.parameters(), strict=True):
        assert found.grad is not None, name
        assert wanted.grad is not None, name
        error = (found.grad - wanted.grad).norm() / wanted.grad.norm().clamp(min=1e-8)
        assert error < 1e-3, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("num_frames", [3, 4, 5, 8])
def test_clips_of_other_lengths_go_on_as_the_published_ones(num_frames: int) -> None:
    batch, batched, literal = make_batch(num_frames=num_frames), make_model(), make_model()
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    loss, metrics = RdeObjective(batched)(**inputs, top_p=0.3)
    loss.backward()
    expected = literal_loss(literal, batch, 0.3, of_clip=continued_clip_loss)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    for (name, found), wanted in zip(batched.named_parameters(), literal.parameters(), strict=True):
        error = (found.grad - wanted.grad).norm() / wanted.grad.norm().clamp(min=1e-8)  # type: ignore[union-attr, operator]
        assert error < 1e-3, f"{name}: relative error {error:.1e}"
    if num_frames == 5:
        torch.testing.assert_close(expected, literal_loss(literal, batch, 0.3), atol=0, rtol=1e-12)
    evens = [f"divergence_{frame}" for frame in range(2, num_frames, 2)]
    assert [name for name in metrics if name.startswith("divergence_")] == ["divergence_value", *evens]


def test_later_even_frames_have_the_weight_of_frame_4() -> None:
    batch, model = make_batch(num_frames=7), Rde(width=0.0625)
    losses = {}
    for four in (0.0, 3.0):
        loss, metrics = RdeObjective(model, RdeObjectiveOptions(frame_4_weight=four))(**batch, top_p=1.0)
        losses[four] = float(loss.detach())
    expected = 3.0 * float(metrics["divergence_4"] + metrics["divergence_6"])
    assert losses[3.0] - losses[0.0] == pytest.approx(expected, rel=1e-3)


def test_every_parameter_gets_a_gradient() -> None:
    objective = RdeObjective(Rde(width=0.0625))
    loss, _ = objective(**make_batch(num_frames=3), top_p=1.0)
    loss.backward()
    assert [name for name, parameter in objective.named_parameters() if parameter.grad is None] == []
    silent = [name for name, parameter in objective.named_parameters() if not parameter.grad.any()]  # type: ignore[union-attr]
    # Keys that have passed a softmax over memory do not move when all of them move alike: this bias cancels.
    assert set(silent) <= {"model.mem_compress.compress_key.bias", "model.key_proj.key_proj.bias"}


def test_training_mode_leaves_batch_norm_statistics_alone() -> None:
    objective = RdeObjective(Rde(width=0.0625)).train()
    before = {name: value.clone() for name, value in objective.named_buffers()}
    objective(**make_batch(), top_p=1.0)
    assert not any(m.training for m in objective.modules() if isinstance(m, torch.nn.BatchNorm2d))
    for name, value in objective.named_buffers():
        assert torch.equal(value, before[name]), name


def test_each_switch_changes_what_it_names() -> None:
    batch, model = make_batch(), Rde(width=0.0625)
    published = RdeObjectiveOptions()

    def parts(options: RdeObjectiveOptions) -> tuple[float, dict[str, float]]:
        loss, metrics = RdeObjective(model, options)(**batch, top_p=1.0)
        return float(loss.detach()), {name: float(value) for name, value in metrics.items()}

    loss, metrics = parts(published)
    frames = [metrics[f"loss_frame_{frame}"] for frame in (1, 2, 3, 4)]
    divergences = metrics["divergence_value"] + metrics["divergence_2"] + metrics["divergence_4"]
    halved = frames[0] / 16 + frames[1] / 8 + frames[2] / 4 + frames[3] / 2
    assert loss == pytest.approx(halved + 10 * divergences, rel=1e-5)
    uniform_loss, _ = parts(replace(published, frame_weighting="uniform"))
    assert uniform_loss == pytest.approx(sum(frames) + 10 * divergences, rel=1e-5)
    no_kl, _ = parts(replace(published, value_weight=0.0, frame_2_weight=0.0, frame_4_weight=0.0))
    assert no_kl == pytest.approx(halved, rel=1e-5)
    _, present_only = parts(replace(published, absent_objects_diverge=False))
    assert present_only["divergence_2"] < metrics["divergence_2"]
    assert present_only["cross_entropy"] == metrics["cross_entropy"]
    _, by_position = parts(replace(published, divergence_mean="positions"))
    for name, num_channels in (("value", 512 // 16), ("2", 1024 // 16), ("4", 1024 // 16)):
        expected = num_channels * metrics[f"divergence_{name}"]
        assert by_position[f"divergence_{name}"] == pytest.approx(expected, rel=1e-5)


def test_a_constant_teacher_changes_gradients_but_no_value() -> None:
    batch = make_batch()
    gradients, losses = [], []
    for teacher_gradient in (True, False):
        objective = RdeObjective(Rde(width=0.0625), RdeObjectiveOptions(teacher_gradient=teacher_gradient))
        loss, _ = objective(**batch, top_p=1.0)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(objective.model.value_encoder.conv1.weight.grad)
    assert losses[0] == losses[1]
    assert not torch.equal(gradients[0], gradients[1])


def test_void_pixels_are_outside_loss_and_overlap() -> None:
    batch, model = make_batch(), Rde(width=0.0625)
    batch["masks"][:, 1:] = 255
    _, metrics = RdeObjective(model)(**batch, top_p=0.5)
    assert float(metrics["cross_entropy"]) == 0.0
    assert float(metrics["union_1"]) == 0.0
    assert "iou_1" not in RdeObjective.summarise({name: float(value) for name, value in metrics.items()})


def test_overlaps_become_iou_after_averaging() -> None:
    means = {"cross_entropy": 0.5, "intersection_1": 30.0, "union_1": 40.0, "intersection_2": 0.0, "union_2": 0.0}
    assert RdeObjective.summarise(means) == {"cross_entropy": 0.5, "iou_1": 0.75}


def test_the_first_slot_is_always_in_use() -> None:
    assert slots_in_use(torch.tensor([0, 1, 2]), 2).tolist() == [[1, 0], [1, 0], [1, 1]]


def test_clips_without_a_compressed_frame_are_refused() -> None:
    batch = make_batch()
    batch["images"] = batch["images"][:, :2]
    with pytest.raises(ValueError, match="clips of 3 frames or more, got 2; set recipe"):
        RdeObjective(Rde(width=0.0625))(**batch, top_p=1.0)


@pytest.mark.parametrize("size", [(40, 32), (16, 64)])
def test_frames_that_the_network_cannot_divide_are_refused(size: tuple[int, int]) -> None:
    RdeObjectiveOptions.require_clips(5, (32, 48))
    with pytest.raises(ValueError, match=rf"multiples of 16 and at least 32, got {size[0]}x{size[1]}; set recipe.size"):
        RdeObjectiveOptions.require_clips(5, size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_p": 0.0}, "top_p must lie"),
        ({"top_p_start_step": 9, "top_p_end_step": 5}, "between 0 and top_p_end_step"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": float("inf")}, "must be finite"),
        ({"value_weight": float("nan")}, "must be finite"),
    ],
)
def test_options_outside_their_range_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RdeObjectiveOptions(**change)  # type: ignore[arg-type]
