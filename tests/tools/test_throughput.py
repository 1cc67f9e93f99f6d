"""tools/throughput.py by what it prints and writes, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import DataError
from tests.trainers.small_runs import build_shards, plain_config, write_config
from tests.trainers.throughput_numbers import DATA_BOUND, numbers, rank_result
from tools.throughput import throughput
from trainers.throughput.report import Report, compare_reports, html_report, plain_report, text_report, trace_report

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of two clips."""
    folder = tmp_path_factory.mktemp("throughput")
    return write_config(folder / "small.yaml", plain_config(build_shards(folder), folder / "run"))


def test_two_ranks_measure_together_and_the_first_one_tells(config: Path, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "html", "trace")}
    words = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(REPOSITORY / "tools" / "throughput.py"), str(config), "--seconds", "0.5", *words]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(
        "2 processes on cpu, executor cpu; of each, threads: 16 reading, 1 loading, 1 computing; 1 clip of "
    )
    assert result.stdout.count("What if") == 1
    assert "exchange of gradients, not hidden" in result.stdout
    report = json.loads(files["json"].read_bytes())
    assert len(report["ranks"]) == 2
    assert report["verdict"]["words"] in " ".join(result.stdout.split())
    assert report["facts"]["stage"] == "small, from step 0"
    processes = {
        event["args"]["name"]
        for event in json.loads(files["trace"].read_bytes())["traceEvents"]
        if event["name"] == "process_name"
    }
    assert processes == {f"rank {rank}: {run}" for rank in (0, 1) for run in ("data alone", "training")}
    assert files["html"].read_text().count("data:image/png;base64,") == 3


def test_the_report_says_the_same_as_text_page_and_plain_values() -> None:
    report = Report([rank_result(DATA_BOUND)], {"config": "<x>.yaml"})
    text, page, plain = text_report(report), html_report(report, "Throughput"), plain_report(report)
    assert text.startswith(report.verdict.words)
    assert plain["verdict"]["wall"] == "image decode"
    assert plain["ready_batches"] == [(-0.5, 1), (0.0, 0), (0.5, 1), (1.0, 0)]
    assert json.loads(json.dumps(plain))["numbers"]["at"]["loading_threads"] == 2
    assert "&lt;x&gt;.yaml" in page
    assert "<x>" not in page
    row = next(line for line in text.splitlines() if line.startswith("image decode"))
    assert row.split() == ["image", "decode", "160.00", "2", "threads", "20.0", "80%"]
    assert "http" not in page.replace("http-equiv", ""), "nothing is loaded from elsewhere"
    assert "GPU busy in training: 41 %" in text
    assert trace_report(report)["traceEvents"][0]["args"]["name"] == "rank 0: data alone"


def test_two_reports_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path, found in zip(paths, (DATA_BOUND, numbers(data_ms=50.0)), strict=True):
        path.write_text(json.dumps(plain_report(Report([rank_result(found)], {}))))
    header, rows = compare_reports(*(json.loads(path.read_bytes()) for path in paths))
    assert header == ["ms per step", "first", "second", "second / first"]
    assert rows[0] == ["data", "100.00", "50.00", "0.50"]
    assert throughput(["--compare", *map(str, paths), "--html", str(tmp_path / "c.html")]) == 0
    assert f"{paths[0]}: data-bound: 60% of the step" in capsys.readouterr().out
    assert "second / first" in (tmp_path / "c.html").read_text()
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match="expected a report that --json wrote"):
        throughput(["--compare", *map(str, paths)])


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "give a CONFIG to measure, or --compare A B"), (["x.yaml", "--seconds", "0"], "--seconds must be above 0")],
)
def test_wrong_words_are_one_line_and_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        throughput(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_unknown_stage_is_refused_with_those_there_are(config: Path) -> None:
    with pytest.raises(ValueError, match="no stage 'big'; there are: small"):
        throughput([str(config), "--stage", "big"])
