"""Every command of the README is run as it stands, after `make demo`; recipes for GPUs are cut to two steps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.shards.other_trees import write_youtube

REPOSITORY = Path(__file__).resolve().parent.parent
DEMO = REPOSITORY / "demo_output"
SMALL = "'stages.0.data=[{path: data/davis2017}]' stages.0.steps=2 stages.0.batch_size=2"
SMALLER = {
    "tools/train.py rde_stage3 start_from": f"{SMALL} model.width=0.0625 stages.0.recipe.size=64 start_from=null",
    "tools/train.py stm_cycle": f"{SMALL} model.arch=resnet18 model.width=0.0625 model.weights=null"
    " stages.0.accumulate=1",
    "tools/train.py mtmfi": f"{SMALL} model.trunk=resnet18 model.trunk_weights=null stages.0.recipe.size=64",
}
"""What is added to a command that would take days."""


def commands() -> list[list[str]]:
    """The lines of each block of commands of the README, comments cut off."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    return [[line.partition("  #")[0].strip() for line in block.splitlines()] for block in blocks]


def run(line: str, folder: Path) -> str:
    """Run a line in a shell as in an activated environment; its output. Fails unless its status is 0."""
    line += "".join(f" {words}" for start, words in SMALLER.items() if start in line)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 0, f"{line}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


@pytest.mark.skipif(not (DEMO / "run" / "checkpoint-500.pt").is_file(), reason="make demo has not been run")
def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    for name in ("shards", "pipelines", "models", "trainers", "tools", "demo_output"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to/DAVIS").symlink_to(DEMO / "davis")
    square = np.zeros((40, 56), np.uint8)
    square[10:30, 15:40] = 1
    write_youtube(
        tmp_path / "path/to/YouTubeVOS",
        "train",
        {"a video": {f"{frame:05d}": square for frame in range(0, 25, 5)}},
        {"a video": {"1": {"category": "square", "frames": [f"{frame:05d}" for frame in range(0, 25, 5)]}}},
    )
    lines = [line for block in commands() for line in block if not line.startswith(". ")]
    assert len(lines) > 10
    said = {line: run(line, tmp_path) for line in lines}
    scores = next(text for line, text in said.items() if line.startswith("python tools/evaluate.py"))
    assert "J&F-Mean" in scores
    assert (tmp_path / "tour/back/JPEGImages/480p").is_dir()
