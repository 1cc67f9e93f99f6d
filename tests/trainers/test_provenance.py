"""Which commit made a run, and what its files had beside it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from trainers.records import provenance
from trainers.records.provenance import read_changes, read_commit


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit, taken for the program's own."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "code.py").write_bytes(b"a = 1\r\n\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *words], cwd=root, check=True)
    monkeypatch.setattr(provenance, "REPOSITORY", root)
    return root


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def test_a_clean_checkout_is_its_commit_and_a_changed_one_says_so(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").write_text("not the program's")
    assert (read_commit(), read_changes()) == (head, b"")
    (checkout / "code.py").write_bytes(b"a = 2\r\n\n")
    assert read_commit() == f"{head}+changes"


def test_the_changes_bring_back_the_files_that_ran(checkout: Path, tmp_path: Path) -> None:
    ran = b"a = 2  # \xff\r\n\n \n"
    (checkout / "code.py").write_bytes(ran)
    (tmp_path / "changes.patch").write_bytes(read_changes())
    git(checkout, "checkout", "-q", "code.py")
    git(checkout, "apply", str(tmp_path / "changes.patch"))
    assert (checkout / "code.py").read_bytes() == ran


def test_a_copy_inside_somebody_elses_checkout_is_not_of_their_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = checkout / "site-packages"
    copy.mkdir()
    monkeypatch.setattr(provenance, "REPOSITORY", copy)
    assert (read_commit(), read_changes()) == ("unknown", b"")


def test_outside_git_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    assert (read_commit(), read_changes()) == ("unknown", b"")
