"""STM-Cycle's network against numbers measured on the authors' code, and its own promises."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.object_rows import ObjectRows
from models.stm import Arch, Memory, Query, Stm, base_channels, join_memories
from models.stm_reading import read_own_memory
from tests.models.stm_fill import HEIGHT, WIDTH, fill_weights, frame, labels, query_frame
from tests.models.test_backbones import _saved, _torchvision_state

SPEC = Path(__file__).resolve().parents[3] / "shared" / "spec" / "stm_state_dict.txt"
NUMBERS = {
    "resnet18": {
        "parameters": 17_230_082,
        "entries": 222,
        "keys mean": [0.00047596, 0.00043701],
        "keys std": [0.0944967, 0.0946651],
        "values std": [0.8318013, 0.8327533],
        "ps mean": [0.2736254, 0.2727703],
        "logits at (120, 213)": [-0.28206, -0.64206, -0.64636, -16.1181],
        "logits at (75, 75)": [0.22137, -1.07118, -1.07372, -16.1181],
    },
    "resnet50": {
        "parameters": 38_925_570,
        "entries": 558,
        "keys mean": [0.0135335, 0.0137452],
        "keys std": [0.1335976, 0.1345522],
        "values std": [1.6093824, 1.6219256],
        "ps mean": [0.0426918, 0.0419832],
        "logits at (120, 213)": [2.16375, -2.87182, -2.89725, -16.1181],
        "logits at (75, 75)": [3.41489, -4.10159, -4.13094, -16.1181],
    },
}


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def measured(request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, object], dict[str, list[float]]]]:
    """The published numbers of an arch, and ours."""
    model = Stm(arch=request.param, initialise=False)
    fill_weights(model)
    rows = ObjectRows.of([2], 3, torch.device("cpu"))
    truth = labels()
    with torch.no_grad():
        masks = torch.stack([(truth == slot).float() for slot in (1, 2)])
        memory = model.memorise(model.look(frame()[None]), masks, rows.clips)
        found = model.segment(model.encode_query(query_frame()[None]), memory, rows.clips, (HEIGHT, WIDTH))
        logits = rows.aggregate(found)[0]
    yield (
        NUMBERS[request.param],
        {
            "parameters": [sum(parameter.numel() for parameter in model.parameters())],
            "entries": [len(model.state_dict())],
            "keys mean": memory.key.mean((1, 2)).tolist(),
            "keys std": memory.key.flatten(1).std(1).tolist(),
            "values std": memory.value.flatten(1).std(1).tolist(),
            "ps mean": found.sigmoid().mean((1, 2)).tolist(),
            "logits at (120, 213)": logits[:, 120, 213].tolist(),
            "logits at (75, 75)": logits[:, 75, 75].tolist(),
        },
    )


@pytest.mark.parametrize("name", NUMBERS["resnet18"])
def test_the_network_has_the_authors_values(
    name: str, measured: tuple[dict[str, object], dict[str, list[float]]]
) -> None:
    published, ours = measured
    expected = published[name] if isinstance(published[name], list) else [published[name]]
    assert ours[name] == pytest.approx(expected, rel=2e-6, abs=1e-5)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_names_shapes_and_types_are_those_of_the_authors_files(arch: Arch) -> None:
    if not SPEC.is_file():
        pytest.skip("no ../shared/spec beside the checkout")
    section = SPEC.read_text(encoding="utf-8").split(f"(STM-Cycle) arch={arch} ")[1].split("\n\n")[0].splitlines()[1:]
    ours = Stm(arch=arch, initialise=False).state_dict()
    described = [f"{name}\t{tuple(t.shape)}\t{str(t.dtype).removeprefix('torch.')}" for name, t in ours.items()]
    assert sorted(described) == sorted(section)


def test_soft_aggregation_gives_the_published_logits_and_probabilities() -> None:
    rows = ObjectRows.of([2], 3, torch.device("cpu"))
    logits = rows.aggregate(torch.tensor([0.9, 0.3]).logit().view(2, 1, 1))
    assert logits.flatten().tolist() == pytest.approx([-2.586689, 2.197224, -0.847298, -16.118095], abs=2e-6)
    assert logits.softmax(1).flatten().tolist() == pytest.approx([0.00791983, 0.94698554, 0.04509456, 1.0522e-8])


def test_each_object_reads_its_own_memory_as_a_plain_loop_does() -> None:
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, 3, 5, generator=generator), torch.randn(2, 4, 5, generator=generator)
    query = torch.randn(2, 3, 2, 3, generator=generator)
    found = read_own_memory(key, value, query)
    for row in range(2):
        for y in range(2):
            for x in range(3):
                similar = [torch.dot(key[row, :, m], query[row, :, y, x]) / 3**0.5 for m in range(5)]
                weights = torch.stack(similar).exp()
                expected = sum(weights[m] * value[row, :, m] for m in range(5)) / weights.sum()
                torch.testing.assert_close(found[row, :, y, x], expected)


def test_reading_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, 3, 50, generator=generator), torch.randn(2, 4, 50, generator=generator)
    query = torch.randn(2, 3, 4, 5, generator=generator)
    whole = read_own_memory(key, value, query)
    monkeypatch.setattr("models.stm_reading.LARGEST_AFFINITY", 300)  # three query positions at a time
    with torch.no_grad():
        torch.testing.assert_close(read_own_memory(key, value, query), whole)


def test_a_batch_of_clips_with_different_numbers_of_objects_equals_each_clip_alone(small_stm: Stm) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 40, 56, generator=generator)
    masks = torch.rand(2, 3, 40, 56, generator=generator)
    together = _segmented(small_stm, images, masks, [1, 3])
    alone = [_segmented(small_stm, images[b : b + 1], masks[b : b + 1], [count]) for b, count in enumerate((1, 3))]
    torch.testing.assert_close(together, torch.cat(alone))


def test_recomputing_activations_changes_no_gradient(small_stm: Stm) -> None:
    images, masks = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)), torch.rand(1, 2, 32, 32)
    gradients = []
    for recompute in (False, True):
        small_stm.checkpoint_activations = recompute
        small_stm.zero_grad()
        _segmented(small_stm, images, masks, [2]).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in small_stm.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(list(small_stm.parameters()))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_memories_join_over_time_and_over_objects() -> None:
    first, second = (Memory(torch.full((2, 3, 4), n), torch.full((2, 5, 4), n)) for n in (1.0, 2.0))
    assert join_memories([first, second]).value.shape == (2, 5, 8)
    both = join_memories([first, second], over_objects=True)
    assert both.key.shape == (4, 3, 4)
    assert both.rows(slice(2, 4)).key.unique().tolist() == [2.0]


def test_both_trunks_start_from_the_imagenet_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Stm(arch="resnet18", width=0.0625, initialise=False).Encoder_Q
    state = _torchvision_state(source, convolution_biases=True)
    names = {"res2.": "layer1.", "res3.": "layer2.", "res4.": "layer3."}
    for ours, theirs in names.items():
        state = {name.replace(ours, theirs): tensor for name, tensor in state.items()}
    path = _saved({name: tensor for name, tensor in state.items() if name not in ("mean", "std")}, tmp_path)
    model = Stm(arch="resnet18", width=0.0625, weights=path)
    for encoder in (model.Encoder_M, model.Encoder_Q):
        for name in ("res4.1.conv2.weight", "res3.0.downsample.0.weight", "bn1.running_var"):
            assert torch.equal(encoder.state_dict()[name], source.state_dict()[name])
    assert caplog.messages == []


def test_a_random_start_depends_on_the_generator_alone_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        first, again = (
            Stm(arch="resnet18", width=0.0625, generator=torch.Generator().manual_seed(7)) for _ in range(2)
        )
    assert "random trunks" in caplog.text
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        assert torch.isfinite(tensor).all(), name


@pytest.mark.parametrize("width", [0.0, -1.0, 0.1, float("nan")])
def test_a_width_that_cuts_channels_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="multiple of 1/16"):
        base_channels(width)


def test_an_unknown_arch_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="resnet18, resnet50"):
        Stm(arch="resnet34")  # type: ignore[arg-type]


def test_rows_refuse_more_objects_than_slots() -> None:
    with pytest.raises(ValueError, match="expected 0 to 2"):
        ObjectRows.of([1, 3], 2, torch.device("cpu"))


def _segmented(model: Stm, images: Tensor, masks: Tensor, counts: list[int]) -> Tensor:
    """Logits of each frame, remembered with masks (B, K, H, W), as read from that memory."""
    rows = ObjectRows.of(counts, masks.shape[1], images.device)
    memory = model.memorise(model.look(images), rows.take(masks), rows.clips)
    query: Query = model.encode_query(images.flip(3))
    return rows.aggregate(model.segment(query, memory, rows.clips, (images.shape[2], images.shape[3])))
