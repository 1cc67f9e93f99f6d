"""One line, one record and one set of curves per report."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from trainers.records.journal import FILE_NAME, Journal, Report, read_journal
from trainers.records.timing import NUM_WARM_UP_STEPS, StepTimer, StepTimes, as_clock


def make_report(step: int = 1200, times: StepTimes | None = None) -> Report:
    return Report(
        step=step + 5000,
        stage="static",
        stage_step=step,
        stage_steps=80_000,
        learning_rate=1e-5,
        metrics={"loss": 0.3412, "top_p": 1.0},
        times=times,
        mean_data_ms=0.3,
        batch_size=16,
    )


def test_the_console_line_has_the_agreed_columns() -> None:
    times = StepTimes(num_steps=10, step_ms=212.0, data_ms=0.42)
    assert make_report(78_673, times).line() == (
        "step 78673/80000 static | loss 0.341 | lr 1.0e-05 | data 0.4 ms | step 212 ms | 75.5 clips/s | eta 4:41"
    )
    assert make_report().line() == "step 1200/80000 static | loss 0.341 | lr 1.0e-05"


def test_the_record_says_the_same_in_numbers() -> None:
    record = make_report(1200, StepTimes(10, 200.0, 0.5, 150.0, 250.0, 0.9, 800.0)).record()
    assert record == {
        "kind": "report",
        "step": 6200,
        "stage": "static",
        "stage_step": 1200,
        "stage_steps": 80_000,
        "learning_rate": 1e-5,
        "loss": 0.3412,
        "top_p": 1.0,
        "data_ms": 0.5,
        "mean_data_ms": 0.3,
        "step_ms": 200.0,
        "max_data_ms": 0.9,
        "max_step_ms": 250.0,
        "own_ms": 150.0,
        "peak_memory_mb": 800.0,
        "clips_per_second": 80.0,
    }


def test_going_on_drops_what_will_be_said_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Journal(tmp_path, step=0, tensorboard=False) as journal:
        for step in (100, 200, 300):
            journal.report(make_report(step))
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"kind": "report", "st')  # a crash in the middle of a line
    with Journal(tmp_path, step=5200, tensorboard=False) as journal:
        assert [record["stage_step"] for record in read_journal(tmp_path)] == [100, 200]
        journal.report(make_report(300))
    assert [record["stage_step"] for record in read_journal(tmp_path)] == [100, 200, 300]
    assert caplog.text.count("step 300/80000") == 2


def test_times_leave_out_the_first_steps_and_what_lies_between_steps() -> None:
    now = [0.0]
    timer = StepTimer(torch.device("cpu"), clock=lambda: now[0])
    for _ in range(NUM_WARM_UP_STEPS):
        now[0] += 100
        timer.end_step(wait_seconds=50)
    assert timer.take() is None
    for wait in (0.1, 0.3):
        now[0] += 2
        timer.end_step(wait)
        now[0] += 1000  # a checkpoint
        timer.begin()
    times = timer.take()
    assert times is not None
    assert (times.num_steps, times.step_ms, times.data_ms) == (2, pytest.approx(2000), pytest.approx(200))
    assert timer.take() is None


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (281, "4:41"), (3599.6, "1:00:00"), (3881, "1:04:41")])
def test_a_time_to_go_reads_like_a_clock(seconds: float, text: str) -> None:
    assert as_clock(seconds) == text


def test_damaged_lines_are_left_out_with_a_word_and_no_run_fails_for_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [b'{"kind": "start", "step": 0}', b"\0" * 40, b'["no record"]', b'{"kind": "report", "step": 7}', b"\xff"]
    (tmp_path / FILE_NAME).write_bytes(b"\n".join(lines) + b"\n")
    assert [record["step"] for record in read_journal(tmp_path)] == [0, 7]
    assert f"{tmp_path / FILE_NAME}: 3 of 5 lines are damaged and left out" in caplog.text


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    with (
        pytest.raises(OSError, match=r"journal\.jsonl cannot be written \(.*No space left.*\); make room"),
        Journal(tmp_path, step=0, tensorboard=False) as journal,
        full.open("wb", buffering=0) as file,
    ):
        journal._file.close()
        journal._file = file
        journal.write({"kind": "report", "step": 1})


def test_no_run_ends_for_tensorboards_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class FullBoard:
        def add_scalar(self, *_: object) -> None:
            raise OSError("No space left on device")

        close = add_scalar

    for reports in (2, 0):
        with Journal(tmp_path, step=0, tensorboard=False) as journal:
            journal._board = FullBoard()  # type: ignore[assignment]
            for step in range(reports):
                journal.report(make_report(step))
    assert len(read_journal(tmp_path)) == 0  # of the second journal, which began anew
    assert caplog.text.count("TensorBoard gets no more curves, its files cannot be written (No space left") == 2
