"""What a run says while it runs: one console line per report, the same as JSON lines, and TensorBoard."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shards.storage.paths import write_bytes
from trainers.records.timing import StepTimes, as_clock

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

FILE_NAME = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class Report:
    """The steps since the last report, up to `stage_step` of `stage_steps` in a stage and `step` of the whole run.

    metrics: means over steps and ranks, the loss among them. times: each number of the rank that has most of it, None
    if nothing was timed yet; mean_data_ms: data wait, mean over ranks. batch_size: clips per step of all ranks.
    slowest: the rank the others wait for, "" where there are none.
    """

    step: int
    stage: str
    stage_step: int
    stage_steps: int
    learning_rate: float
    metrics: Mapping[str, float]
    times: StepTimes | None
    mean_data_ms: float
    batch_size: int
    slowest: str = ""

    def line(self) -> str:
        """`step 1200/80000 static | loss 0.341 | lr 1.0e-05 | data 0.4 ms | step 212 ms | 75 clips/s | eta 4:41`."""
        parts = [f"step {self.stage_step}/{self.stage_steps} {self.stage}", f"loss {self.metrics['loss']:.3f}"]
        parts.append(f"lr {self.learning_rate:.1e}")
        if self.times is not None:
            seconds = self.times.step_ms / 1000
            parts += [f"data {self.times.data_ms:.1f} ms", f"step {self.times.step_ms:.0f} ms"]
            parts += [f"{self.batch_size / seconds:.3g} clips/s"]
            parts += [f"eta {as_clock((self.stage_steps - self.stage_step) * seconds)}"]
        if self.slowest:
            parts += [f"slowest {self.slowest}"]
        return " | ".join(parts)

    def record(self) -> dict[str, Any]:
        """The same as plain values, with every metric."""
        record = {
            "kind": "report",
            "step": self.step,
            "stage": self.stage,
            "stage_step": self.stage_step,
            "stage_steps": self.stage_steps,
            "learning_rate": self.learning_rate,
            **self.metrics,
        }
        if self.times is not None:
            record |= {"data_ms": self.times.data_ms, "mean_data_ms": self.mean_data_ms, "step_ms": self.times.step_ms}
            record |= {"max_data_ms": self.times.max_data_ms, "max_step_ms": self.times.max_step_ms}
            record |= {"own_ms": self.times.own_ms, "peak_memory_mb": self.times.peak_memory_mb}
            record["clips_per_second"] = 1000 * self.batch_size / self.times.step_ms
        if self.slowest:
            record["slowest"] = self.slowest
        return record


class Journal:
    """The records of one run in its folder. For the first rank alone."""

    def __init__(self, folder: Path, *, step: int, tensorboard: bool) -> None:
        """Go on with the journal in `folder` after `step` updates: what it says of later steps will be said again."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE_NAME
        _drop_later_records(self._path, step)
        self._file = self._path.open("ab", buffering=0)  # nothing waits for a close that a full disk would fail
        self._turn = threading.Lock()
        self._board = _open_board(folder / "tensorboard", step) if tensorboard else None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            with self._saying_what_the_board_lacks():
                self._board.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """One JSON line, out of this process before this returns: a kill does not lose it, a power cut may.

        Of threads that write at once each writes whole lines.
        """
        line = (json.dumps(record) + "\n").encode()
        try:
            with self._turn:
                written = self._file.write(line)
        except OSError as error:
            raise OSError(f"{self._path} cannot be written ({error}); make room and go on with --resume") from error
        if written < len(line):
            raise OSError(f"{self._path} cannot be written to its end; make room and go on with --resume")

    def report(self, report: Report) -> None:
        """Console line, JSON line and TensorBoard scalars."""
        logger.info(report.line())
        record = report.record()
        self.write(record)
        self._draw(report.stage, record)

    def validation(self, record: Mapping[str, Any]) -> None:
        """JSON line and TensorBoard scalars of a validation."""
        self.write(record)
        self._draw("validation", record)

    def holds(self, kind: str, step: int) -> bool:
        """Whether there is a record of this kind after this step."""
        return any(r["kind"] == kind and r["step"] == step for r in read_journal(self._path.parent))

    def _draw(self, group: str, record: Mapping[str, Any]) -> None:
        if self._board is not None:
            scalars = {name: value for name, value in record.items() if isinstance(value, float)}
            with self._saying_what_the_board_lacks():
                for name, value in scalars.items():
                    self._board.add_scalar(f"{group}/{name}", value, record["step"])

    @contextmanager
    def _saying_what_the_board_lacks(self) -> Iterator[None]:
        """TensorBoard's files hold nothing that the journal lacks: no run ends for them."""
        try:
            yield
        except OSError as error:
            logger.warning("TensorBoard gets no more curves, its files cannot be written (%s)", error)
            self._board = None


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """All records of a run, oldest first; a last line cut short by a crash is left out, damaged ones with a warning."""
    path = folder / FILE_NAME
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    records = [record for line in lines if (record := _read_record(line)) is not None]
    if len(records) < len(lines):
        logger.warning("%s: %d of %d lines are damaged and left out", path, len(lines) - len(records), len(lines))
    return records


def _read_record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"kind", "step"} <= record.keys() else None


def _drop_later_records(path: Path, step: int) -> None:
    kept = [record for record in read_journal(path.parent) if record["step"] <= step]
    write_bytes(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


def _open_board(folder: Path, step: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - slow to import, and a run can do without

    # Steps up to `step` have been seen; from the next one on, older curves are hidden.
    return SummaryWriter(str(folder), purge_step=step + 1)
