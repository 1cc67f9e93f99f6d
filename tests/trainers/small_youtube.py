"""A YouTube-VOS tree of two tiny videos whose objects begin late, with complete masks beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.trainers.small_videos import label_map, save_image, save_labels

NUM_FRAMES = 22
STEP = 5
# video -> id -> frame in which it begins; both are asked for until frame 20
BEGINS = {"late": {2: 0, 5: 5}, "dark": {3: 10}}


def truth(video: str, frame: int) -> NDArray[np.uint8]:
    """Complete mask: every object from where it begins."""
    labels = label_map(tuple(BEGINS[video]), frame // 2)
    for object_id, start in BEGINS[video].items():
        if frame < start:
            labels[labels == object_id] = 0
    return labels


def listed_frames(start: int) -> list[str]:
    return [f"{frame:05d}" for frame in range(start, NUM_FRAMES, STEP)]


def write_youtube_tree(root: Path, *, decoy: bool = True) -> Path:
    """valid, valid_all_frames and valid_gt. decoy: given masks also show, elsewhere, objects that began earlier."""
    for video, begins in BEGINS.items():
        for frame in range(NUM_FRAMES):
            name = f"{frame:05d}"
            save_image(root / "valid_all_frames" / "JPEGImages" / video / f"{name}.jpg", truth(video, frame))
            if frame % STEP == 0:
                save_image(root / "valid" / "JPEGImages" / video / f"{name}.jpg", truth(video, frame))
                if frame >= min(begins.values()):
                    save_labels(root / "valid_gt" / "Annotations" / video / f"{name}.png", truth(video, frame))
            if frame in begins.values():
                given = truth(video, frame)
                if decoy and frame:
                    given[36:, 40:] = min(begins)
                save_labels(root / "valid" / "Annotations" / video / f"{name}.png", given)
    videos = {
        video: {"objects": {str(key): {"frames": listed_frames(start)} for key, start in begins.items()}}
        for video, begins in BEGINS.items()
    }
    (root / "valid" / "meta.json").write_text(json.dumps({"videos": videos}), encoding="utf-8")
    return root
