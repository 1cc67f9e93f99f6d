"""The DALI graph one writes first: one operator after the other on 8-bit images. A baseline for measurements only.

It follows RDE's steps in their order, with DALI's own colour operators (contrast about 128), so its pixels are near the
published ones and equal to nobody's.
"""

from __future__ import annotations

import inspect

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia import dali
from nvidia.dali import fn, types

from pipelines.executors.encoded import checked_jpeg, decode_labels, fill_colour
from pipelines.executors.frames import annotated_frames, clips_shape
from pipelines.types import ClipPixels, ClipSteps, ColourStep, EncodedClip

COLOURS = ("brightness", "contrast", "saturation")


class NaiveDaliExecutor:
    """Executor for plans with ClipSteps, on the CPU. One output size and at most the first batch's number of frames."""

    def __init__(self, *, threads: int = 1) -> None:
        self._threads = threads
        self._pipeline: dali.Pipeline | None = None

    def __call__(self, clips: list[EncodedClip]) -> ClipPixels:
        """See Executor."""
        num_clips, num_frames, size = clips_shape(clips)
        if self._pipeline is None:
            self._pipeline = _build(num_clips * num_frames, size, self._threads, fill_colour(clips[0].plan)[1])
        for name, values in _inputs(clips).items():
            self._pipeline.feed_input(name, values)
        images, labels = (torch.from_numpy(np.array(each.as_array())) for each in self._pipeline.run())
        return ClipPixels(
            images.view(num_clips, num_frames, *size, 3),
            labels.view(num_clips, num_frames, *size),
            annotated_frames(clips),
        )

    def close(self) -> None:
        """Release the pipeline."""
        self._pipeline = None


def _build(max_batch: int, size: tuple[int, int], threads: int, grey: int) -> dali.Pipeline:
    options = {"exec_async": False, "exec_pipelined": False, "prefetch_queue_depth": 1}
    if "exec_dynamic" in inspect.signature(dali.Pipeline.__init__).parameters:
        options["exec_dynamic"] = False
    pipeline = dali.Pipeline(max_batch, threads, None, **options)
    with pipeline:
        jpegs = fn.external_source(name="jpegs", batch=True, dtype=types.UINT8, ndim=1)
        labels = fn.external_source(name="labels", batch=True, dtype=types.UINT8, ndim=3, layout="HWC")
        place = *(_external(name, 1, types.INT32) for name in ("start", "shape")), _external("flip", 0, types.INT32)
        affine = _external("affine", 2, types.FLOAT)
        images = _move(fn.decoders.image(jpegs), place, size, types.INTERP_LINEAR)
        images = fn.warp_affine(_jitter(images, "clip"), matrix=affine, fill_value=float(grey))
        labels = _move(labels, place, size, types.INTERP_NN)
        labels = fn.warp_affine(labels, matrix=affine, fill_value=0.0, interp_type=types.INTERP_NN)
        pipeline.set_outputs(_jitter(images, "frame"), labels)
    pipeline.build()
    return pipeline


def _move(
    pixels: dali.data_node.DataNode,
    place: tuple[dali.data_node.DataNode, ...],
    size: tuple[int, int],
    interpolation: types.DALIInterpType,
) -> dali.data_node.DataNode:
    """Flip, cut and resize, as three operators; place: nodes of (start, shape, flip)."""
    start, shape, flip = place
    cut = fn.slice(fn.flip(pixels, horizontal=flip), start=start, shape=shape, axes=[0, 1])
    return fn.resize(cut, size=size, interp_type=interpolation)


def _jitter(images: dali.data_node.DataNode, scope: str) -> dali.data_node.DataNode:
    return fn.color_twist(images, **{name: _external(f"{scope}_{name}", 0, types.FLOAT) for name in COLOURS})


def _external(name: str, ndim: int, dtype: types.DALIDataType) -> dali.data_node.DataNode:
    return fn.external_source(name=name, batch=True, dtype=dtype, ndim=ndim)


def _inputs(clips: list[EncodedClip]) -> dict[str, NDArray[np.number] | list[NDArray[np.uint8]]]:
    places = [(clip, _steps(clip), index) for clip in clips for index in range(len(clip.frames))]
    label_maps = [decode_labels(clip, index) for clip, _, index in places]
    crops = np.array([steps.crop for _, steps, _ in places], np.int32)
    inputs: dict[str, NDArray[np.number] | list[NDArray[np.uint8]]] = {
        "jpegs": [np.frombuffer(checked_jpeg(clip, index), np.uint8) for clip, _, index in places],
        "labels": [np.zeros((1, 1, 1), np.uint8) if each is None else each[..., None] for each in label_maps],
        "start": np.ascontiguousarray(crops[:, :2]),
        "shape": np.ascontiguousarray(crops[:, 2:]),
        "flip": np.array([int(steps.flip) for _, steps, _ in places], np.int32),
        "affine": np.stack([steps.affines[index] for _, steps, index in places]).astype(np.float32),
    }
    for name in COLOURS:
        of_clips = [
            0.0 if name == "saturation" and s.grayscale else _factor(s.clip_colours, name) for _, s, _ in places
        ]
        inputs[f"clip_{name}"] = np.array(of_clips, np.float32)
        of_frames = [_factor(steps.frame_colours[index], name) for _, steps, index in places]
        inputs[f"frame_{name}"] = np.array(of_frames, np.float32)
    return inputs


def _steps(clip: EncodedClip) -> ClipSteps:
    if not isinstance(clip.plan.steps, ClipSteps):
        raise ValueError(f"clip {clip.plan.number}: the naive DALI graph knows the steps of RDE's video stages only")
    return clip.plan.steps


def _factor(steps: tuple[ColourStep, ...], name: str) -> float:
    return dict(steps).get(name, 1.0)  # type: ignore[call-overload]
