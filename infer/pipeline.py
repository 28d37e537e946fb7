"""Scans -> segmentations, reports and pictures: one scan is read ahead and one written behind while one is labelled.

1. `gather` names the jobs; those done before with the same model and unchanged input are skipped.
2. A reader thread decodes the next scan, this thread runs the model, a writer thread compresses and writes.
3. A scan's mask appears last, whole, after its report and picture; then its line in the ledger.
4. A scan that cannot be read or written is a failure with a reason; the others go on.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from infer.batching import Capacity, Filler, Scan, segment_volume
from infer.canvas import Segmented, plan_of
from infer.inputs import Job, LoadedScan, load
from infer.model import Model, open_model, parity_gate
from infer.postprocess import postprocess
from infer.report import answer, make_report, overlay
from store.errors import InputError, ScanError
from store.files import append_line, read_lines, write_csv, write_json
from store.geometry import voxel_ml
from store.nifti import write_volume
from store.picture import save_png
from store.progress import progress
from store.screen import peak_mib

LEDGER, SUMMARY, TABLE = "ledger.jsonl", "summary.json", "summary.csv"
GATE_SLICES = 2

Status = Literal["done", "skipped", "failed", "begun"]
"""`begun` stands only in the ledger: it tells a half-written scan of ours, after a kill, from a file of somebody else."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one scan ended."""

    name: str
    status: Status
    reason: str = ""
    slices: int = 0
    answer: str = ""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended: every scan is accounted for."""

    outcomes: tuple[Outcome, ...]
    seconds: float

    def count(self, status: Status) -> int:
        """Return how many scans ended so."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def slices(self) -> int:
        """Return how many slices were labelled."""
        return sum(outcome.slices for outcome in self.outcomes)


def segment(
    model: Model, loaded: LoadedScan, name: str, advance: Callable[[int], None] = lambda _: None
) -> tuple[Segmented, dict[str, Any]]:
    """Label a scan, post-process the labels as the model's metadata asks, and report."""
    info = model.info
    segmented = segment_volume(model, loaded.volume, loaded.grid.spacing_mm, advance)
    per_voxel = voxel_ml(loaded.grid.affine_lps)
    postprocess(
        segmented.label, info.labels, per_voxel, largest_organ=info.largest_organ, min_lesion_ml=info.min_lesion_ml
    )
    report = make_report(name, loaded.grid, segmented, info)
    return segmented, {**report, "provider": model.provider, "warnings": list(loaded.warnings)}


def segment_file(path: Path, model: Path, *, provider: str = "auto") -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
    """Segment one file; see `slicemill.segment`."""
    opened = open_model(model, provider)  # type: ignore[arg-type]
    segmented, report = segment(opened, load(Job(name=path.name, path=path)), path.name)
    return segmented.label, report


def left_to_do(jobs: Sequence[Job], out: Path, model: Model, *, overwrite: bool) -> tuple[list[Job], list[Outcome]]:
    """Return the jobs that are left, and an outcome for each that is done already."""
    check_places(jobs, out)
    lines = {line.get("name"): line for line in read_lines(out / LEDGER)}
    left, skipped = [], []
    for job in jobs:
        line, there = lines.get(job.name, {}), (out / job.name).exists()
        if overwrite or not there:
            left.append(job)
        elif line.get("source") != job.source_id:
            reason = f"{out / job.name}: was not made from {job.path}; choose another --out, or pass --overwrite."
            skipped.append(Outcome(name=job.name, status="failed", reason=reason))
        elif (
            line.get("status") == "done"
            and line.get("stamp") == job.stamp()
            and line.get("model_sha256") == model.info.sha256
        ):
            skipped.append(
                Outcome(
                    name=job.name, status="skipped", reason="done before with this model", answer=line.get("answer", "")
                )
            )
        else:
            left.append(job)
    return left, skipped


def check_places(jobs: Sequence[Job], out: Path) -> None:
    """Refuse to write a mask over a scan.

    Raises
    ------
    ScanError
        An output would take the place of an input.
    """
    inputs = {job.path.resolve() for job in jobs if job.case_id is None}
    for job in jobs:
        if (out / job.name).resolve() in inputs:
            raise ScanError(f"{out / job.name}: the mask would replace a scan; choose an --out folder of its own.")


def infer(model: Model, jobs: Sequence[Job], out: Path, *, overwrite: bool = False) -> Summary:
    """Segment scans into a folder; the same call again does only what is left.

    Raises
    ------
    ModelError
        The provider's labels differ from the CPU's on the first scan's slices.
    """
    start = time.perf_counter()
    left, outcomes = left_to_do(jobs, out, model, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    gated = model.provider == "cpu"
    with (
        ThreadPoolExecutor(1, "reader") as reader,
        ThreadPoolExecutor(1, "writer") as writer,
        progress("infer", len(left), "scans") as advance,
    ):
        writing: Future[Outcome] | None = None
        slices = 0
        for job, loaded in _read_ahead(reader, left):
            if isinstance(loaded, Outcome):
                _try_note(out, model, job, loaded)
                outcomes.append(loaded)
            else:
                if not gated:
                    _gate(model, loaded)
                    gated = True
                segmented, report = segment(model, loaded, job.name)
                slices += len(loaded.volume)
                if writing:
                    outcomes.append(writing.result())
                writing = writer.submit(_finish, out, model, job, loaded, segmented, report)
            failed = sum(one.status == "failed" for one in outcomes)
            advance(1, f"{slices / (time.perf_counter() - start):,.1f} slices/s, {failed} failed")
        if writing:
            outcomes.append(writing.result())
    summary = Summary(outcomes=tuple(outcomes), seconds=time.perf_counter() - start)
    write_summary(out, model, summary)
    return summary


def _read_ahead(reader: ThreadPoolExecutor, jobs: Sequence[Job]) -> Iterator[tuple[Job, LoadedScan | Outcome]]:
    """Yield each job with its scan, or with its failure; the next one is read meanwhile."""
    pending = reader.submit(_load, jobs[0]) if jobs else None
    for index, job in enumerate(jobs):
        assert pending is not None  # noqa: S101 (one is pending per job)
        loaded = pending.result()
        pending = reader.submit(_load, jobs[index + 1]) if index + 1 < len(jobs) else None
        yield job, loaded


def _load(job: Job) -> LoadedScan | Outcome:
    try:
        return load(job)
    except (InputError, OSError) as error:
        return Outcome(name=job.name, status="failed", reason=_reason(error, job))


def _reason(error: Exception, job: Job) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or job.path}: {error.strerror or error}."
    return str(error)


def _finish(
    out: Path, model: Model, job: Job, loaded: LoadedScan, segmented: Segmented, report: dict[str, Any]
) -> Outcome:
    """Write report, picture and mask of a scan, and its line in the ledger."""
    said = answer(report)
    outcome = Outcome(name=job.name, status="done", slices=len(loaded.volume), answer=said)
    try:
        _note(out, model, job, replace(outcome, status="begun"))
        write_json(out / f"{job.stem}.json", report)
        title = f"{job.stem}  {said}"
        save_png(
            out / f"{job.stem}.png",
            overlay(loaded.volume, segmented.label, model.info.labels, report["lesions"], title),
        )
        mask = loaded.grid.to_file(segmented.label)
        write_volume(out / job.name, loaded.header, np.uint8, mask)
        _note(out, model, job, outcome)
    except (InputError, OSError) as error:
        outcome = Outcome(name=job.name, status="failed", reason=_reason(error, job))
        _try_note(out, model, job, outcome)
    return outcome


def _note(out: Path, model: Model, job: Job, outcome: Outcome) -> None:
    record = {
        "name": job.name,
        "source": job.source_id,
        "status": outcome.status,
        "stamp": job.stamp(),
        "model_sha256": model.info.sha256,
    }
    append_line(
        out / LEDGER, {**record, "provider": model.provider, "answer": outcome.answer, "reason": outcome.reason}
    )


def _try_note(out: Path, model: Model, job: Job, outcome: Outcome) -> None:
    """Note a failure where there is still room to; it is in the summary on the screen in any case."""
    import contextlib

    with contextlib.suppress(OSError):
        _note(out, model, job, outcome)


def _gate(model: Model, loaded: LoadedScan) -> None:
    """Compare the provider with the CPU on slices from the middle of the first scan."""
    middle = loaded.volume[len(loaded.volume) // 2 :][:GATE_SLICES]
    nz, ny, nx = middle.shape
    plan = plan_of(model.info, (nz, ny, nx), loaded.grid.spacing_mm)
    filler = Filler(Capacity(nz, nz * model.info.context))
    filler.add(Scan(plan, plan.seen(middle)))
    batch = filler.next()
    image = np.empty((len(batch.rows), *model.info.size), dtype=np.int16)
    batch.show(image)
    parity_gate(model, open_model(model.path, "cpu"), image, batch.neighbors)


def write_summary(out: Path, model: Model, summary: Summary) -> None:
    """Write the run's summary as JSON, and one row a scan as CSV."""
    rows = [
        {
            "name": outcome.name,
            "status": outcome.status,
            "slices": outcome.slices,
            "answer": outcome.answer,
            "reason": outcome.reason,
        }
        for outcome in sorted(summary.outcomes, key=lambda outcome: outcome.name)
    ]
    write_json(
        out / SUMMARY,
        {
            "model": model.info.name,
            "model_sha256": model.info.sha256,
            "provider": model.provider,
            "scans": {status: summary.count(status) for status in ("done", "skipped", "failed")},
            "slices": summary.slices,
            "seconds": round(summary.seconds, 2),
            "slices_per_second": round(summary.slices / summary.seconds, 2),
            "peak_mib": round(peak_mib(), 1),
            "outcomes": rows,
        },
    )
    write_csv(out / TABLE, rows)
