"""The documents that `slicemill ingest --json` prints."""

from dataclasses import dataclass

from slicemill.common.files import Location
from slicemill.common.left_out import LeftOut
from slicemill.ct.labels import Labels
from slicemill.ingest.discover import Collection
from slicemill.ingest.outcomes import IngestReport


@dataclass(frozen=True, kw_only=True)
class CaseLine:
    """A case that would be converted."""

    case_id: str
    patient_id: str
    image: str
    mask: str | None


@dataclass(frozen=True, kw_only=True)
class OutcomeLine:
    """A case that was converted, or not."""

    case_id: str
    status: str
    reason: str
    slices: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LeftOutLine:
    """A file that is not used."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CollectionDocument:
    """What `--dry-run` shows."""

    cases: tuple[CaseLine, ...]
    labels: dict[str, int] | None
    """Names and values; None if they are not declared."""
    organ: str | None
    tumor: str | None
    left_out: tuple[LeftOutLine, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReportDocument:
    """The result of a run."""

    store: str
    seconds: float
    cases: tuple[OutcomeLine, ...]
    left_out: tuple[LeftOutLine, ...]
    notes: tuple[str, ...]
    problem: str
    """Reason why the tables are not up to date; empty if they are."""


def collection_document(collection: Collection, labels: Labels | None) -> CollectionDocument:
    """Return the cases that would be converted."""
    return CollectionDocument(
        cases=tuple(
            CaseLine(
                case_id=case.case_id,
                patient_id=case.patient_id,
                image=case.name(case.image),
                mask=case.name(case.mask) if case.mask else None,
            )
            for case in collection.cases
        ),
        labels=dict(labels.values) if labels else None,
        organ=labels.organ if labels else None,
        tumor=labels.tumor if labels else None,
        left_out=_lines(collection.left_out),
        notes=tuple(collection.notes),
    )


def report_document(report: IngestReport, collection: Collection, store: Location) -> ReportDocument:
    """Return the outcome of every case."""
    return ReportDocument(
        store=str(store),
        seconds=round(report.seconds, 2),
        cases=tuple(
            OutcomeLine(
                case_id=one.case_id, status=one.status, reason=one.reason, slices=one.slices, warnings=one.warnings
            )
            for one in report.outcomes
        ),
        left_out=_lines(collection.left_out),
        notes=tuple(collection.notes),
        problem=report.problem,
    )


def _lines(left_out: tuple[LeftOut, ...]) -> tuple[LeftOutLine, ...]:
    return tuple(LeftOutLine(path=str(path), reason=reason) for path, reason in left_out)
