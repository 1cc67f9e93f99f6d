"""Clips through one NVIDIA DALI graph, on a GPU or, with the same graph, on the CPU. Runs on DALI 1.34 and on 2.x.

B clips of T frames are one flat batch of B * T images. Every number comes from the plans: there is no random operator,
no DALI reader and no state in the graph, which makes its output equal across DALI versions and thread counts.
The arithmetic is the `cpu` executor's: warp, round to 8 bit, colour matrix, round.
"""

from __future__ import annotations

import inspect
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia import dali
from nvidia.dali import fn, types
from nvidia.dali.backend import GetSchema

from pipelines.executors.encoded import checked_jpeg, decode_jpeg, decode_labels, fill_colour
from pipelines.executors.frames import agreed, all_soft, annotated_frames, clips_shape
from pipelines.executors.geometry import NEIGHBOURS, label_matrices, shifted, snap
from pipelines.types import VOID, ClipPixels, EncodedClip

Fed = NDArray[np.float32] | list[NDArray[np.uint8]]
"""One input of a pipeline, an entry per image."""


class Graph(NamedTuple):
    """What a pipeline is built for: output (height, width), soft masks sampled linearly, images sampled as labels are,
    label maps sampled at the four neighbours (`geometry.NEIGHBOURS`) instead of once."""

    size: tuple[int, int]
    soft: bool = False
    nearest_images: bool = False
    unanimous: bool = False


NOTHING = Graph((0, 0))
"""Before anything is built."""

NO_LABELS = np.zeros((1, 1, 1), np.uint8)
"""Stands in for the label map of a frame without annotation: whatever the warp, it shows 0 only."""


class DaliExecutor:
    """Executor over a DALI pipeline, whose results are tensors on `device`.

    The pipeline is built for the largest batch seen and one Graph, and built again when either changes. Call it from
    one thread at a time.
    """

    def __init__(self, *, threads: int = 1, device: torch.device | str = "cpu") -> None:
        self._threads = threads
        self._device = torch.device(device)
        self._pipeline: dali.Pipeline | None = None
        self._max_batch, self._graph = 0, NOTHING

    def __call__(self, clips: list[EncodedClip]) -> ClipPixels:
        """See Executor. RuntimeError for a failure of DALI's that is no image's fault."""
        num_clips, num_frames, size = clips_shape(clips)
        graph = Graph(size, all_soft(clips), *(agreed(clips, rule) for rule in (_samples_nearest, _asks_neighbours)))
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
        return ClipPixels(
            self._tensor(images).view(num_clips, num_frames, *size, 3),
            _agree([self._tensor(each) for each in labels]).view(num_clips, num_frames, *size),
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
        """A copy of DALI's output, which lives in a buffer that the next run writes to."""
        if self._device.type == "cpu":
            return torch.from_numpy(np.array(outputs.as_array()))
        from nvidia.dali.plugin.pytorch import feed_ndarray  # noqa: PLC0415 - needs CUDA builds of both

        source = outputs.as_tensor()
        copy = torch.empty(source.shape(), dtype=torch.uint8, device=self._device)
        # Waits for the copy, in the loader's thread: the buffer is free then, and the tensor complete on any stream.
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


def _images(graph: Graph, *, on_gpu: bool) -> dali.data_node.DataNode:
    """Images (N, H, W, 3) uint8, as a node of the pipeline being defined."""
    fill = _external("fill", 3)
    if on_gpu:
        fill = fill.gpu()
    # fill_value is one number for all channels: warp the difference to the fill and add it back. Float output without
    # a rounding warp is also twice as fast on the CPU.
    warped = fn.warp_affine(
        _decode(on_gpu=on_gpu) - fill,
        matrix=_external("matrix", 2),
        size=graph.size,
        interp_type=types.INTERP_NN if graph.nearest_images else types.INTERP_LINEAR,
        fill_value=0.0,
        dtype=types.FLOAT,
    )
    rounded = fn.cast(warped + fill, dtype=types.UINT8)
    return fn.coord_transform(rounded, M=_external("colour", 2), T=_external("offset", 1), dtype=types.UINT8)


def _labels(graph: Graph, *, on_gpu: bool) -> list[dali.data_node.DataNode]:
    """Label maps or soft masks (N, H, W, 1) uint8, one for each entry of `_label_matrices`."""
    labels = fn.external_source(name="labels", batch=True, dtype=types.UINT8, ndim=3, layout="HWC")
    if on_gpu:
        labels = labels.gpu()
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


def _agree(labels: list[torch.Tensor]) -> torch.Tensor:
    """The label that all maps share at a pixel, void where they do not."""
    first, *others = labels
    for other in others:
        first = torch.where(first == other, first, VOID)
    return first


def _decode(*, on_gpu: bool) -> dali.data_node.DataNode:
    jpegs = fn.external_source(name="jpegs", batch=True, dtype=types.UINT8, ndim=1)
    # Label maps are not turned by EXIF, so images must not be. The decoder of 1.34 never does and knows no such option.
    options = {"adjust_orientation": False} if _decoder_knows("adjust_orientation") else {}
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
    label_maps = (decode_labels(clip, index) for clip, index in places)
    colours = np.concatenate([clip.plan.colours for clip in clips])
    fills = np.array([fill_colour(clip.plan) for clip, _ in places], np.float32)
    labels_of = snap(np.concatenate([label_matrices(clip.plan) for clip in clips]), graph.size).matrices
    shifts = NEIGHBOURS if graph.unanimous else ((0.0, 0.0),)
    inputs: dict[str, Fed] = {
        "jpegs": [np.frombuffer(checked_jpeg(clip, index), np.uint8) for clip, index in places],
        "labels": [NO_LABELS if labels is None else labels[..., None] for labels in label_maps],
        "matrix": snap(np.concatenate([clip.plan.matrices for clip in clips]), graph.size).matrices,
        "fill": fills.reshape(-1, 1, 1, 3),
        "colour": np.ascontiguousarray(colours[:, :, :3]),
        "offset": np.ascontiguousarray(colours[:, :, 3]),
    }
    return inputs | {f"label_matrix_{number}": shifted(labels_of, shift) for number, shift in enumerate(shifts)}


def _samples_nearest(clip: EncodedClip) -> bool:
    return clip.plan.nearest_images


def _asks_neighbours(clip: EncodedClip) -> bool:
    return clip.plan.labels.unanimous


def _raise_for_bad_image(clips: list[EncodedClip]) -> None:
    """Decode every image on the CPU and raise the DataError of the first that fails; return if none does."""
    for clip in clips:
        for index in range(len(clip.frames)):
            decode_jpeg(clip, index)
