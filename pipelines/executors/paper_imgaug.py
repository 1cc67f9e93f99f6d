"""imgaug's part of STM-Cycle's PIL backend. The one module that imports imgaug.

imgaug 0.4.0, its last release, asks for `numpy.sctypes` when it is imported, which NumPy 2 no longer has.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.types import StmCycleSteps

if TYPE_CHECKING:
    from collections.abc import Iterator

REMOVED = "sctypes"
SCTYPES: dict[str, list[type]] = {
    "int": [np.int8, np.int16, np.int32, np.int64],
    "uint": [np.uint8, np.uint16, np.uint32, np.uint64],
    "float": [np.float16, np.float32, np.float64, np.longdouble],
    "complex": [np.complex64, np.complex128, np.clongdouble],
    "others": [bool, object, bytes, str, np.void],
}
"""As NumPy 1 had it."""


@contextmanager
def numpy_sctypes() -> Iterator[None]:
    """`numpy.sctypes` exists inside the block, as in NumPy 1; nothing of it stays."""
    missing = REMOVED not in vars(np)
    if missing:
        setattr(np, REMOVED, SCTYPES)
    try:
        yield
    finally:
        if missing:
            delattr(np, REMOVED)


with numpy_sctypes():
    import imgaug.augmenters as iaa
    from imgaug.augmentables.segmaps import SegmentationMapsOnImage


def crop_and_turn(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], steps: StmCycleSteps
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W, 3) and label map (H, W): pixels cut off at each side, the rest resized back, then the affine.

    The image is resized back by area, as imgaug does where anything grows, and turned linearly; labels take the nearest
    pixel; outside are black and label 0.
    """
    angle = np.radians(steps.shear)
    # skimage turned the sheared axis until 0.19 and lengthens it now: by its cosine less, it is the published matrix.
    scale = {"x": steps.scale, "y": steps.scale * float(np.cos(angle))}
    augment = iaa.Sequential(
        [iaa.Crop(px=steps.cut), iaa.Affine(scale=scale, rotate=steps.rotations[0], shear=steps.shear, order=1)]
    )
    maps = SegmentationMapsOnImage(labels.astype(np.int32), shape=image.shape)
    turned, turned_maps = augment(image=image, segmentation_maps=maps)
    return np.asarray(turned, np.uint8), turned_maps.get_arr().astype(np.uint8)
