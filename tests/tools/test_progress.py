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
        "bears: 510/1000 frames, 10.0 frames/s, 12 MB/s, eta 00:49",
        "bears: 900/1000 frames, 10.0 frames/s, eta 00:10",
    ]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_begins_where_an_earlier_run_ended(monkeypatch, caplog):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(10, "frame", initial=4) as bar:
        bar.add(6, "3 refused")
    assert " 4/10 [" in terminal.getvalue() and "10/10" in terminal.getvalue() and "3 refused" in terminal.getvalue()
    assert caplog.messages == []
