"""Clips that do one thing: a plan of RDE's with every step taken out but one, for comparing executors."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from pipelines.augmentation import (
    Crop,
    Matrix,
    Tone,
    affine_matrices,
    colour_matrices,
    compose_steps,
    crop_matrix,
)
from pipelines.executors.encoded import jpeg_size
from pipelines.types import ClipPlan, ClipSteps, EncodedClip
from shards.masks import encode_label_map
from shards.reader import EncodedFrame

Operation = Literal["resize", "crop", "flip", "affine", "colour", "nearest labels"]
OPERATIONS: tuple[Operation, ...] = ("resize", "crop", "flip", "affine", "colour", "nearest labels")
ANGLE, SHEAR = 15.0, 10.0
"""Degrees to either side, as RDE's."""


def single_operation(clip: EncodedClip, operation: Operation) -> EncodedClip:
    """A clip of `rde_video` that only does `operation`, with its own numbers, and leaves frames as they are otherwise.

    resize: the whole frame to the plan's size. crop, flip, affine, colour: at the frame's own size (the crop's for
    crop). nearest labels: all steps of the plan, and noise of all 256 labels, in which one wrong pixel shows.
    """
    if operation == "nearest labels":
        return _with_noise(clip)
    steps = clip.plan.steps
    assert isinstance(steps, ClipSteps), "an rde_video clip"
    height, width = jpeg_size(clip, 0)
    whole = Crop(0, 0, height, width)
    num_frames = len(clip.frames)
    crop = Crop(*steps.crop) if operation == "crop" else whole
    size = {"resize": clip.plan.size, "crop": (crop.height, crop.width)}.get(operation, (height, width))
    affines = _affines(clip.plan, size) if operation == "affine" else np.tile(np.eye(3), (num_frames, 1, 1))
    coloured = operation == "colour"
    only = ClipSteps(
        flip=operation == "flip",
        crop=(crop.top, crop.left, crop.height, crop.width),
        clip_colours=steps.clip_colours if coloured else (),
        grayscale=False,
        affines=affines[:, :2],
        frame_colours=steps.frame_colours if coloured else ((),) * num_frames,
    )
    return dataclasses.replace(clip, plan=_plan(clip.plan, only, affines, size, width))


def _plan(plan: ClipPlan, steps: ClipSteps, affines: Matrix, size: tuple[int, int], width: int) -> ClipPlan:
    crop = crop_matrix(Crop(*steps.crop), size, flip_width=width if steps.flip else None)
    first = compose_steps(steps.clip_colours, Tone(), mean_grey=plan_grey(plan))
    tones = [compose_steps(each, first, mean_grey=plan_grey(plan)) for each in steps.frame_colours]
    return dataclasses.replace(
        plan,
        size=size,
        matrices=(crop @ affines)[:, :2].astype(np.float32),
        colours=colour_matrices(tones),
        steps=steps,
    )


def plan_grey(plan: ClipPlan) -> float:
    """Luma of the plan's fill, which its contrast pulls towards."""
    return float(np.dot((0.299, 0.587, 0.114), plan.fill))


def _affines(plan: ClipPlan, size: tuple[int, int]) -> Matrix:
    """(T, 3, 3): turned and sheared about the middle of `size`, by numbers that follow from the clip's."""
    generator = np.random.default_rng(plan.number)
    angles = generator.uniform(-1, 1, (2, len(plan.frames)))
    return affine_matrices(ANGLE * angles[0], SHEAR * angles[1], size)


def _with_noise(clip: EncodedClip) -> EncodedClip:
    generator = np.random.default_rng(clip.plan.number)
    noise = [generator.integers(0, 256, jpeg_size(clip, index)).astype(np.uint8) for index in range(len(clip.frames))]
    frames = tuple(
        EncodedFrame(frame.image, encode_label_map(labels, clip.mask_codec))
        for frame, labels in zip(clip.frames, noise, strict=True)
    )
    return dataclasses.replace(clip, frames=frames)
