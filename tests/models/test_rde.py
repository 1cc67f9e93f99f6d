"""The RDE network: its names and shapes, its start, and that batching over objects changes nothing."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import use_channels_last
from models.masks import aggregate
from models.rde import Rde

# Of the authors' list: "name<tab>[shape]<tab>dtype", 435 lines, sorted, joined by newlines.
AUTHORS_LIST_SHA256 = "e57a1c19d71674d5be9da26867cb437ee312e3c271db397234397a318c05cb01"
AUTHORS_ENTRIES = {
    "key_encoder": (258, 8_543_296),
    "value_encoder": (121, 21_701_635),
    "mem_compress": (30, 9_586_656),
    "key_proj": (2, 589_888),
    "key_comp": (2, 4_719_104),
    "decoder": (22, 18_880_257),
}


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _described(model: nn.Module) -> list[str]:
    return [
        f"{name}\t{list(tensor.shape)}\t{str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in model.state_dict().items()
    ]


def _forward(model: Rde, images: Tensor, masks: Tensor) -> Tensor:
    """Object logits (B, O, H, W) of frame 1 after frame 0 and its compression with itself; uses all five methods."""
    features = model.encode_key(images)
    first = features.frame(0)
    value = model.encode_value(images[:, 0], first.f16, masks)
    key, value = model.compress(features.key, torch.cat([value, value], 3))
    query = features.frame(1)
    return model.decode(model.read(key, value, query.key, query.thin), query.f8, query.f4)


def test_names_shapes_and_types_are_those_of_the_authors_network(paper_model: Rde) -> None:
    lines = sorted(_described(paper_model))
    assert len(lines) == 435
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == AUTHORS_LIST_SHA256


def test_each_part_has_the_authors_number_of_entries_and_parameters(paper_model: Rde) -> None:
    entries = Counter(name.split(".")[0] for name in paper_model.state_dict())
    parameters: Counter[str] = Counter()
    for name, parameter in paper_model.named_parameters():
        parameters[name.split(".")[0]] += parameter.numel()
    assert {part: (entries[part], parameters[part]) for part in entries} == AUTHORS_ENTRIES
    assert parameters.total() == 64_020_836


def test_every_line_of_the_authors_list_is_found(paper_model: Rde, spec_state_dict: Path) -> None:
    first_part = spec_state_dict.read_text().split("# Part 2")[0]
    lines = [line for line in first_part.splitlines() if line and not line.startswith("#")]
    assert sorted(_described(paper_model)) == sorted(lines)


def test_the_stage_0_network_lacks_the_sam_and_one_stem_channel() -> None:
    model = Rde(stage0=True, initialise=False)
    assert len(model.state_dict()) == 405
    assert sum(parameter.numel() for parameter in model.parameters()) == 54_431_044
    assert model.value_encoder.conv1.weight.shape == (64, 4, 7, 7)
    with pytest.raises(ValueError, match="a stage-0 model has no SAM"):
        model.compress(torch.zeros(1, 64, 2, 2, 2), torch.zeros(1, 1, 512, 2, 2, 2))


@pytest.mark.parametrize("width", [0, 0.1, 1 / 32, -1])
def test_a_width_that_gives_broken_channel_counts_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match=f"width is {width}, expected a positive multiple of 1/16"):
        Rde(width=width)


def test_the_start_is_a_function_of_the_generator_alone(small_model: Rde) -> None:
    before = torch.random.get_rng_state()
    again = Rde(width=0.25)
    other = Rde(width=0.25, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, tensor in small_model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not torch.equal(small_model.key_comp.weight, other.key_comp.weight)


def test_random_trunks_are_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    Rde(width=1 / 16)
    assert caplog.messages == ["RDE starts from random trunks: no ImageNet file for key_weights and value_weights"]
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize("width", [0.25, 1.0])
def test_activations_of_a_random_start_are_of_order_one(width: float) -> None:
    model = Rde(width=width)
    images = _random(1, 2, 3, 64, 64)
    with torch.no_grad():
        features = model.encode_key(images)
        value = model.encode_value(images[:, 0], features.f16[:, 0], torch.ones(1, 1, 64, 64))
        key, recurrent = features.key[:, :, :1], value
        for _ in range(8):  # the recurrent memory must not grow either
            key, recurrent = model.compress(
                torch.cat([key, features.key[:, :, 1:]], 2), torch.cat([recurrent, value], 3)
            )
    tensors = {**features._asdict(), "value": value, "recurrent key": key, "recurrent value": recurrent}
    sizes = {name: tensor.square().mean().sqrt().item() for name, tensor in tensors.items()}
    assert all(0.2 < size < 3 for size in sizes.values()), sizes


def test_gradients_of_a_random_start_reach_every_parameter(small_model: Rde) -> None:
    masks = torch.rand(1, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    aggregate(_forward(small_model, _random(1, 2, 3, 64, 64), masks)).logits.square().mean().backward()
    without = [name for name, p in small_model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_batch_norm_statistics_stay_frozen_in_training_mode(small_model: Rde) -> None:
    images, masks = _random(1, 2, 3, 64, 64), torch.zeros(1, 2, 64, 64)
    before = {name: buffer.clone() for name, buffer in small_model.named_buffers()}
    with torch.no_grad():
        in_evaluation = _forward(small_model.eval(), images, masks)
        in_training = _forward(small_model.train(), images, masks)
    assert torch.equal(in_evaluation, in_training)
    assert len(before) == 3 * (43 + 15 + 2) - 3 * 2  # three buffers for each of the batch norms
    assert all(torch.equal(buffer, before[name]) for name, buffer in small_model.named_buffers())


def test_values_of_all_objects_at_once_equal_one_object_at_a_time_with_the_sum_of_the_others(small_model: Rde) -> None:
    image, masks = _random(2, 3, 64, 64), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    encoder = small_model.value_encoder
    with torch.no_grad():
        f16 = small_model.encode_key(image.unsqueeze(1)).f16[:, 0]
        values = small_model.encode_value(image, f16, masks)
        for own in range(3):
            others = masks[:, [other for other in range(3) if other != own]].sum(1, keepdim=True)
            features = encoder.features(torch.cat([image, masks[:, [own]], others], 1))
            fused = encoder.fuser.block1(torch.cat([features, f16], 1))
            expected = encoder.fuser.block2(fused + encoder.fuser.attention(fused))
            torch.testing.assert_close(values[:, own, :, 0], expected, atol=1e-5, rtol=1e-4)


def test_sets_of_objects_do_not_see_each_other(small_model: Rde) -> None:
    image, f16 = _random(2, 3, 64, 64), _random(2, 256, 4, 4)
    first, second = torch.rand(2, 2, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        both = small_model.encode_value(image, f16, torch.cat([first, second], 1), num_sets=2)
        apart = [small_model.encode_value(image, f16, masks) for masks in (first, second)]
    torch.testing.assert_close(both, torch.cat(apart, 1), atol=1e-5, rtol=1e-4)


def test_objects_can_be_given_in_any_order(small_model: Rde) -> None:
    images, masks = _random(2, 2, 3, 64, 64), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    order = [2, 0, 1]
    with torch.no_grad():
        logits = _forward(small_model, images, masks)
        reordered = _forward(small_model, images, masks[:, order])
    torch.testing.assert_close(reordered, logits[:, order], atol=1e-5, rtol=1e-4)


def test_the_decoder_treats_each_object_and_sample_on_its_own(small_model: Rde) -> None:
    readouts, thin = _random(2, 3, 128, 4, 4), _random(2, 1, 128, 4, 4, seed=1).expand(-1, 3, -1, -1, -1)
    decoder_input, f8, f4 = torch.cat([readouts, thin], 2), _random(2, 128, 8, 8), _random(2, 64, 16, 16)
    with torch.no_grad():
        together = small_model.decode(decoder_input, f8, f4)
        assert together.shape == (2, 3, 64, 64)
        for sample in range(2):
            for own in range(3):
                one = slice(sample, sample + 1)
                alone = small_model.decode(decoder_input[one, own : own + 1], f8[one], f4[one])
                torch.testing.assert_close(together[one, own : own + 1], alone, atol=1e-5, rtol=1e-4)


def test_decoder_input_is_the_readout_then_the_thin_features(small_model: Rde) -> None:
    value, thin = _random(1, 2, 128, 1, 2, 2), _random(1, 128, 2, 2, seed=1)
    apart = 30 * torch.eye(16)[:4].T.reshape(1, 16, 1, 2, 2)
    decoder_input = small_model.read(apart, value, apart[:, :, 0], thin)
    torch.testing.assert_close(decoder_input[:, :, :128], value[:, :, :, 0])
    assert torch.equal(decoder_input[:, 0, 128:], thin)
    assert torch.equal(decoder_input[:, 1, 128:], thin)


def test_compressing_anything_but_two_frames_is_refused(small_model: Rde) -> None:
    with pytest.raises(ValueError, match="compress merges exactly 2 frames, got 3 keys and 2 values"):
        small_model.compress(_random(1, 16, 3, 4, 4), _random(1, 1, 128, 2, 4, 4))


def test_channels_last_changes_nothing_but_rounding(small_model: Rde) -> None:
    images, masks = _random(1, 2, 3, 64, 64), torch.rand(1, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = _forward(small_model, images, masks)
        use_channels_last(small_model)
        found = _forward(small_model, images, masks)
    assert small_model.encode_key(images).f16[:, 0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_gives_nearly_the_same_masks(small_model: Rde) -> None:
    images, masks = _random(1, 2, 3, 64, 64), torch.zeros(1, 2, 64, 64)
    masks[:, 0, :32], masks[:, 1, 40:] = 1, 1
    with torch.no_grad():
        expected = aggregate(_forward(small_model, images, masks)).probabilities
        with torch.autocast("cpu", torch.bfloat16):
            found = aggregate(_forward(small_model, images, masks)).probabilities
    assert F.l1_loss(found, expected) < 0.01


def test_the_whole_path_compiles_as_one_graph_without_data_dependent_branches(small_model: Rde) -> None:
    def segment(images: Tensor, masks: Tensor) -> Tensor:
        return aggregate(_forward(small_model, images, masks), masks.amax((2, 3))).logits

    images, masks = _random(1, 2, 3, 32, 32), torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        compiled = torch.compile(segment, backend="eager", fullgraph=True)(images, masks)
        torch.testing.assert_close(compiled, segment(images, masks))
