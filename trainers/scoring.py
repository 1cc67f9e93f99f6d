"""Region similarity J and boundary measure F of the DAVIS benchmarks, one frame at a time.

Both equal the literal definitions bit for bit (tests/trainers/scoring_oracle.py holds those). The work is cut down by
leaving out what lies outside the box around both masks, and by holding a boundary map as one integer with a bit per
pixel, so that widening it by a disc is a few dozen shifts.
Source: Perazzi et al. 2016, section 4; the behaviour of the official davis2017-evaluation package.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

BoolMask = NDArray[np.bool_]

TOLERANCE = 0.008  # share of the image diagonal within which two boundary pixels match


class FrameScores(NamedTuple):
    """J and F of objects 1..K in one frame, each float64 (K,), 0..1."""

    region: NDArray[np.float64]
    boundary: NDArray[np.float64]


def score_frame(truth: NDArray[np.uint8], result: NDArray[np.uint8], num_objects: int) -> FrameScores:
    """J and F of objects 1..num_objects in two label maps (H, W) of one size; other ids count for nothing."""
    if truth.shape != result.shape:
        raise ValueError(f"truth is {truth.shape}, result is {result.shape}: label maps of one frame have one size")
    radius = boundary_radius(*truth.shape)
    scores = FrameScores(np.empty(num_objects), np.empty(num_objects))
    for index in range(num_objects):
        truth_mask, result_mask = crop_to_both(truth == index + 1, result == index + 1)
        scores.region[index] = region_similarity(truth_mask, result_mask)
        scores.boundary[index] = boundary_measure(truth_mask, result_mask, radius)
    return scores


def crop_to_both(truth: BoolMask, result: BoolMask) -> tuple[BoolMask, BoolMask]:
    """Both masks inside the box around either one plus a pixel, cut at the image border; (0, 0) if both are empty.

    J and F of the crops (F with the radius of the whole image) equal those of the whole masks: every boundary pixel
    lies inside, and where the crop ends before the image does, its last row and column are background, as what follows
    them is.
    """
    left, top, width, height = cv2.boundingRect((truth | result).view(np.uint8))
    if width == 0:
        return truth[:0, :0], result[:0, :0]
    box = np.s_[max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1]
    return truth[box], result[box]


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
    stride = truth.shape[1] + radius
    truth_bits = _as_bits(boundary_map(truth), stride)
    result_bits = _as_bits(boundary_map(result), stride)
    if not truth_bits or not result_bits:
        return float(truth_bits == result_bits)
    # Only set bits of the other map are counted, so what widening leaves in the padding does no harm.
    precision = (result_bits & _widen(truth_bits, radius, stride)).bit_count() / result_bits.bit_count()
    recall = (truth_bits & _widen(result_bits, radius, stride)).bit_count() / truth_bits.bit_count()
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
