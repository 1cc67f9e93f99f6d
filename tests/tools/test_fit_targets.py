"""tools/fit_targets.py says what it fitted and what the cache holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from shards.building.build import build, silent
from shards.building.plan import BuildRequest, make_plan
from shards.sources.moving_shapes import MovingShapes, write_moving_shapes
from tools.fit_targets import fit_targets


@pytest.mark.usefixtures("one_thread")
def test_a_second_run_finds_everything_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = MovingShapes(num_train=1, num_val=0, num_frames=4, height=72, width=96, max_objects=1)
    write_moving_shapes(tmp_path / "raw", shapes)
    request = BuildRequest("davis2017", (tmp_path / "raw",), tmp_path)
    build(request, make_plan(request), silent)
    stage = {
        "name": "small",
        "steps": 1,
        "batch_size": 1,
        "data": [{"path": str(request.root), "split": "train"}],
        "recipe": {"name": "mtmfi", "size": [48, 64], "visibility": "area"},
        "learning_rate": [[0.0, 1.0e-3]],
        "objective": {"name": "mtmfi", "num_channels": 2, "num_samples": 2, "hole": "grey", "init_iterations": [1]},
    }
    stage["objective"] |= {"update_iterations": [1], "cache": True}  # type: ignore[operator]
    model = {"name": "mtmfi", "trunk": "resnet18", "base": 4}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": model, "stages": [stage], "device": "cpu", "threads": 1}))
    words = []
    for _ in range(2):
        assert fit_targets([str(path)]) == 0
        words.append(capsys.readouterr().out)
    assert "small: 4 of 4 target models fitted" in words[0]
    assert "small: 0 of 4 target models fitted" in words[1]
    each = 16 + 4 * 2 * ((8 + 9) + (16 + 9)) + 4
    assert f"4 target models, 0.0 MB, {each / 1e3:.1f} kB each" in words[1]
