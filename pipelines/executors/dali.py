"""Clips through one NVIDIA DALI graph, on a GPU or, with the same graph, on the CPU. Runs on DALI 1.34 and on 2.x.

B clips of T frames are one flat batch of B * T images. Every number comes from the plans: there is no random operator,
no DALI reader and no state in the graph, which makes its output equal across DALI versions and thread counts.
The arithmetic is the `cpu` executor's: warp, round to 8 bit, colour matrix, round.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Literal, NamedTuple

import lz4.block
import numpy as np
import torch
from numpy.typing import NDArray
from nvidia import dali
from nvidia.dali import fn, types
from nvidia.dali.backend import GetSchema

from pipelines.executors.encoded import (
    LZ4_CODECS,
    checked_jpeg,
    decode_jpeg,
    decode_labels,
    fill_colour,
    jpeg_size,
    label_block,
)
from pipelines.executors.frames import agreed, all_soft, annotated_frames, clips_shape
from pipelines.executors.geometry import NEIGHBOURS, label_matrices, shifted, snap
from pipelines.types import VOID, ClipPixels, EncodedClip

Fed = NDArray[np.float32] | NDArray[np.int32] | list[NDArray[np.uint8]]
"""One input of a pipeline, an entry per image."""

FRAME = 1
"""Pixels of fill around an image."""


JpegWay = Literal["mixed", "hardware", "cuda", "host"]
JPEG_WAYS: dict[JpegWay, dict[str, float | int]] = {
    "mixed": {},
    "hardware": {"hw_decoder_load": 1.0},
    "cuda": {"hw_decoder_load": 0.0, "hybrid_huffman_threshold": 1},
    "host": {"hw_decoder_load": 0.0, "hybrid_huffman_threshold": 2**31 - 1},
}
"""Who decodes JPEGs for a GPU: DALI's own division of labour, the chip's JPEG engine where it has one, its CUDA cores
alone, or CUDA cores after Huffman decoding by the CPU. DALI leaves the Huffman decoding of images below a million
pixels to the CPU, unless the engine takes them, and that is most of what decoding costs."""


class Graph(NamedTuple):
    """What a pipeline is built for.

    size: output (height, width). fill: rgb outside the source. soft: soft masks, sampled linearly. nearest_images:
    images are sampled as labels are. unanimous: label maps are sampled at four `geometry.NEIGHBOURS` instead of once.
    inflated: label maps come as LZ4 blocks and are unpacked on the GPU. clear_void: void becomes background there.
    jpeg: who decodes, on a GPU.
    """

    size: tuple[int, int]
    fill: tuple[int, int, int] = (0, 0, 0)
    soft: bool = False
    nearest_images: bool = False
    unanimous: bool = False
    inflated: bool = False
    clear_void: bool = False
    jpeg: JpegWay = "mixed"


NOTHING = Graph((0, 0))
"""Before anything is built."""

NO_LABELS = np.zeros((1, 1, 1), np.uint8)
"""Stands in for the label map of a frame without annotation: whatever the warp, it shows 0 only."""
NO_LABELS_BLOCK = lz4.block.compress(NO_LABELS.tobytes(), store_size=False)


class DaliExecutor:
    """Executor over a DALI pipeline, whose results are tensors on `device`.

    The pipeline is built for the largest batch seen and one Graph, and built again when either changes. Call it from
    one thread at a time.
    """

    def __init__(
        self, *, threads: int = 1, device: torch.device | str = "cpu", inflate: bool = True, jpeg: JpegWay = "mixed"
    ) -> None:
        self._threads, self._jpeg = threads, jpeg
        self._device = torch.device(device)
        # DALI unpacks LZ4 on GPUs only.
        self._inflate = inflate and self._device.type == "cuda"
        self._pipeline: dali.Pipeline | None = None
        self._max_batch, self._graph = 0, NOTHING

    def __call__(self, clips: list[EncodedClip]) -> ClipPixels:
        """See Executor. RuntimeError for a failure of DALI's that is no image's fault."""
        num_clips, num_frames, size = clips_shape(clips)
        graph = graph_for(clips, inflate=self._inflate)._replace(jpeg=self._jpeg)
        inputs = _inputs(clips, graph)
        pipeline = self._pipeline_for(num_clips * num_frames, graph)
        try:
            for name, values in inputs.items():
                pipeline.feed_input(name, values)
            images, *labels = pipeline.run()
        except RuntimeError:
            # DALI 1.34 cannot use a pipeline again after an error, and does not say which image it was.
            self.close()
            _raise_for_bad_image(clips)
            raise
        image_tensor, *label_tensors = (self._tensor(each) for each in (images, *labels))
        if self._device.type == "cuda":
            # The copies are only queued, on torch's stream, and DALI's next run writes to the same buffers on its own.
            torch.cuda.current_stream(self._device).synchronize()
        return ClipPixels(
            image_tensor.view(num_clips, num_frames, *size, 3),
            _agree(label_tensors).view(num_clips, num_frames, *size),
            annotated_frames(clips).to(self._device, non_blocking=True),
            graph.soft,
        )

    def close(self) -> None:
        """Release the pipeline and its memory; the next call builds a new one."""
        self._pipeline = None
        self._max_batch, self._graph = 0, NOTHING

    def _pipeline_for(self, num_images: int, graph: Graph) -> dali.Pipeline:
        if self._pipeline is None or num_images > self._max_batch or graph != self._graph:
            self._pipeline = None
            self._max_batch, self._graph = max(num_images, self._max_batch), graph
            self._pipeline = build_pipeline(self._max_batch, graph, threads=self._threads, device=self._device)
        return self._pipeline

    def _tensor(self, outputs: dali.backend.TensorListCPU | dali.backend.TensorListGPU) -> torch.Tensor:
        """A copy of DALI's output, which lives in a buffer that the next run writes to. On a GPU it is only queued."""
        if self._device.type == "cpu":
            return torch.from_numpy(np.array(outputs.as_array()))
        from nvidia.dali.plugin.pytorch import feed_ndarray  # noqa: PLC0415 - needs CUDA builds of both

        source = outputs.as_tensor()
        copy = torch.empty(source.shape(), dtype=torch.uint8, device=self._device)
        feed_ndarray(source, copy, cuda_stream=torch.cuda.current_stream(self._device))
        return copy


def build_pipeline(max_batch: int, graph: Graph, *, threads: int, device: torch.device | str = "cpu") -> dali.Pipeline:
    """The pipeline for up to `max_batch` images; inputs as `_inputs` names them."""
    options = {"exec_async": False, "exec_pipelined": False, "prefetch_queue_depth": 1}
    if "exec_dynamic" in inspect.signature(dali.Pipeline.__init__).parameters:
        options["exec_dynamic"] = False  # 2.x would free and fault its buffers at every batch
    pipeline = dali.Pipeline(max_batch, threads, _device_id(torch.device(device)), **options)
    with pipeline:
        on_gpu = torch.device(device).type == "cuda"
        pipeline.set_outputs(_images(graph, on_gpu=on_gpu), *_labels(graph, on_gpu=on_gpu))
    pipeline.build()
    return pipeline


def graph_for(clips: list[EncodedClip], *, inflate: bool) -> Graph:
    """The graph of a batch. inflate: let DALI unpack its label maps if they are LZ4 blocks.

    Raises ValueError for clips of different recipes, or whose images are to be sampled nearest on a coloured fill.
    """
    inflated = inflate and all(clip.mask_codec in LZ4_CODECS for clip in clips)
    graph = Graph(
        size=clips_shape(clips)[2],
        fill=agreed(clips, lambda clip: fill_colour(clip.plan)),
        soft=all_soft(clips),
        nearest_images=agreed(clips, lambda clip: clip.plan.nearest_images),
        unanimous=agreed(clips, lambda clip: clip.plan.labels.unanimous),
        inflated=inflated,
        clear_void=inflated and agreed(clips, lambda clip: clip.plan.labels.void_is_background),
    )
    if graph.nearest_images and len(set(graph.fill)) > 1:
        raise ValueError(f"the dali executor samples images nearest on a grey fill only, got {graph.fill}")
    return graph


def _images(graph: Graph, *, on_gpu: bool) -> dali.data_node.DataNode:
    """Images (N, H, W, 3) uint8, as a node of the pipeline being defined."""
    images, matrix = _decode(graph.jpeg, on_gpu=on_gpu), _external("matrix", 2)
    if graph.nearest_images:
        warped = fn.warp_affine(
            images, matrix=matrix, size=graph.size, interp_type=types.INTERP_NN, fill_value=float(graph.fill[0])
        )
    else:
        # fill_value is one number for all channels. A frame of one pixel of the fill around the image, which the warp
        # then repeats without end, is the same plane; and a warp without fill_value takes half the time on the CPU.
        framed = fn.slice(
            images,
            start=[-FRAME, -FRAME],
            shape=fn.external_source(name="framed", batch=True, dtype=types.INT32, ndim=1),
            axes=[0, 1],
            out_of_bounds_policy="pad",
            fill_values=[float(level) for level in graph.fill],
        )
        warped = fn.warp_affine(framed, matrix=matrix, size=graph.size, interp_type=types.INTERP_LINEAR)
    return fn.coord_transform(warped, M=_external("colour", 2), T=_external("offset", 1), dtype=types.UINT8)


def _labels(graph: Graph, *, on_gpu: bool) -> list[dali.data_node.DataNode]:
    """Label maps or soft masks (N, H, W, 1) uint8, one for each place they are sampled at."""
    labels = _label_maps(graph, on_gpu=on_gpu)
    if graph.soft:
        levels = fn.warp_affine(
            labels,
            matrix=_external("label_matrix_0", 2),
            size=graph.size,
            interp_type=types.INTERP_LINEAR,
            fill_value=0.0,
            dtype=types.FLOAT,
        )
        return [fn.cast(levels, dtype=types.UINT8)]
    return [
        fn.warp_affine(
            labels,
            matrix=_external(f"label_matrix_{number}", 2),
            size=graph.size,
            interp_type=types.INTERP_NN,
            fill_value=0.0,
        )
        for number in range(len(NEIGHBOURS) if graph.unanimous else 1)
    ]


def _label_maps(graph: Graph, *, on_gpu: bool) -> dali.data_node.DataNode:
    """Label maps as they were stored, (h, w, 1) uint8 each."""
    if graph.inflated:
        blocks = fn.external_source(name="label_blocks", batch=True, dtype=types.UINT8, ndim=1)
        shapes = fn.external_source(name="label_shapes", batch=True, dtype=types.INT32, ndim=1)
        labels = inflate_operator()(blocks.gpu(), shape=shapes, dtype=types.UINT8, layout="HWC")
        return labels * fn.cast(labels != VOID, dtype=types.UINT8) if graph.clear_void else labels
    labels = fn.external_source(name="labels", batch=True, dtype=types.UINT8, ndim=3, layout="HWC")
    return labels.gpu() if on_gpu else labels


def inflate_operator() -> Callable[..., dali.data_node.DataNode]:
    """DALI's decoder of LZ4 blocks, which left the experimental ones with 2.x."""
    return fn.decoders.inflate if "inflate" in dir(fn.decoders) else fn.experimental.inflate


def _agree(labels: list[torch.Tensor]) -> torch.Tensor:
    """The label that all maps share at a pixel, void where they do not."""
    first, *others = labels
    for other in others:
        first = torch.where(first == other, first, VOID)
    return first


def _decode(jpeg: JpegWay, *, on_gpu: bool) -> dali.data_node.DataNode:
    jpegs = fn.external_source(name="jpegs", batch=True, dtype=types.UINT8, ndim=1)
    # Label maps are not turned by EXIF, so images must not be. The decoder of 1.34 never does and knows no such option.
    options: dict[str, float | int] = {"adjust_orientation": False} if _decoder_knows("adjust_orientation") else {}
    options |= JPEG_WAYS[jpeg] if on_gpu else {}
    # Fancy upsampling is libjpeg's default and not the GPU's.
    return fn.decoders.image(
        jpegs, device="mixed" if on_gpu else "cpu", output_type=types.RGB, jpeg_fancy_upsampling=True, **options
    )


def _external(name: str, ndim: int) -> dali.data_node.DataNode:
    return fn.external_source(name=name, batch=True, dtype=types.FLOAT, ndim=ndim)


def _decoder_knows(argument: str) -> bool:
    return bool(GetSchema("decoders__Image").HasArgument(argument))


def _device_id(device: torch.device) -> int | None:
    if device.type == "cpu":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _inputs(clips: list[EncodedClip], graph: Graph) -> dict[str, Fed]:
    """Everything the graph is fed, one entry per image in each."""
    places = [(clip, index) for clip in clips for index in range(len(clip.frames))]
    colours = np.concatenate([clip.plan.colours for clip in clips])
    matrices = snap(np.concatenate([clip.plan.matrices for clip in clips]), graph.size).matrices
    labels_of = snap(np.concatenate([label_matrices(clip.plan) for clip in clips]), graph.size).matrices
    shifts = NEIGHBOURS if graph.unanimous else ((0.0, 0.0),)
    inputs: dict[str, Fed] = {
        "jpegs": [np.frombuffer(checked_jpeg(clip, index), np.uint8) for clip, index in places],
        "matrix": matrices if graph.nearest_images else shifted(matrices, (FRAME, FRAME)),
        "colour": np.ascontiguousarray(colours[:, :, :3]),
        "offset": np.ascontiguousarray(colours[:, :, 3]),
    }
    if not graph.nearest_images:
        inputs["framed"] = np.array([jpeg_size(*place) for place in places], np.int32) + 2 * FRAME
    inputs |= {f"label_matrix_{number}": shifted(labels_of, shift) for number, shift in enumerate(shifts)}
    return inputs | label_inputs(places, graph)


def label_inputs(places: list[tuple[EncodedClip, int]], graph: Graph) -> dict[str, Fed]:
    """The label maps of the frames `places`: unpacked, or as blocks with their shapes where DALI unpacks them."""
    if not graph.inflated:
        label_maps = (decode_labels(clip, index) for clip, index in places)
        return {"labels": [NO_LABELS if labels is None else labels[..., None] for labels in label_maps]}
    blocks = [label_block(*place) or (NO_LABELS_BLOCK, NO_LABELS.shape[:2]) for place in places]
    return {
        "label_blocks": [np.frombuffer(block, np.uint8) for block, _ in blocks],
        "label_shapes": np.array([[*size, 1] for _, size in blocks], np.int32),
    }


def _raise_for_bad_image(clips: list[EncodedClip]) -> None:
    """Decode every image on the CPU and raise the DataError of the first that fails; return if none does."""
    for clip in clips:
        for index in range(len(clip.frames)):
            decode_jpeg(clip, index)
