"""Results of all cases: tables of cases and lesions as CSV and JSON, and the page of all cases."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slicemill.common.documents import to_document
from slicemill.common.files import write_bytes, write_csv, write_json
from slicemill.common.terminal import peak_mib
from slicemill.measure.lesions.cohort_page import CaseRow, FailedCase, render_cohort_page
from slicemill.measure.lesions.flags import flag_far_volumes
from slicemill.measure.lesions.measurements import LesionMeasurement
from slicemill.measure.lesions.records import CaseRecord
from slicemill.measure.lesions.slicer3d import write_color_table

Row = dict[str, Any]
INTENSITIES = ("voxels", "mean", "sd", "min", "max", "median")


def write_cohort(out: Path, records: Sequence[CaseRecord], failed: Sequence[FailedCase]) -> None:
    """Write cases.csv, lesions.csv, summary.json, colors.ctbl and report.html."""
    far = flag_far_volumes({record.case: record.figures.organ_ml for record in records})
    rows = [make_case_row(record, far) for record in records]
    cases = [to_document(row) for row in rows]
    lesions = [make_lesion_row(record.case, lesion) for record in records for lesion in record.lesions]
    write_csv(out / "cases.csv", cases, ["case"])
    write_csv(out / "lesions.csv", lesions, ["case"])
    write_json(
        out / "summary.json",
        {"cases": cases, "failed": [to_document(one) for one in failed], "peak_mib": round(peak_mib(), 1)},
    )
    if records:
        write_color_table(out / "colors.ctbl", records[0].read_labels())
    write_bytes(out / "report.html", render_cohort_page(out, rows, failed))


def make_case_row(record: CaseRecord, far: Mapping[str, str]) -> CaseRow:
    """Return a case as a row of cases.csv; `far`: case -> flag of an outlier volume."""
    figures = record.figures
    flags = [*record.flags, *([far[record.case]] if record.case in far else [])]
    return CaseRow(
        case=record.case,
        lesion_count=figures.lesion_count,
        tumor_ml=figures.tumor_ml,
        organ_ml=figures.organ_ml,
        tumor_burden_percent=figures.tumor_burden_percent,
        sum_of_target_diameters_mm=figures.sum_of_target_diameters_mm,
        longest_mm=record.longest_mm(),
        flags="; ".join(flags),
    )


def make_lesion_row(case: str, lesion: LesionMeasurement) -> Row:
    """Return a lesion as a row of lesions.csv. Positions and intensities have a column for each value."""
    row: Row = {"case": case}
    for key, value in to_document(lesion).items():
        if key in ("hu", "rim_hu"):
            row |= {f"{key}_{part}": (value or {}).get(part) for part in INTENSITIES}
        elif key.startswith("centroid"):
            row |= {f"{key}_{axis}": part for axis, part in zip("xyz" if "lps" in key else "zyx", value, strict=True)}
        else:
            row[key] = str(_to_list(value)) if isinstance(value, tuple | list) else value
    return row


def _to_list(value: Any) -> Any:
    return [_to_list(one) for one in value] if isinstance(value, tuple | list) else value
