"""Build a shard set: independent shards, resumable at shard granularity, on one machine or many, the manifest last."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.building.jobs import Progress, Report, ShardJob
from shards.building.plan import WORK_FOLDER, BuildRequest, Plan, members_folder, shard_name
from shards.building.work import run_jobs
from shards.errors import DataError
from shards.findings import Finding, Findings, write_findings
from shards.index.derive import INDEX_FOLDER, write_index
from shards.locks import hold_build, hold_claim
from shards.manifest import CREATED_BY, MANIFEST, Manifest, read_manifest
from shards.sources.types import Source
from shards.storage.paths import Location, list_folder, remove_tree, remove_unfinished, write_bytes

logger = logging.getLogger(__name__)

# Holds what a killed build needs to go on; gone when the set is complete.
_PLAN = "plan.json"

# Runs jobs wherever; `work.run_jobs` on this machine, `cluster.run_on_dask` on many.
Engine = Callable[[list[ShardJob], Source, BuildRequest, Report], None]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A complete set. already_there: it was complete before, nothing was done."""

    manifest: Manifest
    root: Location
    already_there: bool


@dataclass(frozen=True, slots=True)
class Part:
    """One of `count` equal shares of a build, numbered from 1: every count-th shard from shard number - 1 on."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"parts are 1/N to N/N, not {self.number}/{self.count}")


def build(request: BuildRequest, plan: Plan, report: Report, run: Engine = run_jobs) -> BuildResult:
    """Write the set of a plan, or go on where a killed build of the same arguments stopped.

    Shards whose files have changed since, or that were made with refused input left out where that stops this build,
    are made again. `report` gets the work done since its last call. Raises DataError for refused input
    (`on_bad="stop"`) and for a folder that holds something else; whatever was finished by then is used by the next run.
    """
    root, work = request.root, request.root / WORK_FOLDER
    if (root / MANIFEST).is_file():
        return _finished(request, plan)
    _begin(request, plan)
    with hold_build(work, alone=True):
        if (root / MANIFEST).is_file():  # another one finished it meanwhile
            return _finished(request, plan)
        _claim(root, plan, alone=True)
        remove_unfinished(root)
        remove_unfinished(work)
        jobs = plan_jobs(request, plan)
        _run_waiting(jobs, plan, request, report, run)
        remove_unfinished(root)  # of workers that died in mid-shard while others did their work
        manifest = _complete(request, plan, jobs)
    _clear(root)
    return BuildResult(manifest, root, already_there=False)


def build_part(request: BuildRequest, plan: Plan, report: Report, part: Part, run: Engine = run_jobs) -> int:
    """Make the shards of one part, beside any number of machines that make others. Returns how many shards it has.

    The folder is all they share. `finish_build` makes a set of the shards when all parts are done.
    """
    root = request.root
    jobs = plan_jobs(request, plan)[part.number - 1 :: part.count]
    if (root / MANIFEST).is_file():
        _finished(request, plan)
        return len(jobs)
    _begin(request, plan)
    with hold_build(root / WORK_FOLDER, alone=False):
        _claim(root, plan, alone=False)
        _run_waiting(jobs, plan, request, report, run)
    return len(jobs)


def finish_build(request: BuildRequest, plan: Plan) -> BuildResult:
    """Make a set of the shards that parts have made, which are not compared with the source again.

    Raises DataError if any is missing, or was made with refused input left out where that should stop the build.
    """
    root, work = request.root, request.root / WORK_FOLDER
    if (root / MANIFEST).is_file():
        return _finished(request, plan)
    jobs = plan_jobs(request, plan)
    _require_made(root, jobs)
    with hold_build(work, alone=True):
        if (root / MANIFEST).is_file():
            return _finished(request, plan)
        _claim(root, plan, alone=False)
        remove_unfinished(root)
        manifest = _complete(request, plan, jobs)
    _clear(root)
    return BuildResult(manifest, root, already_there=False)


def read_listing(request: BuildRequest) -> bytes | None:
    """The plan that a part of this build has left for the others, for `make_plan`; None if there is none yet."""
    record = request.root / WORK_FOLDER / _PLAN
    return record.read_bytes() if record.is_file() else None


def is_unfinished(request: BuildRequest) -> bool:
    """Whether the folder holds a build that the same request would go on with; of a store: whether it may."""
    record = request.root / WORK_FOLDER / _PLAN
    try:
        return not isinstance(record, Path) or record.is_file()
    except OSError:
        return False


def plan_jobs(request: BuildRequest, plan: Plan) -> list[ShardJob]:
    """One job for each shard of the plan."""
    work = request.root / WORK_FOLDER
    return [
        ShardJob(request.root / shard_name(request.data_set, number), work, tuple(plan.sizes[name] for name in names))
        for number, names in enumerate(plan.shards)
    ]


def _require_made(root: Location, jobs: list[ShardJob]) -> None:
    missing = [(number, job.path.stem) for number, job in enumerate(jobs) if not job.is_made()]
    if missing:
        listed = ", ".join(name for _, name in missing[:8]) + ", ..." * (len(missing) > 8)
        raise DataError(
            root,
            expected=f"{len(jobs)} finished shards",
            found=f"{len(jobs) - len(missing)}, without {listed}",
            remedy=f"run --part I/N again for these (shard n is in part n % N + 1, {missing[0][0]} is the first)",
        )


def _run_waiting(jobs: list[ShardJob], plan: Plan, request: BuildRequest, report: Report, run: Engine) -> None:
    waiting = [job for job in jobs if not job.is_current(plan.source, request.on_bad)]
    again = sum(job.side_file.is_file() for job in waiting)
    if again:
        logger.info("%d finished shards are made again: their files, or --on-bad, are others now", again)
    report(Progress(sum(job.num_frames for job in jobs) - sum(job.num_frames for job in waiting), 0, 0))
    if waiting:
        run(waiting, plan.source, request, report)


def _complete(request: BuildRequest, plan: Plan, jobs: list[ShardJob]) -> Manifest:
    """Write index, rejected.jsonl and the manifest over finished shards."""
    root = request.root
    done = [job.read() for job in jobs]
    findings = [*plan.findings, *(finding for shard in done for finding in shard.findings)]
    Findings(request.on_bad, plan.source.root).extend(findings)  # parts may have been made with another --on-bad
    kept = [(job, shard.facts) for job, shard in zip(jobs, done, strict=True) if shard.facts is not None]
    if not kept:
        raise _nothing_usable(request, plan, findings)
    _remove_others(request, {facts.name for _, facts in kept})
    write_index(root / INDEX_FOLDER, (job.read_rows() for job, _ in kept))
    rejected = write_findings(root, findings)
    severities = Counter(finding.severity for finding in findings)
    manifest = Manifest(
        name=request.data_set,
        kind=plan.source.kind,
        resolution=plan.source.resolution,
        splits=_count_splits(job for job, _ in kept),
        mask_codec=request.target(plan.source).codec,
        options=request.options.record(),
        shard_size=request.shard_size,
        source=plan.digest,
        shards=tuple(facts for _, facts in kept),
        num_videos=sum(facts.videos for _, facts in kept),
        num_frames=sum(facts.frames for _, facts in kept),
        refused=severities["refused"],
        warnings=severities["warning"] + severities["repaired"],
        rejected_sha256=rejected,
    )
    write_bytes(root / MANIFEST, manifest.encode())
    return manifest


def _remove_others(request: BuildRequest, kept: set[str]) -> None:
    """Remove shards of an earlier plan: a source that was mended in mid-build may fill fewer."""
    for entry in list_folder(request.root):
        if re.fullmatch(rf"{request.data_set}-[0-9]+\.tar", entry.name) and entry.name not in kept:
            (request.root / entry.name).unlink()


def _nothing_usable(request: BuildRequest, plan: Plan, findings: list[Finding]) -> DataError:
    first = next(finding for finding in findings if finding.severity == "refused")
    return DataError(
        request.sources[0],
        expected="at least one usable video",
        found=f"{len(plan.sizes)} videos, all refused, the first because of {first.path}: {first.reason}",
        remedy="mend the source",
    )


def _count_splits(jobs: Iterator[ShardJob]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for job in jobs:
        for splits in job.read_rows()["videos"].column("splits").to_pylist():
            counts.update(splits)
    return dict(counts)


def _finished(request: BuildRequest, plan: Plan) -> BuildResult:
    root = request.root
    manifest = read_manifest(root)
    if manifest.source != plan.digest:
        raise _other_build(root, "a finished set of other arguments or another source")
    if request.on_bad == "stop" and manifest.refused:
        raise _other_build(root, f"a finished set that leaves out {manifest.refused} refused inputs (--on-bad skip)")
    _clear(root)
    return BuildResult(manifest, root, already_there=True)


def _clear(root: Location) -> None:
    """Remove what only an unfinished build needs: its folder and, where that is in a store, the lists of tars here."""
    remove_tree(root / WORK_FOLDER)
    remove_tree(members_folder(root))


def _begin(request: BuildRequest, plan: Plan) -> None:
    """Make the folder of a new build. Raises DataError where lists name no video, before anything is left behind."""
    Findings(request.on_bad, plan.source.root).extend(plan.findings)
    work = request.root / WORK_FOLDER
    _require_folders(request.root)
    if not work.is_dir():
        _refuse_strangers(request.root)
    work.mkdir(parents=True, exist_ok=True)


def _require_folders(root: Location) -> None:
    """Raise DataError if the output, or a folder above it, is a file."""
    if isinstance(root, Path):
        for folder in (root, *root.parents):
            if folder.exists() and not folder.is_dir():
                raise DataError(folder, expected="a folder for the set", found="a file", remedy="give another OUT")


def _claim(root: Location, plan: Plan, *, alone: bool) -> None:
    """Leave the record of a new build, or see that the unfinished one in the folder is of these arguments.

    Parts must be of one plan. A build alone may go on with another one of the same arguments: its source was mended.
    """
    record = root / WORK_FOLDER / _PLAN
    with hold_claim(root / WORK_FOLDER):
        if not record.is_file():
            _refuse_strangers(root)
            write_bytes(record, plan.encode())
            return
        found = json.loads(record.read_bytes())
        if found.get("created_by") != CREATED_BY:
            raise _other_build(
                root, f"an unfinished build of another version, which writes other bytes than {CREATED_BY}"
            )
        if found["arguments"] != plan.arguments:
            raise _other_build(root, "an unfinished build of other arguments")
        if found["digest"] != plan.digest:
            if not alone:
                raise _other_build(root, "parts of a build whose source was another one, or has changed meanwhile")
            write_bytes(record, plan.encode())


def _refuse_strangers(root: Location) -> None:
    strangers = [entry.name for entry in list_folder(root) if entry.name != WORK_FOLDER]
    if strangers:
        raise _other_build(root, f"files that no build left there ({strangers[0]})")


def _other_build(root: Location, found: str) -> DataError:
    return DataError(
        root,
        expected="a new folder, or a build of the same arguments and source",
        found=found,
        remedy="give another --name or folder, or remove this one",
    )


def silent(progress: Progress) -> None:
    """A report for callers that show none."""
