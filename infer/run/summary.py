"""Summary of a run: outcomes of scans, in memory (`Summary`) and as ``summary.json`` (`SummaryDocument`) and CSV."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slicemill.common.documents import to_document
from slicemill.common.files import write_csv, write_json
from slicemill.common.left_out import LeftOut
from slicemill.common.terminal import peak_mib
from slicemill.infer.network.model import Model
from slicemill.infer.run.timing import StageTime

SUMMARY = "summary"
SUMMARIES = re.compile(rf"{SUMMARY}(-\d+-of-\d+)?(-worker-\d+)?\.(json|csv)")
"""File names of summaries, also of the shards and workers of a run."""

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class OutcomeRow:
    """One scan in the files of a summary; the fields are the columns of the CSV."""

    name: str
    """Relative path of the scan's mask."""
    status: Status
    slices: int = 0
    """Number of slices of the scan."""
    labeled: int = 0
    """Number of slices that the network labeled; the others lie outside of the organ's range."""
    answer: str = ""
    """Main result as one line (`ScanReport.answer`)."""
    reason: str = ""
    """Reason why the scan was skipped or failed, or why it was not segmented although it is done."""
    warnings: str = ""
    """Warnings about the scan, separated by semicolons."""


@dataclass(frozen=True, kw_only=True)
class ScanOutcome(OutcomeRow):
    """Outcome of one scan."""

    passing: bool = False
    """Whether another run may succeed (after a full disk, a read or device error), so that it tries the scan again."""

    @property
    def row(self) -> OutcomeRow:
        """Return the outcome as a row of the summary files."""
        return OutcomeRow(
            name=self.name,
            status=self.status,
            slices=self.slices,
            labeled=self.labeled,
            answer=self.answer,
            reason=self.reason,
            warnings=self.warnings,
        )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Result of a run, with an outcome for every scan."""

    outcomes: tuple[ScanOutcome, ...]
    seconds: float
    """Duration of the run."""
    provider: str
    """Execution provider; several names, separated by commas, where workers differ."""
    stages: dict[str, StageTime]
    """Time of each stage, by name (`slicemill.infer.run.timing.STAGES`)."""
    device_busy: float
    """Share of the run in which a device ran the network, 0 to 1: the mean over the cores of a CPU, or over the GPUs. A
    GPU is busy while at least one of its lanes computes."""
    left_out: tuple[LeftOut, ...] = ()
    """Files of the input that were not segmented, with reasons."""

    def count(self, status: Status) -> int:
        """Return the number of scans with this status."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def failures(self) -> tuple[ScanOutcome, ...]:
        """Return the scans that failed, with their reasons."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    @property
    def slices(self) -> int:
        """Return the number of slices of the scans that were segmented."""
        return sum(outcome.slices for outcome in self.outcomes)

    @property
    def labeled(self) -> int:
        """Return the number of slices that the network labeled."""
        return sum(outcome.labeled for outcome in self.outcomes)


@dataclass(frozen=True, kw_only=True)
class StatusCounts:
    """Number of scans by status."""

    done: int
    skipped: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class LeftOutRow:
    """A file of the input that was not segmented."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SummaryDocument:
    """The file ``summary.json``. The fields are its keys, in this order."""

    model: str
    """File name of the model."""
    model_sha256: str
    provider: str
    """Execution provider; several names, separated by commas, where workers differ."""
    scans: StatusCounts
    slices: int
    """Number of slices of the scans that were segmented."""
    labeled: int
    """Number of slices that the network labeled."""
    seconds: float
    """Duration of the run."""
    slices_per_second: float
    device_busy: float
    """Share of the run in which a device ran the network, 0 to 1: the mean over the cores of a CPU, or over the GPUs. A
    GPU is busy while at least one of its lanes computes."""
    stages: dict[str, StageTime]
    """Time of each stage, by name."""
    peak_mib: float
    """Peak memory of the process, MiB."""
    outcomes: tuple[OutcomeRow, ...]
    """One row for each scan, sorted by name."""
    left_out: tuple[LeftOutRow, ...]


def is_summary(name: str) -> bool:
    """Return whether a relative path in an output folder is the path of a run's summary.

    >>> is_summary("summary.json"), is_summary("summary-3-of-64.json"), is_summary("p1/summary.json")
    (True, True, False)
    """
    return SUMMARIES.fullmatch(name) is not None


def make_document(model: Model, summary: Summary) -> SummaryDocument:
    """Return the content of ``summary.json``."""
    return SummaryDocument(
        model=model.info.name,
        model_sha256=model.info.sha256,
        provider=summary.provider,
        scans=StatusCounts(
            done=summary.count("done"), skipped=summary.count("skipped"), failed=summary.count("failed")
        ),
        slices=summary.slices,
        labeled=summary.labeled,
        seconds=round(summary.seconds, 2),
        slices_per_second=round(summary.slices / summary.seconds, 2),
        device_busy=round(summary.device_busy, 4),
        stages=summary.stages,
        peak_mib=round(peak_mib(), 1),
        outcomes=tuple(outcome.row for outcome in sorted(summary.outcomes, key=lambda outcome: outcome.name)),
        left_out=tuple(LeftOutRow(path=str(path), reason=reason) for path, reason in summary.left_out),
    )


def write_summary(out: Path, model: Model, summary: Summary, part: str = "") -> None:
    """Write the run's summary as JSON, and one row for each scan as CSV; `part` ends the file names."""
    document = make_document(model, summary)
    write_json(out / f"{SUMMARY}{part}.json", to_document(document))
    write_csv(out / f"{SUMMARY}{part}.csv", [to_document(row) for row in document.outcomes])
