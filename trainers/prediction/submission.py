"""The archive that a benchmark's server takes.

DAVIS: folders of videos at the top. Its server's own message, quoted in codalab/codalab-competitions issue 2709:
"The folders containing all the frames for each sequence should be placed directly inside the zip without any
subfolder." YouTube-VOS: the same folders below `Annotations`, the layout in which the programs of STCN and RDE write
them; the server's code is not public.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from shards.errors import DataError
from shards.storage.paths import replacing
from trainers.prediction.files import result_path
from trainers.prediction.plan import VideoPlan

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every member: the same label maps give the same archive."""


def write_submission(path: Path, folder: Path, plans: Sequence[VideoPlan], prefix: str = ".") -> int:
    """Write `<prefix>/<video>/<frame>.png` of every frame the benchmark may score; returns how many.

    folder: holds <video>/<frame>.png. PNGs are stored as they are, missing folders above `path` are made. Raises
    DataError for a frame that has no file.
    """
    files = [(plan, frame) for plan in plans for frame in plan.submitted]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for plan, frame in files:
            source = result_path(folder, plan, frame)
            if not source.is_file():
                raise DataError(source, expected="a label map", found="no such file", remedy="segment the video again")
            name = PurePosixPath(prefix) / plan.video / source.name
            archive.writestr(zipfile.ZipInfo(str(name), EPOCH), source.read_bytes())
    return len(files)
