"""What is said of numbers that were made up."""

from __future__ import annotations

import pytest

from tests.trainers.throughput_numbers import DATA_BOUND, numbers, waiting
from trainers.throughput.verdict import (
    find_data_wall,
    judge,
    modelled_data_ms,
    storage_rows,
    threads_for_compute,
    what_if,
)


def test_waiting_for_slow_data_is_data_bound_with_wall_and_remedy() -> None:
    verdict = judge(DATA_BOUND)
    assert (verdict.limit, verdict.wall) == ("data", "image decode")
    assert verdict.words == (
        "data-bound: 60% of the step is waiting for its batch; image decode on 2 threads is the wall (without it a "
        "batch takes 20 ms instead of 100); at 6 loading threads on as many cores compute becomes the limit"
    )


def test_a_serial_wall_is_not_helped_by_threads() -> None:
    parts = {"plan": 2.0, "read": 4.0, "image decode": 10.0, "assembly": 90.0}
    found = numbers(data_parts=parts, without={"assembly": 8.0, "read": 99.0})
    assert threads_for_compute(found) is None
    assert judge(found).words.endswith(
        "assembly in its one thread is the wall (without it a batch takes 8 ms instead of 100); no number of loading "
        "threads makes compute (40 ms a step) the limit"
    )


def test_unrest_is_said_and_changes_no_verdict() -> None:
    busy = judge(numbers(repeated_ms=(100.0, 180.0)))
    assert (busy.limit, busy.wall) == ("data", "image decode")
    assert busy.words.startswith(judge(DATA_BOUND).words)
    assert "the machine was busy: two equal runs of loading took 100 and 180 ms a batch" in busy.words


def test_a_core_that_others_took_is_said() -> None:
    shares = {"data": 1.0, "compute": 0.25, "both": 1.0}
    busy = judge(numbers(device="cpu", cores_busy=shares)).words
    assert "the machine was busy: training alone got 0.2 of a core; measure again" in busy
    assert "busy" not in judge(numbers(device="cuda", cores_busy=shares)).words, "there the GPU does the work"


def test_two_equal_parts_side_by_side_are_no_wall_alone() -> None:
    found = numbers(without={"read": 96.0, "image decode": 95.0})
    assert find_data_wall(found) == ("image decode", None)
    assert "no part alone is the wall, image decode is the longest" in judge(found).words


def test_a_part_does_not_save_more_than_its_work() -> None:
    found = numbers(without={"read": 5.0, "image decode": 20.0})  # reading is 20 ms of work: the rest is noise
    assert find_data_wall(found) == ("image decode", 20.0)


def test_little_waiting_is_compute_bound_by_its_largest_part() -> None:
    found = numbers(
        compute_ms=200.0, both_ms=202.0, waits=waiting(1.0), compute_parts={"forward": 150.0, "rest": 180.0}
    )
    verdict = judge(found)
    assert (verdict.limit, verdict.wall) == ("compute", "forward")
    assert verdict.words == (
        "compute-bound: 0.5% of the step is waiting for its batch; forward takes 75% of a step on a batch that lies "
        "ready; loading alone could feed 2.0 such devices"
    )


def test_ranks_and_shared_cores_are_said() -> None:
    found = numbers(
        compute_ms=200.0,
        both_ms=300.0,
        waits=waiting(1.0),
        unsynchronised_ms=150.0,
        cores_busy={"compute": 1.0},
        world_size=4,
        device="cpu",
    )
    words = judge(found).words
    assert "the exchange of gradients between 4 ranks adds 25%" in words
    assert words.endswith("loading on the same 8 cores makes a step 1.50 times as long as alone")


def test_waiting_for_data_that_is_fast_alone_is_a_matter_of_cores() -> None:
    found = numbers(compute_ms=150.0, both_ms=300.0, waits=waiting(100.0), device="cpu")
    verdict = judge(found)
    assert verdict.limit == "cores"
    assert verdict.words.startswith(
        "bound by the cores: alone, loading takes 100 ms and training 150 ms a step, together 300 ms"
    )


@pytest.mark.parametrize(("threads", "expected"), [(2, 100.0), (4, 55.0), (20, 19.0), (40, 19.0)])
def test_the_model_divides_frames_among_threads_and_keeps_what_is_serial(threads: int, expected: float) -> None:
    # At 2 threads (160 + 20) / 2 + 10 = 100, as measured; more threads than the 20 frames of a batch do not help.
    assert modelled_data_ms(DATA_BOUND, threads) == pytest.approx(expected)


def test_reads_are_a_wall_of_their_own_in_the_model() -> None:
    found = numbers(data_parts={"plan": 0.0, "read": 200.0, "image decode": 20.0, "assembly": 0.0})
    assert modelled_data_ms(found, 4) == pytest.approx(50.0)
    assert threads_for_compute(found) == 5


def test_what_if_keeps_measured_and_modelled_apart() -> None:
    rows = {row.change: row for row in what_if(DATA_BOUND)}
    present = rows["as it is"]
    assert (present.data_ms, present.step_ms, present.limit) == (100.0, 100.0, "data")
    decoded = rows["JPEGs decoded elsewhere (GPU)"]
    assert (decoded.data_ms, decoded.step_ms, decoded.limit, decoded.measured) == (20.0, 40.0, "compute", True)
    plans = [rows[f"read plan {name}"] for name in ("span", "resident")]
    assert [(row.data_ms, row.measured) for row in plans] == [(99.0, False), (99.0, False)], "reading is not the wall"
    assert "read plan frame" not in rows, "that is the present one"
    slow = {row.change: row for row in what_if(numbers(without={"read": 30.0}))}
    assert [slow[f"read plan {name}"].data_ms for name in ("span", "resident")] == [30.0, 50.0]
    doubled = rows["4 loading threads on as many cores"]
    assert (doubled.step_ms, doubled.limit, doubled.measured) == (pytest.approx(55.0), "data", False)
    assert "JPEGs decoded elsewhere (GPU)" not in [row.change for row in what_if(numbers(without={"read": 1.0}))]


def test_storage_has_to_give_what_all_nodes_take_at_full_speed() -> None:
    # 2 MB a step of 40 ms are 50 MB/s for a rank.
    assert storage_rows(numbers(world_size=2), (1, 3)) == [
        (1, pytest.approx(100.0), 0.5),
        (3, pytest.approx(300.0), 1.5),
    ]
