"""Back to the original layout: JPEGs byte for byte under their names, masks as PNGs, lists and meta.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from shards.errors import DataError
from shards.masks import SOFT_CODECS, decode_label_map, decode_soft_mask
from shards.palettes import voc_palette
from shards.reader import ShardSet
from shards.sets.layouts import LAYOUTS, Layout


def unshard(shard_set: ShardSet, out: Path, report: Callable[[int], None]) -> None:
    """Write images, masks and, last, lists and meta.json of a set into an empty or new folder.

    `report` gets the number of frames written since its last call. The layout is that of the set's kind
    (`shards.sets.layouts`). Raises DataError if the folder is not empty, the kind has no layout or a shard is damaged.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = "something in it" if out.is_dir() else "a file"
        raise DataError(out, expected="an empty or new folder", found=found, remedy="give another folder")
    layout = LAYOUTS.get(shard_set.manifest.kind)
    if layout is None:
        raise DataError(
            shard_set.path,
            expected=f"a set of one of the kinds {', '.join(LAYOUTS)}",
            found=f"{shard_set.manifest.kind!r}",
            remedy="give back the sets it was made of, one by one",
        )
    _require_names(shard_set, [*shard_set.manifest.splits, *filter(None, [shard_set.manifest.resolution])])
    for video in range(shard_set.num_videos):
        _write_video(shard_set, video, layout, out)
        report(len(shard_set.frame_rows(video)))
    layout.finish(shard_set, out)


def _write_video(shard_set: ShardSet, video: int, layout: Layout, out: Path) -> None:
    places = layout.images(shard_set, video), layout.masks(shard_set, video)
    names = [shard_set.file_name(frame) for frame in shard_set.frame_rows(video)]
    _require_inside(shard_set, places)
    _require_names(shard_set, [*names, *(shard_set.frame_name(frame) for frame in shard_set.frame_rows(video))])
    images, masks = (out / place for place in places)
    images.mkdir(parents=True, exist_ok=True)
    palette = shard_set.videos.stored_palette(video) or voc_palette()
    if shard_set.annotated(video).any():
        masks.mkdir(parents=True, exist_ok=True)
    for frame, name in zip(shard_set.frame_rows(video), names, strict=True):
        encoded = shard_set.read(frame)
        (images / name).write_bytes(encoded.image)
        if encoded.mask is not None:
            decode = decode_soft_mask if shard_set.mask_codec in SOFT_CODECS else decode_label_map
            labels = decode(encoded.mask, shard_set.mask_codec)
            # Masks of other encodings in the same video may hold ids that a short palette has no entry for.
            missing = voc_palette()[len(palette) : 3 * int(labels.max()) + 3]
            png = layout.encode_mask(labels, palette + missing)
            (masks / f"{shard_set.frame_name(frame)}.png").write_bytes(png)


def _require_inside(shard_set: ShardSet, folders: Iterable[str]) -> None:
    """Names come out of the set, and a set may come from anybody: none may lead out of the folder."""
    for folder in folders:
        if folder.startswith("/") or ".." in folder.split("/"):
            raise _climbs(shard_set, folder)


def _require_names(shard_set: ShardSet, names: Iterable[str]) -> None:
    """Refuse names of files and splits that are paths."""
    for name in names:
        if "/" in name or name in ("", ".", ".."):
            raise _climbs(shard_set, name)


def _climbs(shard_set: ShardSet, name: str) -> DataError:
    expected = "names of videos, frames and splits"
    return DataError(shard_set.path, expected=expected, found=f"{name!r}", remedy="do not use this set")
