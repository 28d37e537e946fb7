"""Outcomes of the cases of an ingest, their lines in the ledgers, and the report."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from slicemill.common.documents import from_document, to_document
from slicemill.common.errors import InputError
from slicemill.common.files import Location, read_lines
from slicemill.common.ledger import LEDGER, Ledger
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.ingest.stamps import Stamp, locate, stamp_case
from slicemill.store.layout import FAILURES

Status = Literal["done", "unchanged", "failed", "failed before", "claimed"]
LineKind = TypeVar("LineKind", "DoneLine", "FailureLine")


@dataclass(frozen=True, kw_only=True)
class CaseOutcome:
    """Outcome of one case."""

    case_id: str
    status: Status
    reason: str = ""
    """Reason of the failure."""
    passing: bool = False
    """Whether another run may succeed (after a full disk, a read error, a killed worker), so that it tries again."""
    slices: int = 0
    voxel_bytes: int = 0
    warnings: tuple[str, ...] = ()
    peak_mib: float = 0.0
    """Peak memory of the worker process, MiB."""
    stamp: Stamp | None = None
    """The stamp of the case's files when they were read."""


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """Result of an ingest, with an outcome for every case."""

    outcomes: tuple[CaseOutcome, ...]
    seconds: float
    problem: str = ""
    """Reason why the tables are not up to date; empty if they are."""
    bug: BaseException | None = None
    """An exception that is a bug; its case counts as failed."""

    def count(self, *statuses: Status) -> int:
        """Return the number of cases with one of these statuses."""
        return sum(outcome.status in statuses for outcome in self.outcomes)

    @property
    def failures(self) -> list[CaseOutcome]:
        """Return the outcomes of the cases that are not in the store, with reasons."""
        return [outcome for outcome in self.outcomes if outcome.status in ("failed", "failed before")]


@dataclass(frozen=True, kw_only=True)
class DoneLine:
    """A line of ``ledger.jsonl``: a case that is in the store."""

    case_id: str
    stamp: Stamp
    status: Literal["done", "unchanged"]


@dataclass(frozen=True, kw_only=True)
class FailureLine:
    """A line of ``failures.jsonl``: a case that failed."""

    case_id: str
    stamp: Stamp
    image: str
    """Path of the image relative to the collection."""
    reason: str = ""
    passing: bool = False
    """Whether another run may succeed (`CaseOutcome.passing`)."""

    def is_final(self, stamp: Stamp) -> bool:
        """Return whether a case with this stamp would fail again."""
        return self.stamp == stamp and not self.passing


class Ledgers:
    """The two ledgers of a store: finished cases and failed cases."""

    def __init__(self, root: Location) -> None:
        self._done, self._failed = Ledger(root / LEDGER), Ledger(root / FAILURES)

    def append(self, case: CaseFiles, params: Params, outcome: CaseOutcome) -> None:
        """Append the outcome of a case."""
        stamp = outcome.stamp or stamp_case(case, params, locate(case))
        if outcome.status in ("done", "unchanged"):
            self._done.append(to_document(DoneLine(case_id=case.case_id, stamp=stamp, status=outcome.status)))
            return
        line = FailureLine(
            case_id=case.case_id,
            stamp=stamp,
            image=case.name(case.image),
            reason=outcome.reason,
            passing=outcome.passing,
        )
        self._failed.append(to_document(line))

    def flush(self) -> None:
        """Write buffered lines."""
        self._done.flush()
        self._failed.flush()


def read_done(root: Location) -> dict[str, frozenset[Stamp]]:
    """Return the stamps of the files that each stored case was made from or found equal to."""
    stamps: dict[str, frozenset[Stamp]] = {}
    for line in _read_ledger(DoneLine, root / LEDGER):
        before = stamps.get(line.case_id, frozenset()) if line.status == "unchanged" else frozenset()
        stamps[line.case_id] = before | {line.stamp}
    return stamps


def read_failures(root: Location) -> dict[str, FailureLine]:
    """Return the last line about each case in the ledger of failures."""
    return {line.case_id: line for line in _read_ledger(FailureLine, root / FAILURES)}


def _read_ledger(kind: type[LineKind], path: Location) -> Iterator[LineKind]:
    """Yield the lines of a ledger; damaged ones are skipped, and their cases are checked again."""
    for record in read_lines(path):
        with contextlib.suppress(InputError):
            yield from_document(kind, record, str(path))
