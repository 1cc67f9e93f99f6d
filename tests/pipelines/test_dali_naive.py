"""The baseline graph does RDE's steps: near the published pixels, or it would be no baseline."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("nvidia.dali", reason="no DALI in this environment")

from pipelines.executors import make_executor
from pipelines.executors.dali_naive import NaiveDaliExecutor
from pipelines.types import EncodedClip
from tests.pipelines.clips import blobs, clip, frame, picture, plan


def test_the_naive_graph_shows_what_the_published_steps_show() -> None:
    naive, paper = NaiveDaliExecutor(), make_executor("paper")
    clips = []
    for seed in range(4):
        frames = tuple(frame(picture(seed + t, 240, 427), blobs(seed + t, 240, 427)) for t in range(2))
        clips.append(EncodedClip(plan(seed, num_frames=2, source=(240, 427), size=(192, 192)), frames, "lz4"))
    ours, theirs = naive(clips), paper(clips)
    either = (ours.labels > 0) | (theirs.labels > 0)
    assert ((ours.labels == theirs.labels) & either).sum() / either.sum() > 0.95
    both = (ours.labels > 0) & (theirs.labels > 0)
    assert (ours.images.float() - theirs.images.float())[both].abs().mean() < 10
    naive.close()
    paper.close()


def test_it_knows_no_other_steps() -> None:
    bare = clip(0)
    with pytest.raises(ValueError, match="clip 0: the naive DALI graph knows the steps of RDE's video stages only"):
        NaiveDaliExecutor()([dataclasses.replace(bare, plan=dataclasses.replace(bare.plan, steps=None))])
