"""The shape of the tree is a promise: imports point down, tools alone speak to people, functions stay readable."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ALLOWED = {
    "shards": set(),
    "models": set(),
    "pipelines": {"shards"},
    "trainers": {"shards", "pipelines", "models"},
    "tools": {"shards", "pipelines", "models", "trainers"},
}
# Packages that only these modules may import, and only when it is used: they are slow to load or may be missing.
CONFINED = {
    "nvidia": {"pipelines/executors/dali.py", "pipelines/executors/dali_naive.py"},
    "imgaug": {"pipelines/executors/paper_imgaug.py"},
}
FILES = sorted(path for package in ALLOWED for path in (REPOSITORY / package).rglob("*.py"))
EXECUTABLES = sorted(
    path for path in (REPOSITORY / "tools").glob("*.py") if "\nif __name__ ==" in path.read_text(encoding="utf-8")
)


def imported_packages(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_down_only(path: Path) -> None:
    relative = path.relative_to(REPOSITORY)
    package = relative.parts[0]
    names = imported_packages(ast.parse(path.read_text(encoding="utf-8")))
    upward = names & (set(ALLOWED) - ALLOWED[package] - {package})
    assert not upward, f"{relative} imports {sorted(upward)}"
    if package == "shards":
        assert not names & {"torch", "nvidia"}, f"{relative}: shards reads bytes, without torch or DALI"
    for confined, owners in CONFINED.items():
        assert confined not in names or str(relative) in owners, f"{relative} imports {confined}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_and_functions_stay_within_the_reading_budget(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, "a file above 400 lines holds two ideas"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 80, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_only_tools_print_and_exit(path: Path) -> None:
    if path.is_relative_to(REPOSITORY / "tools"):
        pytest.skip("tools are for that")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"print", "sys.exit", "exit"}, f"line {node.lineno}"


def test_most_functions_are_short() -> None:
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert lengths[int(0.9 * len(lengths))] <= 40


@pytest.mark.parametrize("path", EXECUTABLES, ids=lambda path: path.name)
def test_every_tool_runs_as_a_file_from_anywhere(path: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, path, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage:")


@pytest.mark.parametrize("path", EXECUTABLES, ids=lambda path: path.name)
def test_every_tool_answers_a_wrong_option_with_one_line_and_status_2(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--no-such-option"])
    with pytest.raises(SystemExit) as ending:
        importlib.import_module(f"tools.{path.stem}").main()  # in this process: torch is imported once, not per tool
    assert ending.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_every_tool_has_a_console_script() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for path in EXECUTABLES:
        assert f'vosforge-{path.stem.replace("_", "-")} = "tools.{path.stem}:main"' in text


def test_importing_the_packages_neither_seeds_nor_loads_dali() -> None:
    code = (
        "import sys, random; state = random.getstate()\n"
        "import pipelines.types, models.rde, trainers.running.loop, shards.reader\n"
        "assert random.getstate() == state\n"
        "assert 'nvidia.dali' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))])
def test_what_a_page_names_is_there(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    missing = [link for link in links if not (REPOSITORY / page).parent.joinpath(link).exists()]
    named = re.findall(rf"`((?:{'|'.join([*ALLOWED, 'tests'])})/[\w/]+\.(?:py|yaml|sh))\b", text)
    missing += [name for name in named if not (REPOSITORY / name).exists()]
    assert not missing
