"""What can be asked of a source beside where it is, and which kinds understand which of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from shards.scaling import Scaling
from shards.storage.paths import Location

Annotations = Literal["semi-supervised", "unsupervised"]
# ids: values are object ids. binary: 0/255, the object becomes id 1. merged: every value above 0 becomes id 1.
MaskReading = Literal["ids", "binary", "merged"]
Duplicates = Literal["keep", "drop"]
Checksums = Literal["check", "skip"]
ANNOTATIONS: tuple[Annotations, ...] = get_args(Annotations)
MASK_READINGS: tuple[MaskReading, ...] = get_args(MaskReading)
DUPLICATES: tuple[Duplicates, ...] = get_args(Duplicates)
CHECKSUMS: tuple[Checksums, ...] = get_args(Checksums)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Options of single kinds; one that a kind does not know is refused, never passed over.

    annotations: which folder of masks (davis2017). masks: what the values of masks mean (folder). lists: files of video
    names; each is a split named after its file, and videos in none of them are left out (all kinds but davis2016 and
    static). duplicates: images with the same bytes (static). md5: of published tars (bl30k). scaling: all kinds.
    """

    annotations: Annotations = "semi-supervised"
    masks: MaskReading = "ids"
    lists: tuple[Location, ...] = ()
    duplicates: Duplicates = "keep"
    md5: Checksums = "check"
    scaling: Scaling | None = None

    def record(self) -> dict[str, Any]:
        """What the bytes of a set depend on and its splits do not say: options other than the default, for JSON."""
        fields: dict[str, Any] = {"annotations": self.annotations, "masks": self.masks, "duplicates": self.duplicates}
        used = {name: value for name, value in fields.items() if value != _DEFAULTS[name]}
        if self.scaling is not None:
            used["scaling"] = dataclasses.asdict(self.scaling)
        return used

    def require_only(self, kind: str, *known: str) -> None:
        """Raise ValueError if an option is set that this kind does not know."""
        for name, default in _DEFAULTS.items():
            if name not in (*known, "scaling") and getattr(self, name) != default:
                flag = {"lists": "--list"}.get(name, f"--{name}")
                raise ValueError(f"{flag} means nothing for {kind}; leave it out")


_DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in dataclasses.fields(SourceOptions) if field.name != "scaling"
}
