"""Clips through one NVIDIA DALI graph, on a GPU or, with the same graph, on the CPU. Runs on DALI 1.34 and on 2.x.

B clips of T frames are one flat batch of B * T images. Every number comes from the plans: there is no random operator,
no DALI reader and no state in the graph, which makes its output equal across DALI versions and thread counts.
The arithmetic is the `cpu` executor's: warp, round to 8 bit, colour matrix, round.
"""

from __future__ import annotations

import inspect

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia import dali
from nvidia.dali import fn, types
from nvidia.dali.backend import GetSchema

from pipelines.executors.encoded import checked_jpeg, decode_jpeg, decode_labels, fill_colour
from pipelines.executors.frames import all_soft, annotated_frames, clips_shape
from pipelines.executors.geometry import snap
from pipelines.types import ClipPixels, EncodedClip

NOTHING: tuple[int, tuple[int, int], bool] = (0, (0, 0), False)
"""Largest batch, output size and kind of masks before anything is built."""

NO_LABELS = np.zeros((1, 1, 1), np.uint8)
"""Stands in for the label map of a frame without annotation: whatever the warp, it shows 0 only."""


class DaliExecutor:
    """Executor over a DALI pipeline, whose results are tensors on `device`.

    The pipeline is built for the largest batch seen, one output size and one kind of masks, and built again when any of
    them changes. Call it from one thread at a time.
    """

    def __init__(self, *, threads: int = 1, device: torch.device | str = "cpu") -> None:
        self._threads = threads
        self._device = torch.device(device)
        self._pipeline: dali.Pipeline | None = None
        self._built_for = NOTHING

    def __call__(self, clips: list[EncodedClip]) -> ClipPixels:
        """See Executor. RuntimeError for a failure of DALI's that is no image's fault."""
        (num_clips, num_frames, size), soft = clips_shape(clips), all_soft(clips)
        inputs = _inputs(clips, size)
        pipeline = self._pipeline_for(num_clips * num_frames, size, soft=soft)
        try:
            for name, values in inputs.items():
                pipeline.feed_input(name, values)
            images, labels = pipeline.run()
        except RuntimeError:
            # DALI 1.34 cannot use a pipeline again after an error, and does not say which image it was.
            self.close()
            _raise_for_bad_image(clips)
            raise
        return ClipPixels(
            self._tensor(images).view(num_clips, num_frames, *size, 3),
            self._tensor(labels).view(num_clips, num_frames, *size),
            annotated_frames(clips).to(self._device, non_blocking=True),
            soft,
        )

    def close(self) -> None:
        """Release the pipeline and its memory; the next call builds a new one."""
        self._pipeline = None
        self._built_for = NOTHING

    def _pipeline_for(self, num_images: int, size: tuple[int, int], *, soft: bool) -> dali.Pipeline:
        largest, *built = self._built_for
        if self._pipeline is None or num_images > largest or [size, soft] != built:
            self._pipeline = None
            self._built_for = (max(num_images, largest), size, soft)
            self._pipeline = build_pipeline(
                self._built_for[0], size, soft=soft, threads=self._threads, device=self._device
            )
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


def build_pipeline(
    max_batch: int,
    size: tuple[int, int],
    *,
    soft: bool = False,
    threads: int,
    device: torch.device | str = "cpu",
) -> dali.Pipeline:
    """The graph for up to `max_batch` images to `size` (height, width); inputs as `_inputs` names them.

    soft: labels are soft masks, to be sampled linearly.
    """
    options = {"exec_async": False, "exec_pipelined": False, "prefetch_queue_depth": 1}
    if "exec_dynamic" in inspect.signature(dali.Pipeline.__init__).parameters:
        options["exec_dynamic"] = False  # 2.x would free and fault its buffers at every batch
    pipeline = dali.Pipeline(max_batch, threads, _device_id(torch.device(device)), **options)
    with pipeline:
        pipeline.set_outputs(*_graph(size, soft=soft, on_gpu=torch.device(device).type == "cuda"))
    pipeline.build()
    return pipeline


def _graph(
    size: tuple[int, int], *, soft: bool, on_gpu: bool
) -> tuple[dali.data_node.DataNode, dali.data_node.DataNode]:
    """Images (N, H, W, 3) and labels (N, H, W, 1), both uint8, as nodes of the pipeline being defined."""
    matrix, fill = _external("matrix", 2), _external("fill", 3)
    labels = fn.external_source(name="labels", batch=True, dtype=types.UINT8, ndim=3, layout="HWC")
    if on_gpu:
        labels, fill = labels.gpu(), fill.gpu()
    # fill_value is one number for all channels: warp the difference to the fill and add it back. Float output without
    # a rounding warp is also twice as fast on the CPU.
    shifted = _decode(on_gpu=on_gpu) - fill
    warped = fn.warp_affine(
        shifted, matrix=matrix, size=size, interp_type=types.INTERP_LINEAR, fill_value=0.0, dtype=types.FLOAT
    )
    rounded = fn.cast(warped + fill, dtype=types.UINT8)
    images = fn.coord_transform(rounded, M=_external("colour", 2), T=_external("offset", 1), dtype=types.UINT8)
    if soft:
        levels = fn.warp_affine(
            labels, matrix=matrix, size=size, interp_type=types.INTERP_LINEAR, fill_value=0.0, dtype=types.FLOAT
        )
        return images, fn.cast(levels, dtype=types.UINT8)
    return images, fn.warp_affine(labels, matrix=matrix, size=size, interp_type=types.INTERP_NN, fill_value=0.0)


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


def _inputs(
    clips: list[EncodedClip], size: tuple[int, int]
) -> dict[str, NDArray[np.float32] | list[NDArray[np.uint8]]]:
    """Everything the graph is fed, one entry per image in each."""
    places = [(clip, index) for clip in clips for index in range(len(clip.frames))]
    label_maps = (decode_labels(clip, index) for clip, index in places)
    colours = np.concatenate([clip.plan.colours for clip in clips])
    fills = np.array([fill_colour(clip.plan) for clip, _ in places], np.float32)
    return {
        "jpegs": [np.frombuffer(checked_jpeg(clip, index), np.uint8) for clip, index in places],
        "labels": [NO_LABELS if labels is None else labels[..., None] for labels in label_maps],
        "matrix": snap(np.concatenate([clip.plan.matrices for clip in clips]), size).matrices,
        "fill": fills.reshape(-1, 1, 1, 3),
        "colour": np.ascontiguousarray(colours[:, :, :3]),
        "offset": np.ascontiguousarray(colours[:, :, 3]),
    }


def _raise_for_bad_image(clips: list[EncodedClip]) -> None:
    """Decode every image on the CPU and raise the DataError of the first that fails; return if none does."""
    for clip in clips:
        for index in range(len(clip.frames)):
            decode_jpeg(clip, index)
