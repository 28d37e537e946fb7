"""Ledger of an output folder: one JSON line for each scan that has begun or ended; lines are never rewritten.

A mask is done when its scan's last line has the status "done", the same model, the same options and an unchanged input,
and it exists, with its candidates if they are requested.
A line "begun" marks the outputs as made by `infer`: after a kill, the next run may replace them.
"""

import contextlib
import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from slicemill.common.documents import from_document, to_document
from slicemill.common.errors import InputError
from slicemill.common.files import open_stream, parse_lines, sha256_of_file
from slicemill.common.ledger import LEDGER, Ledger
from slicemill.common.locks import try_claim
from slicemill.infer.candidates.records import ENDING as CANDIDATES
from slicemill.infer.candidates.records import is_candidate_table
from slicemill.infer.inputs.gather import MASK_SUFFIXES
from slicemill.infer.inputs.jobs import Job, Stamp
from slicemill.infer.network.model import Model
from slicemill.infer.run.options import InferOptions, without_dicom
from slicemill.infer.run.outputs import extra_names, output_names
from slicemill.infer.run.summary import ScanOutcome

UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part.*")
"""Temporary file name of `slicemill.common.files.atomic_write`; the group is the final name."""


@dataclass(frozen=True, kw_only=True)
class LedgerLine:
    """One line of ``ledger.jsonl``. The fields are its keys, in this order."""

    name: str
    """Relative path of the scan's mask."""
    source: str = ""
    """Hash of the scan's location (`Job.source_id`)."""
    status: Literal["begun", "done", "skipped", "failed"]
    stamp: Stamp = ()
    """Version tag of the scan's content when it was read (`Job.stamp`)."""
    model_sha256: str = ""
    options: dict[str, bool] = field(default_factory=dict)
    """Options that change outputs, where they differ from the defaults (`InferOptions.as_json`)."""
    provider: str = ""
    """Execution provider that ran the network."""
    slices: int = 0
    """Number of slices of the scan; older ledgers lack it."""
    labeled: int = 0
    """Number of slices that the network labeled; older ledgers lack it."""
    answer: str = ""
    """Main result as one line (`ScanReport.answer`)."""
    reason: str = ""
    """Reason of the failure."""
    warnings: str = ""
    """Warnings about the scan, separated by semicolons; written only if there are any."""
    extras: tuple[str, ...] = ()
    """Name endings of the files next to the mask (`slicemill.infer.run.outputs.extra_names`); written only if any."""
    passing: bool = False
    """Whether another run may succeed, so that it tries the scan again; written only if true."""
    mask_sha256: str = ""
    """Hash of the mask's file; written only for DICOM series that are done."""

    @property
    def outcome(self) -> ScanOutcome:
        """Return the outcome of a scan that has ended."""
        assert self.status != "begun"  # noqa: S101 (such a line is no outcome)
        return ScanOutcome(
            name=self.name,
            status=self.status,
            reason=self.reason,
            slices=self.slices,
            labeled=self.labeled,
            answer=self.answer,
            warnings=self.warnings,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the line as JSON values."""
        document = to_document(self)
        optional = ("warnings", "extras", "passing", "mask_sha256")
        return {key: value for key, value in document.items() if value or key not in optional}


class RunLedger:
    """The ledger of an output folder for one model and its options; safe to use from several threads."""

    def __init__(self, out: Path, model: Model, options: InferOptions) -> None:
        self.out = out
        self.options = options
        self.info = model.info
        self._model = model
        self._ledger = Ledger(out / LEDGER)
        self._lock = threading.Lock()
        self._lines: dict[str, LedgerLine] = {}
        """Last line of each scan, by name."""
        self._extras = tuple(extra_names(model.info.labels, options))
        self._names_of: dict[str, set[str]] = {}
        """Names of the scans of each stem."""
        self._written: dict[str, set[str]] = {}
        """Name endings of the files that runs have written next to each mask, by its name."""
        self._sources: dict[str, str] = {}
        """Hash of the location of the scan that each mask was made from, by its name."""
        self._read_bytes = 0
        self._are_tables_removed = False
        self._read_new_lines()

    def _read_new_lines(self) -> list[str]:
        """Read lines that this and other runs have appended, and return their scans; leave an incomplete line."""
        path = self.out / LEDGER
        if not path.exists():
            return []
        names = []
        with open_stream(path) as stream:
            stream.seek(self._read_bytes)
            data = stream.read() or b""
        complete = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(complete)
        for record in parse_lines(complete):
            with contextlib.suppress(InputError):  # a line of another command
                line = from_document(LedgerLine, record, str(path))
                self._lines[line.name] = line
                self._names_of.setdefault(Job(name=line.name, path=self.out).stem, set()).add(line.name)
                if line.status == "begun":
                    self._written.setdefault(line.name, set()).update(line.extras)
                elif line.status == "done":  # it had removed those of earlier runs
                    self._written[line.name] = set(line.extras)
                if line.status in ("begun", "done"):  # a scan that failed wrote nothing
                    self._sources[line.name] = line.source
                names.append(line.name)
        return names

    @property
    def names(self) -> list[str]:
        """Return the names of all scans in the ledger."""
        return list(self._lines)

    def read_news(self, jobs: Mapping[str, Job]) -> dict[str, ScanOutcome]:
        """Return the outcomes of these jobs since the last call, in any run with this model and options."""
        with self._lock:
            lines = {name: self._lines[name] for name in self._read_new_lines()}
        return {
            name: line.outcome
            for name, line in lines.items()
            if line.status in ("done", "failed") and name in jobs and self._is_current(line, jobs[name])
        }

    def find_outcome(self, job: Job) -> ScanOutcome | None:
        """Return the outcome of a job with nothing left to do, or None."""
        if self._find_conflict(job) is not None:  # another run may have begun the scan since the ledger was read
            with self._lock:
                self._read_new_lines()
        if (reason := self._find_conflict(job)) is not None:
            return ScanOutcome(name=job.name, status="failed", reason=reason)
        line = self._lines.get(job.name)
        if self.options.overwrite:
            return None
        if line is None or not self._is_current(line, job):
            return None
        if line.status == "done" and self._is_complete(job):
            reason = "done before with this model"
            return ScanOutcome(
                name=job.name, status="skipped", reason=reason, answer=line.answer, warnings=line.warnings
            )
        if line.status == "failed" and not line.passing and not self.options.retry_failed:
            reason = f"{line.reason} (failed before; use --retry-failed to try again)"
            return ScanOutcome(name=job.name, status="failed", reason=reason)
        return None

    def find_mask(self, job: Job) -> LedgerLine | None:
        """Return the line of a job's mask if it differs from what this run would make in DICOM results only, or None.

        A mask that was changed since it was written does not count.
        """
        line = self._lines.get(job.name)
        if line is None or line.status != "done" or not line.mask_sha256 or self.options.overwrite:
            return None
        if not self._is_current(line, job, dicom=False) or not self._is_complete(job):
            return None
        return line if sha256_of_file(self.out / job.name) == line.mask_sha256 else None

    def _is_complete(self, job: Job) -> bool:
        """Return whether a job's mask exists, and its candidates, without which the tables would lack the scan."""
        names = [job.name, *([job.stem + CANDIDATES] if CANDIDATES in self._extras else [])]
        return all((self.out / name).exists() for name in names)

    def _find_conflict(self, job: Job) -> str | None:
        """Return why a job must not write its files, or None: they, or some of their names, are those of another scan.

        ``ct.nii`` and ``ct.nii.gz`` have masks of their own, but one report and one picture.
        """
        overwrite, way_out = self.options.overwrite, "choose another --out, or use --overwrite."
        for twin in (name for name in self._twins(job) if (self.out / name).exists()):
            shared = f"{self.out / twin}: its report and the one of {job.path} would both be {job.stem}.json"
            if twin not in self._written:
                return f"{shared}, and no run recorded here wrote it; choose another --out."
            if not overwrite:
                return f"{shared}; {way_out}"
        if overwrite:
            return None
        if job.name not in self._written:
            names = output_names(job, self._extras)
        else:  # runs wrote what there is
            names = [] if self._sources[job.name] == job.source_id else [job.name]
        existing = [self.out / name for name in names if (self.out / name).exists()]
        return f"{existing[0]}: was not made from {job.path}; {way_out}" if existing else None

    def _twins(self, job: Job) -> list[str]:
        """Return the names of masks that differ from a job's in the suffix only."""
        known = self._names_of.get(job.stem, set())
        return sorted({*known, *(job.stem + suffix for suffix in MASK_SUFFIXES)} - {job.name})

    def _is_current(self, line: LedgerLine, job: Job, *, dicom: bool = True) -> bool:
        """Return whether a line matches this job's current content, this model and these options.

        Without `dicom`, options about DICOM results may differ.
        """
        theirs, ours = line.options, self.options.as_json()
        return (
            line.source == job.source_id
            and line.stamp == job.stamp()
            and line.model_sha256 == self.info.sha256
            and (theirs == ours if dicom else without_dicom(theirs) == without_dicom(ours))
        )

    def update_outcome(self, job: Job) -> ScanOutcome | None:
        """Return the outcome of a job that another run has ended since, or None; call it while holding the claim."""
        with self._lock:
            self._read_new_lines()
        return self.find_outcome(job)

    def claim(self, job: Job) -> ExitStack | None:
        """Claim a job's output and return the claim, which the caller closes; None if another run has claimed it."""
        stack = ExitStack()
        name = hashlib.sha256(job.stem.encode()).hexdigest()[:32]  # of all files that share its report
        if stack.enter_context(try_claim(self.out, name)) is None:
            stack.close()
            return None
        return stack

    def remove_unfinished(self, jobs: Sequence[Job]) -> None:
        """Remove files of these jobs that killed runs have not finished, unless another run has claimed the scan."""
        unfinished = [
            (path, match) for path in self.out.rglob(".*.part*") if (match := UNFINISHED.fullmatch(path.name))
        ]
        for path, match in unfinished:
            written = path.with_name(match[1]).relative_to(self.out).as_posix()
            owners = [job for job in jobs if written.startswith((f"{job.stem}.", f"{job.stem}_"))]
            if not owners:
                continue
            claim = self.claim(max(owners, key=lambda job: len(job.stem)))
            if claim is not None:
                with claim:
                    path.unlink(missing_ok=True)

    def remove_earlier(self, job: Job) -> None:
        """Remove the files that earlier runs wrote for a job, masks first; call it while holding the claim.

        So are the files of a scan whose name differs in the suffix only.
        """
        with self._lock:
            self._read_new_lines()
            twins = [replace(job, name=name) for name in self._twins(job) if name in self._written]
            extras = {one.name: sorted(self._written.get(one.name, ())) for one in (*twins, job)}
        if CANDIDATES not in self._extras and any(CANDIDATES in names for names in extras.values()):
            self._remove_tables()
        for one in (*twins, job):
            for name in output_names(one, extras[one.name]):
                if name == one.name or name not in self._lines:  # a mask of another scan is kept
                    (self.out / name).unlink(missing_ok=True)

    def _remove_tables(self) -> None:
        """Remove the tables and pages of candidates of earlier runs, once: a scan of theirs is about to have none."""
        with self._lock:
            is_removed, self._are_tables_removed = self._are_tables_removed, True
        if not is_removed:
            for path in self.out.glob("candidates*"):
                if is_candidate_table(path.name):
                    path.unlink(missing_ok=True)

    def append(
        self,
        job: Job,
        outcome: ScanOutcome,
        *,
        stamp: Stamp | None = None,
        begun: bool = False,
        mask_sha256: str = "",
    ) -> None:
        """Append a line.

        Parameters
        ----------
        stamp
            The scan's version tag when it was read; None for a scan that was not read.
        begun
            Whether the scan's files are about to be written, not finished.
        mask_sha256
            Hash of the mask's file; empty if later runs need not know it.
        """
        line = LedgerLine(
            name=job.name,
            source=job.source_id,
            status="begun" if begun else outcome.status,
            stamp=stamp or job.stamp(),
            model_sha256=self.info.sha256,
            options=self.options.as_json(),
            provider=self._model.provider,
            slices=outcome.slices,
            labeled=outcome.labeled,
            answer=outcome.answer,
            warnings=outcome.warnings,
            reason=outcome.reason,
            extras=self._extras if begun or outcome.status == "done" else (),
            passing=outcome.passing,
            mask_sha256=mask_sha256,
        )
        with self._lock:
            self._ledger.append(line.as_json())
