"""Build a shard set: independent shards, resumable at shard granularity, the manifest last."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from shards.errors import DataError
from shards.findings import REJECTED, Finding, Findings
from shards.index import INDEX_FOLDER, write_index
from shards.jobs import DoneShard, Progress, Report, ShardJob
from shards.manifest import MANIFEST, Manifest, encode_json, read_manifest
from shards.plan import BuildRequest, Plan, shard_name
from shards.storage import write_bytes
from shards.work import run_jobs

# Holds what a killed build needs to go on; gone when the set is complete.
WORK_FOLDER = "building"
_PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A complete set. already_there: it was complete before, nothing was done."""

    manifest: Manifest
    root: Path
    already_there: bool


def build(request: BuildRequest, plan: Plan, report: Report) -> BuildResult:
    """Write the set of a plan, or go on where a killed build of the same plan stopped.

    `report` gets the work done since its last call. Raises DataError for refused input (`on_bad="stop"`) and for a
    folder that holds something else; whatever was finished by then is used by the next run.
    """
    root = request.root
    if (root / MANIFEST).is_file():
        return _finished(root, plan)
    work = root / WORK_FOLDER
    _claim(root, work, plan)
    with _locked(work):
        findings = Findings(request.on_bad, request.sources[0])
        findings.extend(plan.findings)
        jobs = plan_jobs(request, plan)
        waiting = [job for job in jobs if not job.is_done()]
        resumed = sum(plan.sizes[name].num_frames for job in jobs if job not in waiting for name in job.names)
        report(Progress(resumed, 0, 0))
        run_jobs(waiting, plan.source, request, report)
        done = [job.read() for job in jobs]
        for shard in done:
            findings.extend(shard.findings)
        manifest = _complete(request, plan, list(zip(jobs, done, strict=True)), findings.list)
    shutil.rmtree(work)
    return BuildResult(manifest, root, already_there=False)


def plan_jobs(request: BuildRequest, plan: Plan) -> list[ShardJob]:
    """One job for each shard of the plan."""
    work = request.root / WORK_FOLDER
    return [
        ShardJob(request.root / shard_name(request.data_set, number), work, names)
        for number, names in enumerate(plan.shards)
    ]


def _complete(
    request: BuildRequest, plan: Plan, shards: list[tuple[ShardJob, DoneShard]], findings: list[Finding]
) -> Manifest:
    """Write index, rejected.jsonl and the manifest over finished shards."""
    root = request.root
    kept = [(job, shard.facts) for job, shard in shards if shard.facts is not None]
    if not kept:
        first = next(finding for finding in findings if finding.severity == "refused")
        raise DataError(
            request.sources[0],
            expected="at least one usable video",
            found=f"{len(plan.sizes)} videos, all refused, the first because of {first.path}: {first.reason}",
            remedy="mend the source",
        )
    write_index(root / INDEX_FOLDER, (job.read_rows() for job, _ in kept))
    write_bytes(root / REJECTED, b"".join(finding.encode() for finding in findings))
    severities = Counter(finding.severity for finding in findings)
    manifest = Manifest(
        name=request.data_set,
        kind=plan.source.kind,
        resolution=plan.source.resolution,
        splits=_count_splits(job for job, _ in kept),
        mask_codec=request.mask_codec,
        shard_size=request.shard_size,
        source=plan.digest,
        shards=tuple(facts for _, facts in kept),
        num_videos=sum(facts.videos for _, facts in kept),
        num_frames=sum(facts.frames for _, facts in kept),
        refused=severities["refused"],
        warnings=severities["warning"] + severities["repaired"],
    )
    write_bytes(root / MANIFEST, manifest.encode())
    return manifest


def _count_splits(jobs: Iterator[ShardJob]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for job in jobs:
        for splits in job.read_rows()["videos"].column("splits").to_pylist():
            counts.update(splits)
    return dict(counts)


def _finished(root: Path, plan: Plan) -> BuildResult:
    manifest = read_manifest(root)
    if manifest.source != plan.digest:
        raise _other_build(root, "a finished set of other arguments or another source")
    shutil.rmtree(root / WORK_FOLDER, ignore_errors=True)
    return BuildResult(manifest, root, already_there=True)


def _claim(root: Path, work: Path, plan: Plan) -> None:
    """Make the folder of a new build, or see that the unfinished one in it is of this plan."""
    record = work / _PLAN
    if record.is_file():
        if json.loads(record.read_bytes())["digest"] != plan.digest:
            raise _other_build(root, "an unfinished build of other arguments or another source")
        return
    strangers = [path.name for path in root.iterdir() if path.name != WORK_FOLDER] if root.is_dir() else []
    if strangers:
        raise _other_build(root, f"files that no build left there ({sorted(strangers)[0]})")
    work.mkdir(parents=True, exist_ok=True)
    write_bytes(record, encode_json({"digest": plan.digest}))


def _other_build(root: Path, found: str) -> DataError:
    return DataError(
        root,
        expected="a new folder, or a build of the same arguments and source",
        found=found,
        remedy="give another --name or folder, or remove this one",
    )


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Hold the build alone; the lock ends with the process, however it ends."""
    with (work / "lock").open("wb") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise DataError(
                work.parent,
                expected="one build at a time",
                found="another one running",
                remedy="wait for it or stop it",
            ) from None
        yield


def silent(progress: Progress) -> None:
    """A report for callers that show none."""
