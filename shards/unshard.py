"""Back to the original layout: JPEGs byte for byte under their names, masks as indexed PNGs, the split lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shards.errors import DataError
from shards.masks import decode_label_map
from shards.palettes import voc_palette
from shards.png import encode_indexed
from shards.reader import ShardSet
from shards.storage import write_bytes


def unshard(shard_set: ShardSet, out: Path, report: Callable[[int], None]) -> None:
    """Write JPEGImages, Annotations and, last, ImageSets/2017 of a set into an empty or new folder.

    `report` gets the number of frames written since its last call. Lists name videos in the order of the set; without
    them the tree is unfinished and tools/shard.py refuses it.
    Raises DataError if the folder is not empty or a shard is damaged.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(out, expected="an empty or new folder", found="something in it", remedy="give another folder")
    for video in range(shard_set.num_videos):
        _write_video(shard_set, video, out)
        report(len(shard_set.frame_rows(video)))
    lists = out / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    for split in sorted(shard_set.manifest.splits):
        names = [shard_set.videos.original_names[int(row)] for row in shard_set.select(split)]
        write_bytes(lists / f"{split}.txt", "".join(f"{name}\n" for name in names).encode())


def _write_video(shard_set: ShardSet, video: int, out: Path) -> None:
    name = shard_set.videos.original_names[video]
    resolution = shard_set.manifest.resolution or ""
    images, masks = (out / folder / resolution / name for folder in ("JPEGImages", "Annotations"))
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    palette = shard_set.videos.stored_palette(video) or voc_palette()
    for frame in shard_set.frame_rows(video):
        encoded = shard_set.read(frame)
        (images / shard_set.file_name(frame)).write_bytes(encoded.image)
        if encoded.mask is not None:
            labels = decode_label_map(encoded.mask, shard_set.mask_codec)
            # Masks of other encodings in the same video may hold ids that a short palette has no entry for.
            missing = voc_palette()[len(palette) : 3 * int(labels.max()) + 3]
            (masks / f"{shard_set.frame_name(frame)}.png").write_bytes(encode_indexed(labels, palette + missing))
