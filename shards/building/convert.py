"""One video of a source -> members of a shard: every file checked, every decision about odd input taken and listed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from shards.findings import DROPPED, Finding, Findings, RefusedError
from shards.images import NO_JPEG, SourceImage, read_image
from shards.masks import FrameObjects, MaskCodec
from shards.naming import escape_frame
from shards.object_facts import MaskIds, ObjectFacts, reconcile
from shards.scaling import Scaling
from shards.source_masks import SourceMask, read_mask
from shards.sources.types import SourceFrame, SourceVideo
from shards.video import VideoFacts

# `map`, or a thread pool's: results in the order of the arguments.
OrderedMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True, slots=True)
class ReadyFrame:
    """Members of one frame. stem: escaped. mask and objects None where it is not annotated."""

    stem: str
    image: bytes
    mask: bytes | None
    objects: FrameObjects | None


@dataclass(frozen=True, slots=True)
class ReadyVideo:
    """A video of which nothing was refused. shape: (height, width) of all its frames."""

    facts: VideoFacts
    shape: tuple[int, int]
    frames: tuple[ReadyFrame, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all images and masks."""
        return sum(len(frame.image) + len(frame.mask or b"") for frame in self.frames)


@dataclass(frozen=True, slots=True)
class _ReadFrame:
    """What came out of one frame's files; image None where it was refused. findings: with their places."""

    source: SourceFrame
    image: SourceImage | None
    mask: SourceMask | None
    findings: tuple[Finding, ...]

    @property
    def mask_label(self) -> str:
        """Path of the mask file, "" where there is none."""
        return self.source.mask.label if self.source.mask else ""


@dataclass(frozen=True, slots=True)
class Target:
    """How a set stores its videos. kind: of the source, for the facts; scaling None: as large as they come."""

    kind: str
    codec: MaskCodec
    scaling: Scaling | None = None


def convert_video(video: SourceVideo, target: Target, findings: Findings, map_frames: OrderedMap) -> ReadyVideo | None:
    """Check and encode a video; None if anything of it is refused, all of which is in `findings` then.

    Whole encoded frames of this one video are held in memory. What is odd goes to `findings` in the order of frames.
    """
    refused_before = findings.num_refused
    findings.extend(video.findings)
    refusal = _unusable(video)
    if refusal is not None:
        findings.add(refusal)
        return None
    read = map_frames(lambda frame: _read_frame(video, frame, target), video.frames)
    frames = list(_agreeing(video, read, findings))
    if findings.num_refused == refused_before and _lacks_objects(video, frames):
        findings.add(_dropped(video, video.masks_label, "no object", "an object in some frame"))
    if findings.num_refused > refused_before:
        return None
    findings.extend(_remarks(video, frames))
    palette = _common_palette(video, frames, findings)
    files = {escape_frame(frame.source.stem): _file_name(frame.source) for frame in frames}
    odd = {stem: name for stem, name in files.items() if name != f"{stem}.jpg"}
    objects = _borne_out(video, frames, findings)
    facts = VideoFacts(video.name, target.kind, video.splits, palette, odd, objects)
    ready = tuple(_ready(frame) for frame in frames)
    assert frames[0].image is not None
    return ReadyVideo(facts, frames[0].image.shape, ready)


def _read_frame(video: SourceVideo, frame: SourceFrame, target: Target) -> _ReadFrame:
    """Read, check and encode the files of one frame; all the heavy work of a build is in here."""
    found: list[Finding] = []
    image: SourceImage | None = None
    mask: SourceMask | None = None
    try:
        image = read_image(frame.image.read(), target.scaling)
        # Files that do not claim to be JPEGs are listed once for the video.
        listed = [finding for finding in image.findings if finding.reason != NO_JPEG or _claims_jpeg(frame)]
        found += [finding.at(frame.image.label, video.name, frame.stem) for finding in listed]
    except RefusedError as refusal:
        found.append(refusal.finding.at(frame.image.label, video.name, frame.stem))
    if image is not None and frame.mask is not None:
        try:
            mask = read_mask(frame.mask.read(), target.codec, video.reading, target.scaling)
            found += [finding.at(frame.mask.label, video.name, frame.stem) for finding in mask.findings]
        except RefusedError as refusal:
            found.append(refusal.finding.at(frame.mask.label, video.name, frame.stem))
    return _ReadFrame(frame, image, mask, tuple(found))


def _agreeing(video: SourceVideo, read: Iterator[_ReadFrame], findings: Findings) -> Iterator[_ReadFrame]:
    """Frames with an image of the video's size and no mask of another size; the first image sets the size."""
    shape: tuple[int, int] | None = None
    for frame in read:
        findings.extend(frame.findings)
        if frame.image is None:
            continue
        shape = shape or frame.image.source_shape
        if frame.image.source_shape != shape:
            refusal = _size_refusal("image size changes", "size of the first image", shape, frame.image.source_shape)
            findings.add(refusal.finding.at(frame.source.image.label, video.name, frame.source.stem))
        elif frame.mask is not None and frame.mask.source_shape != shape:
            refusal = _size_refusal("mask size differs", "size of the image", shape, frame.mask.source_shape)
            findings.add(refusal.finding.at(frame.mask_label, video.name, frame.source.stem))
        else:
            yield frame


def _size_refusal(reason: str, what: str, wanted: tuple[int, int], found: tuple[int, int]) -> RefusedError:
    return RefusedError(
        reason,
        expected=f"{what}, {wanted[1]}x{wanted[0]}",
        found=f"{found[1]}x{found[0]}",
        remedy="restore the file; nothing is cropped or scaled here",
    )


def _unusable(video: SourceVideo) -> Finding | None:
    """Refusal of a video that its file names alone decide."""
    if not video.frames:
        return _dropped(video, video.label, "no frames", "numbered JPEGs")
    if video.expected != "none" and all(frame.mask is None for frame in video.frames):
        return _dropped(video, video.masks_label, "no masks", "a mask for at least one frame")
    return None


def _lacks_objects(video: SourceVideo, frames: list[_ReadFrame]) -> bool:
    """Whether there are masks, or should be, but not one object in them."""
    masks = [frame.mask for frame in frames if frame.mask is not None]
    return (bool(masks) or video.expected != "none") and not any(len(mask.objects.ids) for mask in masks)


def _dropped(video: SourceVideo, label: str, reason: str, expected: str) -> Finding:
    remedy = "restore the files from the original package, or leave the video out of the split"
    return Finding("refused", reason, expected, "none", remedy, DROPPED).at(label, video.name)


def _remarks(video: SourceVideo, frames: list[_ReadFrame]) -> Iterator[Finding]:
    """Warnings about what is sound but will surprise: missing and empty masks, very short videos."""
    if video.expected == "all" and not video.still:
        yield from _mask_remarks(video, frames)
    if len(frames) < 3 and not video.still:
        found = f"{len(frames)}: too short to train on or to score"
        yield _kept("short video", "3 frames or more", found).at(video.label, video.name)
    others = sum(not _claims_jpeg(frame.source) for frame in frames)
    if others:
        finding = Finding("repaired", NO_JPEG, "JPEGs", f"{others} other images", "nothing", "re-encoded")
        yield finding.at(video.label, video.name)


def _mask_remarks(video: SourceVideo, frames: list[_ReadFrame]) -> Iterator[Finding]:
    missing = [frame.stem for frame in video.frames if frame.mask is None]
    first_only = len(missing) == len(video.frames) - 1 and video.frames[0].mask is not None
    if missing and not first_only:
        found = f"none for {len(missing)} of {len(video.frames)}: {' '.join(missing[:8])}{' ...' * (len(missing) > 8)}"
        yield _kept("frames without mask", "a mask for each frame, or for the first alone", found).at(
            video.masks_label, video.name
        )
    first = frames[0]
    if first.mask is None:
        yield _kept("first frame without mask", "a mask", "none: no semi-supervised evaluation").at(
            first.source.image.label, video.name, first.source.stem
        )
    elif not len(first.mask.objects.ids):
        yield _kept("first mask empty", "an object", "none: no semi-supervised evaluation").at(
            first.source.image.label, video.name, first.source.stem
        )


def _borne_out(video: SourceVideo, frames: list[_ReadFrame], findings: Findings) -> dict[int, ObjectFacts]:
    """What the data set lists about objects, as far as the frames agree; disagreements are listed."""
    if not video.objects:
        return {}
    ids = {frame.source.stem: frame.mask.objects.ids for frame in frames if frame.mask is not None}
    found = MaskIds([frame.source.stem for frame in frames], ids)
    objects, remarks = reconcile(video.objects, found, video.given)
    findings.extend(remark.at(video.masks_label, video.name) for remark in remarks)
    return objects


def _claims_jpeg(frame: SourceFrame) -> bool:
    return PurePosixPath(frame.image.name).suffix.lower() in (".jpg", ".jpeg")


def _file_name(frame: SourceFrame) -> str:
    """Name under which the stored JPEG is given back."""
    return frame.image.name if _claims_jpeg(frame) else f"{frame.stem}.jpg"


def _common_palette(video: SourceVideo, frames: list[_ReadFrame], findings: Findings) -> bytes | None:
    """Palette of the video: that of its first indexed mask, or a longer one that agrees; others are listed."""
    palette: bytes | None = None
    for frame in frames:
        mask = frame.mask
        if mask is None or mask.palette is None:
            continue
        palette = palette or mask.palette
        used = [0, *mask.objects.ids.tolist(), *([255] if mask.has_void else [])]
        if any(_entry(palette, label) != _entry(mask.palette, label) for label in used if 3 * label < len(palette)):
            remark = _kept("another palette", "the colours of the video's other masks", "others; indices were kept")
            findings.add(remark.at(frame.mask_label, video.name, frame.source.stem))
        elif len(mask.palette) > len(palette) and mask.palette.startswith(palette):
            palette = mask.palette
    return palette


def _entry(palette: bytes, label: int) -> bytes:
    return palette[3 * label : 3 * label + 3]


def _ready(frame: _ReadFrame) -> ReadyFrame:
    assert frame.image is not None
    stem = escape_frame(frame.source.stem)
    if frame.mask is None:
        return ReadyFrame(stem, frame.image.data, None, None)
    return ReadyFrame(stem, frame.image.data, frame.mask.data, frame.mask.objects)


def _kept(reason: str, expected: str, found: str) -> Finding:
    return Finding("warning", reason, expected, found, "see that this is meant", "kept")
