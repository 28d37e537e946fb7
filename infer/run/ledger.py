"""What became of every scan: the ledger of an output folder, and the summary of a run.

The ledger has one JSON line for each scan that began or ended, and is never rewritten. A mask is done when its last line says
so with the same model, the same options and an unchanged input; `begun` tells a half-written scan of ours, after a kill, from
a file of somebody else.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slicemill.common.files import Location, write_csv, write_json
from slicemill.common.ledger import LEDGER, Ledger
from slicemill.common.locks import try_claim
from slicemill.common.terminal import peak_mib
from slicemill.infer.inputs.jobs import Job
from slicemill.infer.network.model import Model
from slicemill.infer.run.options import InferOptions

SUMMARY = "summary"

SUMMARIES = re.compile(rf"{SUMMARY}(-\d+-of-\d+)?(-worker-\d+)?\.(json|csv)")
"""The names of the summaries of runs, and of their parts."""
ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part.*")
"""The name of a file that `slicemill.common.files.atomic_write` has not renamed yet, around the name that it will have."""

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class ScanOutcome:
    """How one scan ended."""

    name: str
    status: Status
    reason: str = ""
    slices: int = 0
    answer: str = ""
    passing: bool = False
    """Whether the reason lies not in the scan itself (a full disk, a read error, a device), so that it is tried again."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended: every scan is accounted for."""

    outcomes: tuple[ScanOutcome, ...]
    seconds: float
    provider: str
    stages: dict[str, dict[str, Any]]
    """Seconds of each stage and their share; see `slicemill.infer.run.timing`."""
    device_busy: float
    """Share of the run in which the network ran."""
    left_out: tuple[tuple[Location, str], ...] = ()
    """What of the input was left out, with reasons."""

    def count(self, status: Status) -> int:
        """Return how many scans ended so."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def slices(self) -> int:
        """Return how many slices were labelled."""
        return sum(outcome.slices for outcome in self.outcomes)


class RunLedger:
    """The ledger of an output folder, as one model and its options see it; safe to use from several threads."""

    def __init__(self, out: Path, model: Model, options: InferOptions) -> None:
        self.out = out
        self.options = options
        self._model = model
        self._ledger = Ledger(out / LEDGER)
        self._lock = threading.Lock()
        self._lines: dict[str, dict[str, Any]] = {}
        self._read_to = 0
        self._catch_up()

    def _catch_up(self) -> list[str]:
        """Read the lines that came since, of this run and of others, and return their scans; a line that is not whole yet is left."""
        if not (self.out / LEDGER).exists():
            return []
        news = []
        with (self.out / LEDGER).open("rb") as stream:
            stream.seek(self._read_to)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read_to += len(whole)
        for line in whole.split(b"\n"):
            with contextlib.suppress(ValueError):  # a torn line, of a run that was killed
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("name"), str):
                    self._lines[record["name"]] = record
                    news.append(record["name"])
        return news

    @property
    def names(self) -> list[str]:
        """Return the names of the scans that it tells of."""
        return list(self._lines)

    def news(self, jobs: Mapping[str, Job]) -> dict[str, ScanOutcome]:
        """Return how some of these jobs ended since the book last looked, in any run of this model and these options, by name."""
        with self._lock:
            lines = {name: self._lines[name] for name in self._catch_up()}
        return {
            name: ScanOutcome(
                name=name,
                status=line["status"],
                reason=line.get("reason", ""),
                slices=line.get("slices", 0),
                answer=line.get("answer", ""),
            )
            for name, line in lines.items()
            if line.get("status") in ("done", "failed") and name in jobs and self._is_of_now(line, jobs[name])
        }

    def known(self, job: Job) -> ScanOutcome | None:
        """Return the outcome of a job for which nothing is left to do, or None."""
        line, there = self._lines.get(job.name, {}), (self.out / job.name).exists()
        if self.options.overwrite:
            return None
        if there and line.get("source") != job.source_id:
            reason = f"{self.out / job.name}: was not made from {job.path}; choose another --out, or pass --overwrite."
            return ScanOutcome(name=job.name, status="failed", reason=reason)
        if not self._is_of_now(line, job):
            return None
        if there and line.get("status") == "done":
            reason = "done before with this model"
            return ScanOutcome(name=job.name, status="skipped", reason=reason, answer=line.get("answer", ""))
        if line.get("status") == "failed" and not line.get("passing") and not self.options.retry_failed:
            reason = f"{line.get('reason')} (failed before; --retry-failed tries it again)"
            return ScanOutcome(name=job.name, status="failed", reason=reason)
        return None

    def _is_of_now(self, line: dict[str, Any], job: Job) -> bool:
        return line.get("source") == job.source_id and all(
            line.get(key) == value for key, value in self._signature(job).items()
        )

    def _signature(self, job: Job, stamp: list[Any] | None = None) -> dict[str, Any]:
        return {
            "stamp": stamp or job.stamp(),
            "model_sha256": self._model.info.sha256,
            "options": self.options.as_json(),
        }

    def known_by_now(self, job: Job) -> ScanOutcome | None:
        """Return the outcome of a job that another run has ended meanwhile, or None; to be asked with its claim."""
        with self._lock:
            self._catch_up()
        return self.known(job)

    def claim(self, job: Job) -> ExitStack | None:
        """Return the claim of a job's output, to be closed at its end; None when another run has it."""
        stack = ExitStack()
        name = hashlib.sha256(job.name.encode()).hexdigest()[:32]
        if stack.enter_context(try_claim(self.out, name)) is None:
            stack.close()
            return None
        return stack

    def clear(self, jobs: Sequence[Job]) -> None:
        """Remove what killed runs left of files that they wrote aside, unless another run has the scan now."""
        asides = [(path, whole) for path in self.out.rglob(".*.part*") if (whole := ASIDE.fullmatch(path.name))]
        for path, whole in asides:
            written = path.with_name(whole[1]).relative_to(self.out).as_posix()
            owners = [job for job in jobs if written.startswith((f"{job.stem}.", f"{job.stem}_"))]
            if not owners:
                continue
            claim = self.claim(max(owners, key=lambda job: len(job.stem)))
            if claim is not None:
                with claim:
                    path.unlink(missing_ok=True)

    def note(self, job: Job, outcome: ScanOutcome, *, stamp: list[Any] | None = None, begun: bool = False) -> None:
        """Append a line; `stamp` is what told the file when it was read, where it was."""
        status = "begun" if begun else outcome.status
        record = {"name": job.name, "source": job.source_id, "status": status, **self._signature(job, stamp)}
        record |= {"provider": self._model.provider, "slices": outcome.slices}
        record |= {"answer": outcome.answer, "reason": outcome.reason}
        with self._lock:
            self._ledger.append(record | ({"passing": True} if outcome.passing else {}))


def is_summary(name: str) -> bool:
    """Return whether a relative path in an output folder is that of a run's summary.

    >>> is_summary("summary.json"), is_summary("summary-3-of-64.json"), is_summary("p1/summary.json")
    (True, True, False)
    """
    return SUMMARIES.fullmatch(name) is not None


def write_summary(out: Path, model: Model, summary: Summary, part: str = "") -> None:
    """Write the run's summary as JSON, and one row a scan as CSV; `part` ends the names of one of several runs."""
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
        out / f"{SUMMARY}{part}.json",
        {
            "model": model.info.name,
            "model_sha256": model.info.sha256,
            "provider": summary.provider,
            "scans": {status: summary.count(status) for status in ("done", "skipped", "failed")},
            "slices": summary.slices,
            "seconds": round(summary.seconds, 2),
            "slices_per_second": round(summary.slices / summary.seconds, 2),
            "device_busy": round(summary.device_busy, 4),
            "stages": summary.stages,
            "peak_mib": round(peak_mib(), 1),
            "outcomes": rows,
            "left_out": [{"path": str(path), "reason": reason} for path, reason in summary.left_out],
        },
    )
    write_csv(out / f"{SUMMARY}{part}.csv", rows)
