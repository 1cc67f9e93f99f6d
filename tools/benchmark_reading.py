"""The figures of `benchmark.py reading` as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.benchmarks.reading import ReadingCase, StartCost


def reading_table(start: StartCost, cases: Sequence[ReadingCase]) -> str:
    """What the start cost, then a table for each storage and order; the plan that the model picked is marked."""
    opened = f"opened in {start.open_seconds:.2f} s, first plan after {start.first_plan_seconds:.2f} s"
    memory = f"{start.private_mb:.0f} MB of each process, {start.shared_mb:.0f} MB shared"
    later = f"{start.later_private_mb:.0f} MB of each, {start.later_shared_mb:.0f} MB shared"
    lines = [
        f"{start.frames} frames: {opened} ({start.wall_seconds:.1f} s wall); {memory};",
        f"after plans from the whole stage: {later}",
        "\nclips/s are of wall time: nearly all of it is waiting for the slowed storage",
    ]
    for case in cases:
        probed = (
            f"{1e3 * case.probed[0]:.1f} ms, {case.probed[1] / 1e6:.0f} MB/s, {1e3 * case.request_cpu:.2f} ms of CPU"
        )
        storage = f"{1e3 * case.latency:.0f} ms, {case.bandwidth / 1e6:.0f} MB/s"
        lines.append(f"\n{storage} (probed: {probed}), {case.threads} requests at a time, {case.order} order")
        lines.append(
            f"{'plan':<12}{'predicted':>10}{'clips/s':>9}{'CPU ms':>8}{'requests':>10}{'MB/clip':>9}{'read/used':>11}"
        )
        for name, row in case.plans.items():
            figures = f"{row.predicted:>10.1f}{row.measured:>9.1f}{row.cpu_ms:>8.2f}"
            figures += f"{row.requests:>10.2f}{row.megabytes:>9.2f}"
            mark = "   <- picked" if name == case.chosen else ""
            lines.append(f"{name:<12}{figures}{row.amplification:>11.2f}{mark}")
    return "\n".join(lines)
