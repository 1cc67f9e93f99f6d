"""Checkpoint files: read strictly, refused with every reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from models import released
from models.rde import Rde
from models.released_rde import grow_value_stem, load, start_from
from models.weight_files import list_differences, load_strictly

STEM = "value_encoder.conv1.weight"


def _saved(content: object, folder: Path) -> Path:
    path = folder / "model.pth"
    torch.save(content, path)
    return path


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"step": 5, "model": state, "config": {"a": 1}}])
def test_a_flat_file_and_our_own_checkpoint_give_the_same_model_at_its_width(
    wrap: object, small_model: Rde, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(wrap)
    loaded = load(_saved(wrap(small_model.state_dict()), tmp_path))
    assert list_differences(small_model.state_dict(), loaded.state_dict()) == []
    for name, tensor in small_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not loaded.training
    assert caplog.messages == []


def test_the_authors_size_is_recognised(paper_model: Rde, tmp_path: Path) -> None:
    loaded = load(_saved(paper_model.state_dict(), tmp_path))
    assert torch.equal(loaded.decoder.pred.weight, paper_model.decoder.pred.weight)
    assert loaded.key_comp.weight.shape == (512, 1024, 3, 3)


def test_every_missing_unexpected_and_misshapen_key_is_in_one_error(small_model: Rde, tmp_path: Path) -> None:
    state = dict(small_model.state_dict())
    del state["decoder.pred.weight"], state["key_encoder.res2.0.bn1.running_var"]
    state["decoder.pred.wieght"] = torch.zeros(1, 64, 3, 3)
    state["key_comp.bias"] = torch.zeros(5)
    path = _saved(state, tmp_path)
    with pytest.raises(ValueError, match="found 4 differences") as caught:
        load(path)
    assert str(caught.value).splitlines() == [
        f"{path}: expected the 435 entries of Rde, found 4 differences; give weights of the same model:",
        "  missing decoder.pred.weight [1, 64, 3, 3]",
        "  missing key_encoder.res2.0.bn1.running_var [16]",
        "  unexpected decoder.pred.wieght [1, 64, 3, 3]",
        "  key_comp.bias is [5], expected [128]",
    ]


def test_names_of_a_ddp_wrapper_are_recognised_in_the_error(small_model: Rde, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in small_model.state_dict().items()}
    with pytest.raises(ValueError, match=r"found 870 differences; names begin with 'module\.'"):
        load(_saved(state, tmp_path))


def test_weights_of_another_network_are_told_by_a_few_names(small_model: Rde, tmp_path: Path) -> None:
    state = {"decoder.key_comp.bias": torch.zeros(1), "aspp.weight": torch.zeros(2)}
    path = tmp_path / "other.pt"
    with pytest.raises(ValueError, match=r"found 437 differences") as caught:
        load_strictly(small_model, state, path)
    assert str(caught.value) == (
        f"{path}: expected the 435 entries of Rde, found 437 differences; give weights of the same model: "
        "the names are others, the file has aspp.weight, decoder.key_comp.bias"
    )


def test_stage_0_weights_cannot_segment_and_say_what_to_do(tmp_path: Path) -> None:
    stage0 = Rde(width=0.25, stage0=True)
    with pytest.raises(
        ValueError, match=r"found stage 0 \(4-channel .*; train a later stage from it \(tools/train.py with start_"
    ):
        load(_saved(stage0.state_dict(), tmp_path))


def test_a_later_stage_starts_from_stage_0_with_its_own_sam_and_a_grown_stem(small_model: Rde, tmp_path: Path) -> None:
    stage0 = Rde(width=0.25, stage0=True, generator=torch.Generator().manual_seed(9))
    sam_before = {n: t.clone() for n, t in small_model.state_dict().items() if n.startswith("mem_compress.")}
    start_from(small_model, _saved(stage0.state_dict(), tmp_path), _generator())
    own = small_model.state_dict()
    assert len(sam_before) == 30
    for name, tensor in {**stage0.state_dict(), **sam_before}.items():
        assert torch.equal(own[name][:, :4] if name == STEM else own[name], tensor), name


def test_stage_0_continues_from_stage_0_and_later_stages_from_later_ones(small_model: Rde, tmp_path: Path) -> None:
    for stage0 in (True, False):
        source = Rde(width=0.25, stage0=stage0, generator=torch.Generator().manual_seed(9))
        target = Rde(width=0.25, stage0=stage0)
        start_from(target, _saved(source.state_dict(), tmp_path), _generator())
        assert all(torch.equal(t, source.state_dict()[n]) for n, t in target.state_dict().items())


def test_a_later_stage_without_its_sam_is_refused(small_model: Rde, tmp_path: Path) -> None:
    state = {n: t for n, t in small_model.state_dict().items() if not n.startswith("mem_compress.")}
    with pytest.raises(ValueError, match="found 30 differences"):
        start_from(small_model, _saved(state, tmp_path), _generator())


def test_the_grown_stem_keeps_four_channels_and_adds_an_orthogonal_one() -> None:
    state = {STEM: torch.randn(64, 4, 7, 7, generator=_generator()), "other": torch.ones(2)}
    grown = grow_value_stem(state, _generator())
    assert grown[STEM].shape == (64, 5, 7, 7)
    assert torch.equal(grown[STEM][:, :4], state[STEM])
    assert torch.equal(grown[STEM], grow_value_stem(state, _generator())[STEM])
    added = grown[STEM][:, 4].flatten(1)  # (64, 49): the columns are orthonormal
    torch.testing.assert_close(added.T @ added, torch.eye(49), atol=1e-5, rtol=0)
    assert state[STEM].shape == (64, 4, 7, 7)
    with pytest.raises(ValueError, match="has 5 input channels, expected the 4 of stage 0"):
        grow_value_stem(grown, _generator())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated zip"])
def test_a_file_that_is_no_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.pth: expected a checkpoint of tensors written by torch\.save"):
        load(path)


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    path = _saved({"model": _Malicious(tmp_path / "executed")}, tmp_path)
    with pytest.raises(ValueError, match="expected a checkpoint of tensors"):
        load(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"optimizer": {}, "step": 3}, "a dict with optimizer, step"),
        ([torch.ones(1)], "a list"),
        ({"model": 3}, "model"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(content: object, found: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"expected a state dict .* found {found}|found a dict with {found}"):
        load(_saved(content, tmp_path))


def test_an_unknown_model_and_a_missing_file_are_told_apart(small_model: Rde, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown model 'rdee'; choose one of .*rde"):
        released.load("rdee", _saved(small_model.state_dict(), tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere.pth")


def test_files_of_anything_else_are_refused_in_one_message(small_model: Rde, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    legacy = tmp_path / "legacy.pth"
    torch.save(small_model.state_dict(), legacy, _use_new_zipfile_serialization=False)
    contents = [b"", b"0", b"0" * 50, b"(e.", b"\x80\x02aaaa", b"\x80\x02.", bytes(4096), legacy.read_bytes()[:100]]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.pth: expected a checkpoint of tensors written by torch\.save"):
            load(path)
    with pytest.raises(ValueError, match=r"expected a state dict .names to tensors."):
        load(_saved({1: torch.zeros(3)}, tmp_path))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, small_model: Rde, tmp_path: Path) -> None:
    state = dict(small_model.state_dict())
    state["key_comp.bias"] = state["key_comp.bias"].clone()
    state["key_comp.bias"][3:5] = value
    path = _saved(state, tmp_path)
    message = r"model\.pth: expected finite weights, found NaN or infinity in key_comp\.bias \(2 of 128 values\)"
    with pytest.raises(ValueError, match=message):
        load(path)
    with pytest.raises(ValueError, match=message):
        start_from(small_model, path, _generator())


def test_a_width_that_no_model_has_is_refused_with_the_file(small_model: Rde, tmp_path: Path) -> None:
    state = dict(small_model.state_dict()) | {"key_proj.key_proj.bias": torch.zeros(5)}
    with pytest.raises(ValueError, match=r"model\.pth: no weights of a model 'rde' \(width is 0\.078125, expected"):
        load(_saved(state, tmp_path))


def test_a_flipped_bit_in_the_weights_is_found(small_model: Rde, tmp_path: Path) -> None:
    path = _saved(small_model.state_dict(), tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.pth: expected an undamaged file, found a wrong checksum in .*data/"):
        load(path)


def test_a_path_that_holds_no_file_is_named_with_what_is_wanted(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nope\.pt: expected a file of weights, found nothing; give the path"):
        load(tmp_path / "nope.pt")
    with pytest.raises(IsADirectoryError, match="expected a file of weights, found a folder"):
        load(tmp_path)
