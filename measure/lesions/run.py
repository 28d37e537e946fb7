"""`slicemill measure`: measures masks in parallel, and skips finished cases.

Each case becomes ``NAME.json``, the page ``NAME.html`` and its picture ``NAME.png``, and ``NAME.seg.nrrd`` for 3D
Slicer. A case is finished if its JSON exists and was made from the same files (by size and time; in a store by hash)
with the same settings. At the end, ``cases.csv``, ``lesions.csv``, ``summary.json``, ``colors.ctbl`` and
``report.html`` are written from all records.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from slicemill.common.errors import PairingError
from slicemill.common.failures import explain_failure
from slicemill.common.files import read_json, write_json
from slicemill.common.parallel import map_isolated
from slicemill.common.progress import progress
from slicemill.ct.formats.dicom_objects.options import ENDINGS
from slicemill.measure.lesions.case_page import write_case_page
from slicemill.measure.lesions.cohort import write_cohort
from slicemill.measure.lesions.cohort_page import FailedCase
from slicemill.measure.lesions.dicom_results import find_code_warnings, write_dicom_results
from slicemill.measure.lesions.flags import find_flags
from slicemill.measure.lesions.jobs import MeasureJob
from slicemill.measure.lesions.load import LoadedCase, load_case
from slicemill.measure.lesions.measurements import RIM_MM, measure_case, measure_lesions, round_record
from slicemill.measure.lesions.records import DISCLAIMER, CaseRecord, Stamp, read_record
from slicemill.measure.lesions.slicer3d import write_segmentation

CASE_SUFFIXES = (".html", ".png", ".seg.nrrd", *ENDINGS)
"""Suffixes of a case's files, except its JSON."""


@dataclass(frozen=True, kw_only=True)
class MeasureOutcome:
    """Outcome of a job."""

    name: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    """Reason for a failure."""


@dataclass(frozen=True, kw_only=True)
class EarlierRecord:
    """The record of an earlier run."""

    stamp: Stamp | None
    """None if that run was killed before it finished the case."""


def run(jobs: Sequence[MeasureJob], out: Path, *, workers: int = 1, overwrite: bool = False) -> list[MeasureOutcome]:
    """Measure cases, and write tables and pages to a folder; with `overwrite`, measure finished cases again too."""
    out.mkdir(parents=True, exist_ok=True)
    check_summary(out)
    outcomes: dict[int, MeasureOutcome] = {}
    measure = partial(measure_job, out=out, overwrite=overwrite)
    with (
        progress("measure", len(jobs), "cases") as advance,
        closing(map_isolated(measure, jobs, workers, report_crash)) as measured,
    ):
        for index, outcome in measured:
            outcomes[index] = outcome
            advance(1, "")
    ordered = [outcomes[index] for index in range(len(jobs))]
    records = [read_record(out / f"{outcome.name}.json") for outcome in ordered if outcome.status != "failed"]
    failed = [FailedCase(case=one.name, reason=one.reason) for one in ordered if one.status == "failed"]
    write_cohort(out, records, failed)
    return ordered


def report_crash(job: MeasureJob) -> MeasureOutcome:
    """Return the outcome of a case whose worker process crashed."""
    reason = (
        f"{job.mask}: the worker process crashed, perhaps out of memory; run the command again with fewer --workers."
    )
    return MeasureOutcome(name=job.name, status="failed", reason=reason)


def measure_job(job: MeasureJob, out: Path, *, overwrite: bool = False) -> MeasureOutcome:
    """Measure one case and write its files, the JSON last. Errors are reported in the outcome."""
    try:
        stamp = job.stamp()
        path = out / f"{job.name}.json"
        earlier = find_earlier_record(out, job.name)
        if not overwrite and earlier is not None:
            if earlier.stamp == stamp:
                return MeasureOutcome(name=job.name, status="skipped")
            require_same_source(path, job, earlier)
        case = load_case(job)
        if earlier is None:  # marks the files as written by `measure`, even if this run is killed
            write_json(path, {"case": job.name, "note": DISCLAIMER, "stamp": None})
        record = make_record(job, case, stamp)
        write_case_page(out, record, case.volume, job.viewer_mb)
        write_segmentation(out / f"{job.name}.seg.nrrd", case.volume)
        write_dicom_results(out, job, case)
        write_json(path, record.as_json())
    except Exception as error:  # noqa: BLE001 (any error fails one case)
        return MeasureOutcome(name=job.name, status="failed", reason=explain_failure(error, job.mask).reason)
    return MeasureOutcome(name=job.name, status="done")


def make_record(job: MeasureJob, case: LoadedCase, stamp: Stamp) -> CaseRecord:
    """Measure a case in memory."""
    measured = measure_lesions(case.volume)
    figures = measure_case(case.volume, measured)
    lesions = tuple(map(round_record, measured))
    no_scan = [f"{job.no_scan}, so there is no HU"] if job.no_scan else []
    return CaseRecord(
        case=job.name,
        origin=case.origin(),
        figures=figures,
        lesions=lesions,
        rim_mm=RIM_MM,
        flags=(*no_scan, *find_code_warnings(job, case), *find_flags(case, figures, lesions)),
        stamp=stamp,
    )


def find_earlier_record(out: Path, name: str) -> EarlierRecord | None:
    """Return the record of a case that an earlier run finished or started; None if there is none.

    Raises
    ------
    PairingError
        A file that would be overwritten was not written by `measure`.
    """
    path = out / f"{name}.json"
    if path.exists():
        document = read_json(path)
        if document.get("note") == DISCLAIMER and "stamp" in document:
            return EarlierRecord(stamp=document["stamp"])
        foreign = [path]
    else:
        foreign = [file for suffix in CASE_SUFFIXES if (file := out / f"{name}{suffix}").exists()]
    if foreign:
        raise PairingError(
            f"{foreign[0]}: was not written by slicemill measure and would be overwritten; choose another --out."
        )
    return None


def require_same_source(path: Path, job: MeasureJob, earlier: EarlierRecord) -> None:
    """Check that the record of an earlier run is of the same mask; records of older versions do not tell.

    Raises
    ------
    PairingError
        It is of a mask of the same name in another place.
    """
    source = earlier.stamp.get("source") if isinstance(earlier.stamp, dict) else None
    if source is not None and source != job.source_id:
        raise PairingError(
            f"{path}: is the record of another mask than {job.mask}, with the same name, or the masks were moved. "
            "Choose another --out, or pass --overwrite to replace it."
        )


def check_summary(out: Path) -> None:
    """Check that a folder does not contain the summary of another command.

    Raises
    ------
    PairingError
        The folder contains such a summary.
    """
    path = out / "summary.json"
    if path.exists() and not {"cases", "failed"} <= read_json(path).keys():
        raise PairingError(
            f"{path}: was not written by slicemill measure and would be overwritten; choose another --out."
        )
