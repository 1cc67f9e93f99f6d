"""RDE against numbers measured on the authors' code: deterministic weights and input, eval mode, float32 on the CPU.

Each row: shape, then mean, sample standard deviation, first, middle (flat index n // 2) and last element.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.masks import aggregate, aggregate_probabilities
from models.memory import BankMode, MemoryBank
from models.rde import KeyFeatures, Rde
from tests.models.deterministic_fill import filled, uniform

Row = tuple[tuple[int, ...], float, float, float, float, float]

# The rows have seven digits; this code is within 5e-7 of them on the CPU it was written on.
TOLERANCE = 1e-5

TRAINING_ROWS: dict[str, Row] = {
    "k16": ((1, 64, 3, 6, 6), 2.534528e-02, 1.214838e-01, 1.552011e-01, -4.225300e-02, 7.991520e-02),
    "thin": ((1, 3, 512, 6, 6), 4.180077e-03, 1.284506e-01, 7.702043e-02, 3.495247e-03, 7.418063e-02),
    "f16": ((1, 3, 1024, 6, 6), 1.002885e-01, 9.520232e-02, 1.514062e-01, 2.395738e-02, 3.083986e-01),
    "f8": ((1, 3, 512, 12, 12), 1.032113e-01, 1.187444e-01, 9.582777e-03, 4.532288e-01, 8.032282e-02),
    "f4": ((1, 3, 256, 24, 24), 1.677029e-01, 2.221733e-01, 8.077133e-02, 1.415247e-01, 0.000000e00),
    "v1 (mask A, other B)": ((1, 512, 1, 6, 6), 2.377794e-03, 2.155794e-01, -2.164795e-01, -2.187139e-01, 1.305415e-01),
    "segment logits f1": ((1, 3, 96, 96), -3.907067e-01, 4.232342e-01, -1.093547e00, -2.875710e-01, -2.507439e-01),
    "segment prob f1": ((1, 2, 96, 96), 4.105166e-01, 1.900713e-02, 4.279382e-01, 4.281156e-01, 3.855133e-01),
    "decoder input o1 f1": ((1, 1024, 6, 6), 3.320825e-03, 1.600471e-01, -2.913529e-01, 5.254926e-02, 6.688406e-02),
    "compress key": ((1, 64, 1, 6, 6), -3.422349e-03, 1.170573e-01, -9.509078e-02, 2.961664e-02, -6.864189e-02),
    "compress value": ((1, 2, 512, 1, 6, 6), -9.423483e-03, 3.119531e-01, -8.425865e-03, -7.748893e-03, 1.373134e-02),
    "segment logits f2 thin": ((1, 3, 96, 96), -3.705389e-01, 5.138249e-01, -1.219617e00, -1.508160e-01, -2.641967e-01),
    "segment logits f2 full": ((1, 3, 96, 96), -3.910296e-01, 4.186073e-01, -1.138895e00, -2.260035e-01, -2.773013e-01),
    "eval aggregate(first mask) with bg": (
        (3, 1, 96, 96),
        3.333333e-01,
        4.714130e-01,
        1.000000e00,
        1.192096e-14,
        1.192096e-14,
    ),
}

BANK_ROWS: dict[tuple[str, str], Row] = {
    ("two-frames-compress", "sigmoid f1"): (
        (2, 1, 96, 96),
        4.731997e-01,
        2.723798e-02,
        4.969687e-01,
        4.974291e-01,
        4.382788e-01,
    ),
    ("two-frames-compress", "readout f2"): (
        (2, 512, 6, 6),
        2.394234e-03,
        2.038185e-01,
        -2.293807e-01,
        -2.291964e-01,
        1.159957e-01,
    ),
    ("two-frames-compress", "sigmoid f2"): (
        (2, 1, 96, 96),
        4.738295e-01,
        2.402900e-02,
        5.012901e-01,
        5.014916e-01,
        4.300441e-01,
    ),
    ("gt-compress", "sigmoid f1"): (
        (2, 1, 96, 96),
        4.731997e-01,
        2.723798e-02,
        4.969687e-01,
        4.974291e-01,
        4.382788e-01,
    ),
    ("gt-compress", "readout f2"): (
        (2, 512, 6, 6),
        2.479728e-03,
        2.059803e-01,
        -2.668914e-01,
        -2.595262e-01,
        1.355856e-01,
    ),
    ("gt-compress", "sigmoid f2"): (
        (2, 1, 96, 96),
        4.729092e-01,
        2.758130e-02,
        5.026790e-01,
        5.030687e-01,
        4.296876e-01,
    ),
    ("last-compress", "sigmoid f1"): (
        (2, 1, 96, 96),
        4.727052e-01,
        2.989443e-02,
        4.951862e-01,
        4.955533e-01,
        4.369130e-01,
    ),
    ("last-compress", "readout f2"): (
        (2, 512, 6, 6),
        2.568657e-03,
        2.036135e-01,
        -2.525972e-01,
        -2.526629e-01,
        1.253411e-01,
    ),
    ("last-compress", "sigmoid f2"): (
        (2, 1, 96, 96),
        4.715335e-01,
        2.749272e-02,
        5.030867e-01,
        5.030847e-01,
        4.292802e-01,
    ),
    ("compress", "sigmoid f1"): ((2, 1, 96, 96), 4.727052e-01, 2.989443e-02, 4.951862e-01, 4.955533e-01, 4.369130e-01),
    ("compress", "readout f2"): ((2, 512, 6, 6), -1.153173e-02, 2.052132e-01, 2.647159e-01, 2.580069e-01, 5.171781e-02),
    ("compress", "sigmoid f2"): ((2, 1, 96, 96), 4.978378e-01, 2.486104e-02, 5.220104e-01, 5.219627e-01, 4.334297e-01),
}


@pytest.fixture(scope="module")
def clip() -> Tensor:
    """Three frames (1, 3, 3, 96, 96), taken as already normalised."""
    return filled((1, 3, 3, 96, 96), 1000)


@pytest.fixture(scope="module")
def masks() -> Tensor:
    """Two discs (1, 2, 96, 96), 0 and 1, as the first frame's masks."""
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    discs = [(y - 40) ** 2 + (x - 36) ** 2 < 400, (y - 60) ** 2 + (x - 66) ** 2 < 225]
    return torch.stack(discs).float()[None]


@pytest.fixture(scope="module")
def features(paper_model: Rde, clip: Tensor) -> KeyFeatures:
    with torch.no_grad():
        return paper_model.encode_key(clip)


@pytest.fixture(scope="module")
def training_tensors(paper_model: Rde, clip: Tensor, masks: Tensor, features: KeyFeatures) -> dict[str, Tensor]:
    """Frame 0 memorised with clean masks, frame 1 segmented and memorised, frame 2 read from the SAM and from both."""
    valid = torch.ones(1, 2)
    key, thin = features.key, features.thin
    with torch.no_grad():
        value_0 = paper_model.encode_value(clip[:, 0], features.f16[:, 0], masks)
        input_1 = paper_model.read(key[:, :, :1], value_0, key[:, :, 1], thin[:, 1])
        segmented_1 = aggregate(paper_model.decode(input_1, features.f8[:, 1], features.f4[:, 1]), valid)
        value_1 = paper_model.encode_value(clip[:, 1], features.f16[:, 1], segmented_1.probabilities)
        both_values = torch.cat([value_0, value_1], 3)
        new_key, new_value = paper_model.compress(key[:, :, :2], both_values)
        input_thin = paper_model.read(new_key, new_value, key[:, :, 2], thin[:, 2])
        input_full = paper_model.read(key[:, :, :2], both_values, key[:, :, 2], thin[:, 2])
        f8, f4 = features.f8[:, 2], features.f4[:, 2]
        return {
            "k16": key,
            "thin": thin,
            "f16": features.f16,
            "f8": features.f8,
            "f4": features.f4,
            "v1 (mask A, other B)": value_0[:, 0],
            "segment logits f1": segmented_1.logits,
            "segment prob f1": segmented_1.probabilities,
            "decoder input o1 f1": input_1[:, 0],
            "compress key": new_key,
            "compress value": new_value,
            "segment logits f2 thin": aggregate(paper_model.decode(input_thin, f8, f4), valid).logits,
            "segment logits f2 full": aggregate(paper_model.decode(input_full, f8, f4), valid).logits,
            "eval aggregate(first mask) with bg": aggregate_probabilities(masks).softmax(1).transpose(0, 1),
            "decoder input f2 thin": input_thin,
            "decoder input f2 full": input_full,
        }


def test_the_fill_itself_gives_the_published_numbers() -> None:
    assert uniform(4, 0).tolist() == pytest.approx([-0.1237474, -0.9519904, -0.9616337, -0.5327335], abs=5e-8)
    assert uniform(1, 7, start=10**6).tolist() == pytest.approx([0.2745297], abs=5e-8)


@pytest.mark.parametrize("name", TRAINING_ROWS)
def test_a_tensor_of_the_training_path_has_the_authors_values(name: str, training_tensors: dict[str, Tensor]) -> None:
    _assert_row(training_tensors[name], TRAINING_ROWS[name])


def test_the_distillation_term_between_thin_and_full_has_the_authors_value(
    training_tensors: dict[str, Tensor],
) -> None:
    student, teacher = training_tensors["decoder input f2 thin"], training_tensors["decoder input f2 full"]
    divergence = F.kl_div(student.log_softmax(2), teacher.log_softmax(2), reduction="none", log_target=True)
    assert divergence.mean((0, 2, 3, 4)).tolist() == pytest.approx([2.271e-05, 2.213e-05], abs=5e-9)


@pytest.mark.parametrize("mode", sorted({mode for mode, _ in BANK_ROWS}))
def test_a_memory_bank_reads_what_the_authors_bank_reads(
    mode: BankMode, paper_model: Rde, clip: Tensor, masks: Tensor, features: KeyFeatures
) -> None:
    bank = MemoryBank(paper_model, mode, top_k=20)
    probabilities = aggregate_probabilities(masks).softmax(1)[:, 1:]
    with torch.no_grad():
        for time in (1, 2):
            before = features.frame(time - 1)
            bank.update(before.key[:, :, None], paper_model.encode_value(clip[:, time - 1], before.f16, probabilities))
            now = features.frame(time)
            decoder_input = bank.read(now.key, now.thin)
            object_logits = paper_model.decode(decoder_input, now.f8, now.f4)
            probabilities = aggregate(object_logits).probabilities
            _assert_row(object_logits.sigmoid().transpose(0, 1), BANK_ROWS[mode, f"sigmoid f{time}"])
    _assert_row(decoder_input[0, :, :512], BANK_ROWS[mode, "readout f2"])


def _assert_row(tensor: Tensor, row: Row) -> None:
    shape, *expected = row
    flat = tensor.flatten()
    found = [flat.mean(), flat.std(), flat[0], flat[flat.numel() // 2], flat[-1]]
    assert tuple(tensor.shape) == shape
    assert [value.item() for value in found] == pytest.approx(expected, rel=0, abs=TOLERANCE)
