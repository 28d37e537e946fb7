"""Summary of a store on one screen: counts, and small histograms with range and unit."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from slicemill.common.files import folder_bytes
from slicemill.common.terminal import count_noun, format_number, format_range, histogram_bars
from slicemill.ct.labels import Labels, format_labels
from slicemill.store.reader import Store
from slicemill.store.tables import ManifestRow, make_manifest_row

NAME_WIDTH = 11
MAX_WARNINGS = 10


def describe(store: Store, levels: str) -> list[str]:
    """Return the lines of `slicemill store info`.

    Parameters
    ----------
    levels
        Characters of increasing height for the histograms (`slicemill.common.terminal.bar_characters`).
    """
    cases, unreadable = store.read_cases()
    infos = [case.info for case in cases]
    rows = [make_manifest_row(info) for info in infos]
    labels = next((info.labels for info in infos if info.labels), None)
    diameters = [lesion.max_axial_diameter_mm for info in infos for lesion in info.lesions or ()]
    return [
        *describe_size(store, rows),
        *describe_labels(labels),
        *describe_grids(rows, levels),
        *describe_tumors(rows, diameters, levels),
        *describe_warnings(rows),
        *(format_line("unreadable", reason) for reason in unreadable),
    ]


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """What `slicemill info STORE --json` prints."""

    kind: Literal["store"] = "store"
    path: str
    cases: int
    patients: int
    cases_with_mask: int
    cases_with_tumor: int
    lesions: int
    slices: int
    bytes: int
    labels: dict[str, int] | None
    """Names and values of the labels; None if no case has a mask."""
    organ: str | None
    tumor: str | None
    warnings: dict[str, str]
    """Warnings of ingest, by case."""
    unreadable: tuple[str, ...]
    """Why cases cannot be read."""


def summarize(store: Store) -> StoreSummary:
    """Return the counts of a store."""
    cases, unreadable = store.read_cases()
    rows = [make_manifest_row(case.info) for case in cases]
    labels = next((case.info.labels for case in cases if case.info.labels), None)
    return StoreSummary(
        path=str(store.root),
        cases=len(rows),
        patients=len({row.patient_id for row in rows}),
        cases_with_mask=sum(row.mask_path is not None for row in rows),
        cases_with_tumor=sum(bool(row.has_tumor) for row in rows),
        lesions=sum(row.n_lesions or 0 for row in rows),
        slices=sum(row.nz for row in rows),
        bytes=folder_bytes(store.root),
        labels=dict(labels.values) if labels else None,
        organ=labels.organ if labels else None,
        tumor=labels.tumor if labels else None,
        warnings={row.case_id: row.warnings for row in rows if row.warnings},
        unreadable=tuple(unreadable),
    )


def format_line(name: str, text: str) -> str:
    """Return one line of the summary: a name and a text.

    >>> format_line("cases", "3")
    'cases      3'
    """
    return f"{name:<{NAME_WIDTH}}{text}"


def format_histogram(name: str, values: Sequence[float], unit: str, levels: str, *, log: bool = False) -> list[str]:
    """Return the line of a histogram; an empty list without values.

    >>> format_histogram("slices", [10, 10, 30], "a case", ".:#")
    ['slices     #          :  10 to 30 a case, median 10']
    """
    if not values:
        return []
    if min(values) == max(values):
        return [format_line(name, f"{histogram_bars(values, levels)}  {format_number(values[0])} {unit}")]
    middle = format_number(statistics.median(values))
    scale = "; log scale" if log else ""
    return [
        format_line(
            name, f"{histogram_bars(values, levels, log=log)}  {format_range(values)} {unit}, median {middle}{scale}"
        )
    ]


def describe_size(store: Store, rows: Sequence[ManifestRow]) -> list[str]:
    """Return the store's location, its numbers of cases and slices, and its size compared with the voxels."""
    raw = sum(row.nz * row.ny * row.nx * (3 if row.mask_path else 2) for row in rows)
    size = folder_bytes(store.root)
    masks = sum(row.mask_path is not None for row in rows)
    patients = len({row.patient_id for row in rows})
    return [
        format_line("store", str(store.root)),
        format_line("cases", f"{len(rows):,} of {count_noun(patients, 'patient')}, {masks:,} with a mask"),
        format_line("slices", f"{sum(row.nz for row in rows):,}"),
        format_line("size", f"{size / 1e6:,.1f} MB for {raw / 1e6:,.1f} MB of voxels ({raw / max(size, 1):.2f} to 1)"),
    ]


def describe_labels(labels: Labels | None) -> list[str]:
    """Return the names of the label values, and the labels of organ and tumor."""
    if labels is None:
        return []
    roles = f"organ {labels.organ or '-'}, tumor {labels.tumor or '-'}"
    return [format_line("labels", f"{format_labels(labels.values)}; {roles}")]


def describe_grids(rows: Sequence[ManifestRow], levels: str) -> list[str]:
    """Return the histograms of slices per case and of the spacings."""
    lines = format_histogram("  a case", [row.nz for row in rows], "slices", levels)
    lines += format_histogram("spacing z", [row.spacing_z_mm for row in rows], "mm", levels)
    lines += format_histogram("spacing y", [row.spacing_y_mm for row in rows], "mm", levels)
    return lines + format_histogram("spacing x", [row.spacing_x_mm for row in rows], "mm", levels)


def describe_tumors(rows: Sequence[ManifestRow], diameters_mm: Sequence[float], levels: str) -> list[str]:
    """Return the number of cases with tumor and histograms of lesions; an empty list without a tumor label."""
    labeled = [row for row in rows if row.has_tumor is not None]
    tumors = [row for row in labeled if row.has_tumor]
    if not labeled:
        return []
    lesions = [row.n_lesions for row in tumors if row.n_lesions is not None]
    burden = [row.tumor_percent_organ for row in tumors if row.tumor_percent_organ is not None]
    scan = [row.tumor_percent_scan for row in tumors if row.tumor_percent_scan is not None]
    volumes = [row.tumor_volume_ml for row in tumors if row.tumor_volume_ml is not None]
    return [
        format_line(
            "tumor", f"in {len(tumors):,} of {count_noun(len(labeled), 'case')}, {count_noun(sum(lesions), 'lesion')}"
        ),
        *format_histogram("  lesions", lesions, "a case with tumor", levels),
        *format_histogram("  volume", volumes, "ml a case", levels, log=True),
        *format_histogram("  burden", burden or scan, "% of the organ" if burden else "% of the scan", levels),
        *format_histogram("  diameter", diameters_mm, "mm a lesion, axial", levels, log=True),
    ]


def describe_warnings(rows: Sequence[ManifestRow]) -> list[str]:
    """Return the first warnings of ingest, and the number of the others."""
    warned = [row for row in rows if row.warnings]
    lines = [format_line("warning", f"{row.case_id}: {row.warnings}") for row in warned[:MAX_WARNINGS]]
    left = len(warned) - len(lines)
    if left:
        lines.append(format_line("", f"{left:,} more; `slicemill store manifest STORE --csv` lists all"))
    return lines
