"""Names inside shards."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shards.naming import VIDEO_FACTS, escape_frame, escape_video, frame_number, smallest_step

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=120)


@given(video=NAMES, frame=NAMES)
def test_every_member_name_fits_ustar_and_has_no_stray_dot(video, frame):
    folder, stem = escape_video(video), escape_frame(frame)
    assert len(f"{folder}/{stem}.{VIDEO_FACTS}".encode()) <= 100
    assert not set("./ ") & set(folder + stem)


@given(one=NAMES, other=NAMES)
def test_different_names_stay_different(one, other):
    assert (escape_video(one) == escape_video(other)) == (one == other)


def test_plain_names_stay_as_they_are_and_others_are_percent_escaped():
    assert escape_video("bike-packing_2") == "bike-packing_2"
    assert escape_video("a.b é%") == "a%2Eb%20%C3%A9%25"


def test_long_names_are_cut_and_told_apart_by_a_hash():
    one, other = "x" * 200 + "a", "x" * 200 + "b"
    assert len(escape_video(one)) == 64 and escape_video(one) != escape_video(other)


def test_frame_numbers_come_from_the_end_of_the_stem():
    assert [frame_number(stem) for stem in ("00012", "frame_7", "8", "00001 (1)", "mask")] == [12, 7, 8, None, None]


def test_the_step_is_the_smallest_difference_of_neighbours():
    assert smallest_step([5, 10, 13, 20]) == 3
    assert smallest_step([4]) == 1 and smallest_step([]) == 1
