"""How busy a GPU and its decoders are while something runs, as nvidia-smi tells. Not yet run on a GPU."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

COMMAND = "nvidia-smi"
FIELDS = {
    "utilization.gpu": "GPU",
    "utilization.memory": "GPU memory bus",
    "utilization.decoder": "video decoder",
    "utilization.jpeg": "JPEG decoder",
}
"""What is asked for, and what it is called here; all in percent of the time between two looks."""
OLD_FIELDS = ("utilization.gpu", "utilization.memory")
"""What drivers answer that know nothing of decoders."""
PERIOD_MS = 200


@contextmanager
def watch_gpu(gpu: str | None) -> Iterator[dict[str, float]]:
    """Look at a GPU (its UUID) while the block runs; the dictionary is filled with means in percent when it ends.

    It stays empty where there is no GPU (None), no nvidia-smi, or a unit that the GPU does not have.
    """
    busy: dict[str, float] = {}
    fields = None if gpu is None else _known_fields(gpu)
    if gpu is None or fields is None:
        yield busy
        return
    with subprocess.Popen(
        [*_query(gpu, fields), f"--loop-ms={PERIOD_MS}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield busy
        finally:
            process.terminate()
            lines = (process.communicate()[0] or "").splitlines()
            busy.update(mean_load(fields, lines))


def gpu_name(device: torch.device) -> str | None:
    """UUID of a CUDA device, as nvidia-smi takes it; None for a CPU."""
    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def mean_load(fields: Sequence[str], lines: Sequence[str]) -> dict[str, float]:
    """Means by unit over nvidia-smi's lines of comma-separated percentages; a unit that says [N/A] is left out."""
    rows = [line.split(",") for line in lines]
    columns = zip(*(row for row in rows if len(row) == len(fields)), strict=True)
    found = {}
    for field, column in zip(fields, columns, strict=False):
        numbers = [float(cell) for cell in column if cell.strip().isdecimal()]
        if numbers:
            found[FIELDS[field]] = statistics.fmean(numbers)
    return found


def _query(gpu: str, fields: Sequence[str]) -> list[str]:
    return [COMMAND, f"--id={gpu}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]


def _known_fields(gpu: str) -> Sequence[str] | None:
    """The most fields that the driver answers; None if it answers nothing."""
    for fields in (tuple(FIELDS), OLD_FIELDS):
        try:
            answer = subprocess.run(_query(gpu, fields), capture_output=True, text=True, check=False, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if answer.returncode == 0:
            return fields
    return None
