"""The record of a measured case, ``NAME.json``: figures, lesions and provenance."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicemill.common.documents import from_document, to_document
from slicemill.common.files import read_json
from slicemill.ct.labels import Labels, labels_from_json
from slicemill.measure.inputs.infer_output import ModelUsed
from slicemill.measure.lesions.measurements import CaseFigures, LesionMeasurement

DISCLAIMER = "research use, not a diagnosis"
Stamp = dict[str, Any]
"""Identifies the inputs and settings of a measurement, as plain JSON; compared for equality."""


@dataclass(frozen=True, kw_only=True)
class FileUsed:
    """An input file."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The input files of a case."""

    mask: FileUsed | None
    image: FileUsed | None
    """None without a scan."""


@dataclass(frozen=True, kw_only=True)
class CaseOrigin:
    """Provenance of a case: labels, geometry, source files and model."""

    labels: dict[str, int]
    """Name -> value."""
    organ: str | None
    tumor: str | None
    shape_zyx: tuple[int, ...]
    spacing_mm_zyx: tuple[float, ...]
    affine_lps: tuple[tuple[float, ...], ...]
    """4 x 4, voxel (x, y, z, 1) to LPS mm."""
    source: Sources
    model: ModelUsed | None
    """The model of the mask; None without a report of `infer`."""
    warnings: tuple[str, ...]
    """Warnings about the geometry of the mask file."""


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """A measured case. All figures are rounded."""

    case: str
    note: str = DISCLAIMER
    origin: CaseOrigin
    figures: CaseFigures
    lesions: tuple[LesionMeasurement, ...]
    """All lesions, the largest first."""
    rim_mm: float
    flags: tuple[str, ...]
    """Reasons for a manual check of the case."""
    stamp: Stamp

    def as_json(self) -> dict[str, Any]:
        """Return the record as it is written, with the fields of `origin` and `figures` at the top level."""
        return {
            "case": self.case,
            "note": self.note,
            **to_document(self.origin),
            **to_document(self.figures),
            "lesions": [to_document(lesion) for lesion in self.lesions],
            "rim_mm": self.rim_mm,
            "flags": self.flags,
            "stamp": self.stamp,
        }

    def longest_mm(self) -> float | None:
        """Return the longest axial diameter of all lesions."""
        return max((lesion.max_axial_diameter_mm for lesion in self.lesions), default=None)

    def read_labels(self) -> Labels:
        """Return the labels of the mask."""
        return labels_from_json(to_document(self.origin))


def read_record(path: Path) -> CaseRecord:
    """Read the record of an earlier run.

    Raises
    ------
    InputError
        The file is not a complete record.
    """
    document = read_json(path)
    # the fields of origin and figures are at the top level of the document
    return from_document(CaseRecord, document | {"origin": document, "figures": document}, str(path), is_part=True)
