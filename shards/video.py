"""What a shard knows about a video beside its frames: the member `<video>/<first frame>.video.json`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from shards.manifest import encode_json
from shards.naming import VIDEO_FACTS
from shards.object_facts import ObjectFacts, decode_object_facts, encode_object_facts


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """Facts of one video that its images and masks cannot tell.

    name: as in the source, before escaping. kind: of source (`davis2017`). splits: names of the lists it is in, sorted.
    palette: 3 to 768 bytes RGB of its indexed PNGs, None where the masks had none.
    files: member stem -> image file name in the source, only where that is not `<stem>.jpg`.
    objects: what the data set lists about objects, by id.
    """

    name: str
    kind: str
    splits: tuple[str, ...]
    palette: bytes | None = None
    files: dict[str, str] = field(default_factory=dict)
    objects: dict[int, ObjectFacts] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Canonical JSON; the palette as hexadecimal digits."""
        fields = dataclasses.asdict(self)
        fields["palette"] = None if self.palette is None else self.palette.hex()
        fields["objects"] = encode_object_facts(self.objects)
        return encode_json(fields)

    def file_name(self, stem: str) -> str:
        """File name in the source of the image whose member has this stem."""
        return self.files.get(stem, f"{stem}.jpg")

    def frame_name(self, stem: str) -> str:
        """Stem in the source of the image whose member has this stem."""
        return PurePosixPath(self.file_name(stem)).stem


def decode_video_facts(data: bytes) -> VideoFacts:
    """Inverse of `VideoFacts.encode`. Raises ValueError for anything else."""
    try:
        fields = json.loads(data)
        palette = fields.pop("palette")
        objects = decode_object_facts(fields.pop("objects", None))
        fields["splits"] = tuple(fields["splits"])
        return VideoFacts(palette=None if palette is None else bytes.fromhex(palette), objects=objects, **fields)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not the facts of a video ({VIDEO_FACTS}): {error}") from None
