"""Region similarity J and boundary measure F of the DAVIS benchmarks, one frame at a time.

Both equal the literal definitions bit for bit (tests/trainers/scoring_oracle.py holds those). The work is cut down by
leaving out what lies outside the box around both masks, and by holding a boundary map as one integer with a bit per
pixel, so that widening it by a disc is a few dozen shifts.
Source: Perazzi et al. 2016, section 4; the behaviour of the official davis2017-evaluation package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

BoolMask = NDArray[np.bool_]

TOLERANCE = 0.008  # share of the image diagonal within which two boundary pixels match


class FrameScores(NamedTuple):
    """J and F of objects in one frame, 0..1, both float64 of one shape: (K,), or (P, K) of P proposals."""

    region: NDArray[np.float64]
    boundary: NDArray[np.float64]


def score_frame(truth: NDArray[np.uint8], result: NDArray[np.uint8], object_ids: Sequence[int]) -> FrameScores:
    """J and F of the objects of these ids in two label maps (H, W) of one size; other ids count for nothing."""
    radius = _common_radius(truth, result)
    scores = FrameScores(np.empty(len(object_ids)), np.empty(len(object_ids)))
    for index, object_id in enumerate(object_ids):
        truth_mask, result_mask = crop_to_both(truth == object_id, result == object_id)
        scores.region[index] = region_similarity(truth_mask, result_mask)
        scores.boundary[index] = boundary_measure(truth_mask, result_mask, radius)
    return scores


def score_pairs(
    truth: NDArray[np.uint8], result: NDArray[np.uint8], num_proposals: int, num_objects: int
) -> FrameScores:
    """J and F of every proposal 1..P in `result` against every object 1..K in `truth`, each (P, K).

    Both are label maps (H, W) of one size. Areas come from one joint histogram, each outline is made and widened once.
    """
    radius = _common_radius(truth, result)
    box = _box_of_both(truth != 0, result != 0)
    truth, result = truth[box], result[box]
    joint = truth.astype(np.uint16) << 8 | result
    pairs = np.bincount(joint.reshape(-1), minlength=1 << 16).reshape(256, 256)  # truth, result
    shared = pairs[1 : num_objects + 1, 1 : num_proposals + 1].T  # (P, K) pixels
    areas = pairs.sum(0)[1 : num_proposals + 1], pairs.sum(1)[1 : num_objects + 1]
    union = areas[0][:, None] + areas[1] - shared
    region = np.where(union == 0, 1.0, shared / np.maximum(union, 1))
    objects = [_outline(truth == index, radius) for index in range(1, num_objects + 1)]
    proposals = [_outline(result == index + 1, radius) if area else _NO_OUTLINE for index, area in enumerate(areas[0])]
    boundary = np.array([[_agreement(ours, theirs) for theirs in objects] for ours in proposals])
    return FrameScores(region, boundary.reshape(num_proposals, num_objects))


def crop_to_both(truth: BoolMask, result: BoolMask) -> tuple[BoolMask, BoolMask]:
    """Both masks inside the box around either one plus a pixel, cut at the image border; (0, 0) if both are empty.

    J and F of the crops (F with the radius of the whole image) equal those of the whole masks: every boundary pixel
    lies inside, and where the crop ends before the image does, its last row and column are background, as what follows
    them is.
    """
    box = _box_of_both(truth, result)
    return truth[box], result[box]


def _box_of_both(truth: BoolMask, result: BoolMask) -> tuple[slice, slice]:
    left, top, width, height = cv2.boundingRect((truth | result).view(np.uint8))
    if width == 0:
        return np.s_[:0, :0]
    return np.s_[max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1]


def _common_radius(truth: NDArray[np.uint8], result: NDArray[np.uint8]) -> int:
    if truth.shape != result.shape:
        raise ValueError(f"truth is {truth.shape}, result is {result.shape}: label maps of one frame have one size")
    return boundary_radius(truth.shape[0], truth.shape[1])


def region_similarity(truth: BoolMask, result: BoolMask) -> float:
    """J, intersection over union of two bool masks (H, W); 1 if both are empty."""
    union = int(np.count_nonzero(truth | result))
    return int(np.count_nonzero(truth & result)) / union if union else 1.0


def boundary_radius(height: int, width: int) -> int:
    """Radius in pixels of the disc within which boundaries match: 8 for 854x480."""
    return math.ceil(TOLERANCE * math.sqrt(height**2 + width**2))


def boundary_map(mask: BoolMask) -> BoolMask:
    """Bool (H, W): pixels unlike their right, lower or lower-right neighbour; the image border is no boundary."""
    boundary = np.zeros_like(mask)
    boundary[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    boundary[:-1] |= mask[:-1] ^ mask[1:]
    boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return boundary


def boundary_measure(truth: BoolMask, result: BoolMask, radius: int) -> float:
    """F, the harmonic mean of boundary precision and recall of two bool masks (H, W).

    1 if neither has a boundary (which a mask that fills the image has not), 0 if only one has.
    """
    return _agreement(_outline(result, radius), _outline(truth, radius))


class _Outline(NamedTuple):
    """Boundary of a mask, one bit per pixel: as it is, how many pixels, and widened by the disc."""

    bits: int
    num_pixels: int
    widened: int


_NO_OUTLINE = _Outline(0, 0, 0)


def _outline(mask: BoolMask, radius: int) -> _Outline:
    stride = mask.shape[1] + radius
    bits = _as_bits(boundary_map(mask), stride)
    return _Outline(bits, bits.bit_count(), _widen(bits, radius, stride) if bits else 0)


def _agreement(result: _Outline, truth: _Outline) -> float:
    if not result.bits or not truth.bits:
        return float(result.bits == truth.bits)
    # Only set bits of the other map are counted, so what widening leaves in the padding does no harm.
    precision = (result.bits & truth.widened).bit_count() / result.num_pixels
    recall = (truth.bits & result.widened).bit_count() / truth.num_pixels
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _as_bits(boundary: BoolMask, stride: int) -> int:
    """One bit per pixel in rows of `stride`: the columns, then padding to catch what is shifted over a row's end."""
    height, width = boundary.shape
    padded = np.zeros((height, stride), np.bool_)
    padded[:, :width] = boundary
    return int.from_bytes(np.packbits(padded).tobytes(), "big")


def _widen(bits: int, radius: int, stride: int) -> int:
    """Union of the map shifted by every (y, x) with x^2 + y^2 <= radius^2."""
    rows = {0: bits}  # half width -> the map widened to both sides by it
    for shift in range(1, radius + 1):
        rows[shift] = rows[shift - 1] | bits << shift | bits >> shift
    widened = rows[radius]
    for distance in range(1, radius + 1):
        row = rows[math.isqrt(radius**2 - distance**2)]
        widened |= row << distance * stride | row >> distance * stride
    return widened
