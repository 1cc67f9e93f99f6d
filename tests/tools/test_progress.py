"""Progress is a bar for people at a terminal and a line now and then for everybody else."""

from __future__ import annotations

import io
import logging
import sys
from types import SimpleNamespace

from tools import progress
from tools.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_whole_lines_and_no_bar(monkeypatch, caplog, capsys):
    caplog.set_level(logging.INFO)
    seconds = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: seconds[-1]))
    with Progress(1000, "frame", "bears", initial=200) as bar:
        for now, count, note in ((10.0, 100, ""), (31.0, 210, "12 MB/s"), (40.0, 90, ""), (70.0, 300, "")):
            seconds.append(now)
            bar.add(count, note)
    assert caplog.messages == [
        "bears: 510 frames of 1000 frames, 10.0 frames/s, 12 MB/s, eta 00:49",
        "bears: 900 frames of 1000 frames, 10.0 frames/s, eta 00:10",
    ]
    assert capsys.readouterr().err == ""


def test_bytes_are_told_in_megabytes(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    seconds = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: seconds[-1]))
    with Progress(3_000_000_000, "B", scaled=True) as bar:
        seconds.append(100.0)
        bar.add(1_000_000_000)
    assert caplog.messages == ["1.00GB of 3.00GB, 10.0MB/s, eta 03:20"]


def test_a_terminal_gets_a_bar_that_begins_where_an_earlier_run_ended(monkeypatch, caplog):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(10, "frame", initial=4) as bar:
        bar.add(6, "3 refused")
    assert " 4/10 [" in terminal.getvalue() and "10/10" in terminal.getvalue() and "3 refused" in terminal.getvalue()
    assert caplog.messages == []
