"""Label maps on their way to a GPU as LZ4 blocks: what DALI is fed, as far as that can be said without one."""

from __future__ import annotations

import dataclasses

import lz4.block
import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="no DALI in this environment")

from nvidia.dali.backend import GetSchema

from pipelines.executors import dali as executor
from pipelines.executors.encoded import label_block
from pipelines.recipes.stm_cycle import BLACK
from pipelines.types import EncodedClip, LabelRules
from shards.errors import DataError
from shards.masks import encode_label_map
from shards.reader import EncodedFrame
from tests.pipelines.clips import clip, frame, noise_labels, picture, plain_plan


def test_blocks_unpack_to_the_label_maps() -> None:
    encoded = clip(1, num_frames=2)
    bare = EncodedFrame(encoded.frames[1].image, None)
    encoded = dataclasses.replace(encoded, frames=(encoded.frames[0], bare))
    graph = executor.graph_for([encoded], inflate=True)
    assert graph.inflated
    inputs = executor.label_inputs([(encoded, 0), (encoded, 1)], graph)
    assert inputs["label_shapes"].tolist() == [[120, 214, 1], [1, 1, 1]]
    first, second = (block.tobytes() for block in inputs["label_blocks"])
    unpacked = np.frombuffer(lz4.block.decompress(first, uncompressed_size=120 * 214), np.uint8)
    assert np.array_equal(unpacked.reshape(120, 214), noise_labels(100, 120, 214))
    assert lz4.block.decompress(second, uncompressed_size=1) == b"\0"


def test_png_masks_and_cpus_are_unpacked_before() -> None:
    labels = noise_labels(1, 60, 80)
    png = EncodedClip(plain_plan((60, 80)), (frame(picture(1, 60, 80), labels, codec="png"),), "png")
    assert not executor.graph_for([png], inflate=True).inflated
    with pytest.raises(ValueError, match="masks of codec png are no LZ4 blocks"):
        label_block(png, 0)
    assert not executor.DaliExecutor(device="cpu")._inflate


def test_void_is_cleared_where_blocks_are_unpacked() -> None:
    encoded = clip(1, num_frames=1)
    cleared = dataclasses.replace(encoded.plan, labels=LabelRules(void_is_background=True))
    encoded = dataclasses.replace(encoded, plan=cleared)
    assert executor.graph_for([encoded], inflate=True).clear_void
    assert not executor.graph_for([encoded], inflate=False).clear_void  # decode_labels does it then


def test_both_lines_of_dali_have_the_operator() -> None:
    assert executor.inflate_operator().__name__ == "inflate"


def test_a_label_map_of_another_size_is_named_before_it_is_unpacked() -> None:
    wrong = EncodedFrame(frame(picture(1, 60, 80), None).image, encode_label_map(noise_labels(1, 60, 81), "lz4"))
    with pytest.raises(DataError, match=r"frame row 7: expected a label map of \(60, 80\), found one of \(60, 81\)"):
        label_block(EncodedClip(plain_plan((60, 80)), (wrong,), "lz4"), 0)
    broken = dataclasses.replace(wrong, mask=b"XXXX" + (wrong.mask or b"")[4:])
    with pytest.raises(DataError, match="expected a mask in codec lz4, found not an lz4 mask"):
        label_block(EncodedClip(plain_plan((60, 80)), (broken,), "lz4"), 0)


def test_clips_of_different_recipes_do_not_share_a_graph() -> None:
    one, other = clip(1), clip(2)
    other = dataclasses.replace(other, plan=dataclasses.replace(other.plan, fill=BLACK))
    with pytest.raises(ValueError, match="clips of one batch must come from one recipe"):
        executor.graph_for([one, other], inflate=False)
    coloured = dataclasses.replace(one, plan=dataclasses.replace(one.plan, nearest_images=True))
    with pytest.raises(ValueError, match="samples images nearest on a grey fill only"):
        executor.graph_for([coloured], inflate=False)


def test_what_a_gpu_is_asked_for_is_waited_for_before_the_buffers_are_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    class Pipeline:
        def feed_input(self, *_: object) -> None:
            pass

        def run(self) -> tuple[str, str]:
            events.append("run")
            return "images", "labels"

    class Stream:
        def synchronize(self) -> None:
            events.append("wait")

    def copy(_: object, outputs: str) -> torch.Tensor:
        events.append(f"copy {outputs}")
        return torch.zeros(size[0] * size[1] * (3 if outputs == "images" else 1), dtype=torch.uint8)

    encoded = clip(1, num_frames=1)
    size = encoded.plan.size
    made = executor.DaliExecutor(device="cuda")
    monkeypatch.setattr(executor.DaliExecutor, "_pipeline_for", lambda *_: Pipeline())
    monkeypatch.setattr(executor.DaliExecutor, "_tensor", copy)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    monkeypatch.setattr(executor, "annotated_frames", lambda _: torch.ones(1, 1, dtype=torch.bool, device="meta"))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    made([encoded])
    made([encoded])
    assert events == ["run", "copy images", "copy labels", "wait"] * 2


def test_a_gpu_can_be_told_who_decodes() -> None:
    decoder = GetSchema("decoders__Image")
    known = {option for options in executor.JPEG_WAYS.values() for option in options}
    assert known == {"hw_decoder_load", "hybrid_huffman_threshold"}
    assert all(decoder.HasArgument(option) for option in known)
