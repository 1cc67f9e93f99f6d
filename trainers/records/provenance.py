"""What made a result: versions, commit, and where each package was imported from."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("shards", "pipelines", "models", "trainers")
LIBRARIES = ("vosforge", "torch", "numpy", "opencv-python-headless", "simplejpeg", "lz4", "pyarrow")
DALI = ("nvidia-dali-cuda110", "nvidia-dali-cuda120", "nvidia-dali-cuda130")


def read_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that touch a number, of DALI if it is installed, and our commit."""
    versions = {"python": platform.python_version(), "commit": read_commit()}
    for name in (*LIBRARIES, *DALI):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name not in DALI:
                versions[name] = "not installed"
    return versions


def read_commit() -> str:
    """Commit of this checkout, with "+changes" if files differ from it; "unknown" outside git."""
    top = _git("rev-parse", "--show-toplevel").strip()
    if (
        not top or Path(os.fsdecode(top)).resolve() != REPOSITORY
    ):  # a copy inside somebody else's checkout is not of its commit
        return "unknown"
    commit = _git("rev-parse", "HEAD").decode().strip() or "unknown"
    return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def read_changes() -> bytes:
    """How the files of this checkout differ from its commit, as a patch; b"" where they do not, or nothing is known."""
    return _git("diff", "--no-ext-diff", "--binary", "HEAD") if read_commit().endswith("+changes") else b""


def package_folders() -> dict[str, str]:
    """Where each package of ours that is loaded was imported from."""
    return {name: str(Path(sys.modules[name].__file__ or "").parent) for name in PACKAGES if name in sys.modules}


def _git(*arguments: str) -> bytes:
    try:
        result = subprocess.run(
            # A checkout of another user, as images of containers have it, is read all the same.
            ["git", "-c", f"safe.directory={REPOSITORY}", *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return result.stdout if result.returncode == 0 else b""
