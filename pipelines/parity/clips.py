"""Clips of one shard set by every recipe, for comparing executors: stage 0 takes a frame of each video as its still."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pipelines.executors.encoded import decode_labels
from pipelines.order.sampling import Mix, MixEntry
from pipelines.order.streams import stream_key
from pipelines.recipes import ClipRequest, Recipe, make_recipe
from pipelines.types import EncodedClip
from shards.masks import encode_soft_mask, soft_codec
from shards.reader import EncodedFrame, ShardSet

PARITY_RECIPES = ("rde_static", "rde_bl30k", "rde_video", "stm_cycle", "stm_cycle_paper", "stm_cycle_dali", "mtmfi")
STEPS = 1000
SEED = 0


def draw_clips(shard_set: ShardSet, split: str, recipes: Sequence[str], count: int) -> dict[str, list[EncodedClip]]:
    """The first `count` clips of each recipe, by its name, with the published options; bytes included.

    Raises DataError for a set without eligible videos or with bytes that fail their checksum, ValueError for an
    unknown recipe or split.
    """
    return {name: _draw(shard_set, split, make_recipe(name, {}), count) for name in recipes}


def _draw(shard_set: ShardSet, split: str, recipe: Recipe, count: int) -> list[EncodedClip]:
    mix = Mix([MixEntry(shard_set, split)], min_frames=recipe.min_frames, list_objects=recipe.list_objects)
    key = stream_key(SEED, mix.fingerprint)
    clips = []
    for number in range(count):
        pick = mix.pick(key, number)
        request = ClipRequest(
            key, number, 0, shard_set, pick.video, gap_step=1, step=0, steps=STEPS, object_id=pick.object_id
        )
        plan = recipe.plan(request)
        frames = {frame: shard_set.read(frame) for frame in plan.frames}
        clip = EncodedClip(plan, tuple(frames[frame] for frame in plan.frames), shard_set.mask_codec)
        clips.append(_as_still(clip) if recipe.soft_masks else clip)
    return clips


def _as_still(clip: EncodedClip) -> EncodedClip:
    """The clip with its objects as one soft mask, certain everywhere."""
    labels = decode_labels(clip, 0)
    assert labels is not None, "clips are made of annotated frames"
    codec = soft_codec(clip.mask_codec)
    mask = encode_soft_mask(np.where((labels > 0) & (labels < 255), 255, 0).astype(np.uint8), codec)
    still = EncodedFrame(clip.frames[0].image, mask)
    return dataclasses.replace(clip, frames=(still,) * len(clip.frames), mask_codec=codec)
