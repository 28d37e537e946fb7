"""Metadata of a stored case: the group attribute ``slicemill``."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from slicemill.common.documents import from_document, to_document
from slicemill.common.errors import LabelError, StoreError
from slicemill.ct.geometry import voxel_ml
from slicemill.ct.labels import Labels, labels_from_json
from slicemill.ct.lesions import Lesion
from slicemill.ct.points import Point
from slicemill.store.layout import FORMAT, READABLE_FORMATS

Count = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""An integer that fits the tables' int64."""
PointTable = Literal["points", "excluded", "candidates"]
"""The option of `slicemill ingest` that named a table of points."""
AffineRow = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class SliceStats:
    """Statistics of each slice, in stored order: HU range without the scanner's padding, and voxels of each label."""

    hu_min: list[Count | None]
    hu_max: list[Count | None]
    """None for slices of padding only."""
    voxels: dict[str, list[Count]]
    """Label name to voxels in each slice; empty without a mask."""

    def labeled(self) -> list[int]:
        """Return the slices that have a label."""
        return [z for z in range(len(self.hu_min)) if any(counts[z] for counts in self.voxels.values())]


@dataclass(frozen=True, kw_only=True)
class DicomUids:
    """UIDs of a DICOM series, which link it to its hospital: kept on request only (--keep-uids)."""

    study: str
    series: str
    frame_of_reference: str
    sop_class: str
    instances: tuple[str, ...]
    """SOPInstanceUID of each plane, in order of position."""


@dataclass(frozen=True, kw_only=True)
class DicomFields:
    """What a store keeps of a DICOM series beside its grid: the allow list (`Kept` of the DICOM reader)."""

    transfer_syntax: str
    scanner_model: str
    kernel: str
    kvp: float | None
    slice_thickness_mm: float | None
    contrast: bool
    uids: DicomUids | None = None


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A source file of a case, without its absolute path and time."""

    name: str
    """Path relative to the collection, with forward slashes."""
    bytes: Count
    sha256: str
    header_b64: str
    """NIfTI header in base64. Free text is blanked, unless ingest was told to keep it."""
    dicom: DicomFields | None = None
    """What is kept of a DICOM series; None for other formats."""


@dataclass(frozen=True, kw_only=True)
class SourceFiles:
    """The source files of a case."""

    image: SourceFile
    mask: SourceFile | None


@dataclass(frozen=True, kw_only=True)
class LeftOutPoint:
    """A row of a table of points that is not among the points or candidates of its case."""

    table: PointTable
    line: Count
    """Line in the table, from 1."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class CaseDocument:
    """The group attribute ``slicemill``, with the fields as they are stored."""

    format: int
    case_id: str
    patient_id: str
    labels: dict[str, int] | None
    organ: str | None = None
    tumor: str | None = None
    spacing_mm: tuple[float, float, float]
    affine_lps: tuple[AffineRow, AffineRow, AffineRow, AffineRow]
    source_axcodes: str
    source: SourceFiles
    params_sha256: str
    slice_stats: SliceStats
    lesions: tuple[Lesion, ...] | None
    max_rounding_error_hu: float
    warnings: tuple[str, ...]
    fingerprint: str | None = None
    points: tuple[Point, ...] | None = None
    """Written only for cases that were ingested with points, like the fields below."""
    points_sha256: str | None = None
    points_left_out: tuple[LeftOutPoint, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CaseInfo:
    """All data of a case except its voxels."""

    case_id: str
    patient_id: str
    shape: tuple[int, int, int]
    """Slices, rows and columns [z, y, x]; stored in the array documents, not in the attribute."""
    labels: Labels | None
    """None without a mask."""
    spacing_mm: tuple[float, float, float]
    """Voxel spacing along z, y and x."""
    affine_lps: npt.NDArray[np.float64]
    """float64[4, 4], stored voxel (x, y, z, 1) to mm in LPS+."""
    source_axcodes: str
    image: SourceFile
    mask: SourceFile | None
    params_sha256: str
    slice_stats: SliceStats
    lesions: tuple[Lesion, ...] | None
    """None without a mask or without a tumor label."""
    max_rounding_error_hu: float
    warnings: tuple[str, ...]
    fingerprint: str | None = None
    """SHA-256 of the checksums of the image's slices in order of z. In stores of one profile, equal voxels have equal
    fingerprints, whatever the source file."""
    points: tuple[Point, ...] | None = None
    """Nodules and excluded findings, in order of the tables; None if the case was ingested without points."""
    points_sha256: str | None = None
    """Hash of the case's rows of all tables of points; None without points."""
    points_left_out: tuple[LeftOutPoint, ...] = ()
    """Rows of the tables that were not used, and why."""
    format: int = FORMAT
    """Store format of the case as it was read."""

    @property
    def voxel_ml(self) -> float:
        """Return the voxel volume, ml."""
        return voxel_ml(self.affine_lps)

    def has_tumor(self, z: int) -> bool | None:
        """Return whether the slice at `z` has tumor; None without a tumor label."""
        tumor = self.labels.tumor if self.labels else None
        return self.slice_stats.voxels[tumor][z] > 0 if tumor else None

    def as_json(self) -> dict[str, Any]:
        """Return the attribute ``slicemill`` in the format that is written today."""
        document = to_document(
            CaseDocument(
                format=FORMAT,
                case_id=self.case_id,
                patient_id=self.patient_id,
                labels=dict(self.labels.values) if self.labels else None,
                organ=self.labels.organ if self.labels else None,
                tumor=self.labels.tumor if self.labels else None,
                spacing_mm=self.spacing_mm,
                affine_lps=self.affine_lps.tolist(),
                source_axcodes=self.source_axcodes,
                source=SourceFiles(image=self.image, mask=self.mask),
                params_sha256=self.params_sha256,
                slice_stats=self.slice_stats,
                lesions=None,
                max_rounding_error_hu=self.max_rounding_error_hu,
                warnings=self.warnings,
                fingerprint=self.fingerprint,
                points=self.points,
                points_sha256=self.points_sha256,
                points_left_out=self.points_left_out,
            )
        )
        if self.points is None:  # so that the documents of other cases stay as earlier versions read them
            for key in ("points", "points_sha256", "points_left_out"):
                del document[key]
        if self.lesions is not None:  # rounded, as in every report
            document["lesions"] = [lesion.as_json() for lesion in self.lesions]
        return document


@dataclass(frozen=True, kw_only=True)
class SourceHashes:
    """The hashes that change when a case of the store changes."""

    image_sha256: str
    mask_sha256: str | None
    params_sha256: str


def hash_source(info: CaseInfo) -> SourceHashes:
    """Return the hashes that change when a case of the store changes."""
    return SourceHashes(
        image_sha256=info.image.sha256,
        mask_sha256=info.mask.sha256 if info.mask else None,
        params_sha256=info.params_sha256,
    )


def parse_case(attribute: object, shape: tuple[int, int, int], where: str) -> CaseInfo:
    """Rebuild a CaseInfo from the attribute of the case `where`, whose image has `shape` [z, y, x].

    Raises
    ------
    StoreError
        The attribute has another format, or a field is missing or has a wrong type. The message names the field.
    """
    version = attribute.get("format") if isinstance(attribute, dict) else None
    if isinstance(attribute, dict) and version not in READABLE_FORMATS:
        raise StoreError(
            f"has store format {version!r}, but this version of slicemill reads the formats 1 to {FORMAT}; "
            "use the version of slicemill that wrote it, or ingest the collection again.",
            where=where,
        )
    try:
        document = from_document(CaseDocument, attribute, f"{where}, attribute slicemill", error=StoreError)
        labels = _parse_labels(document, where)
        _check_geometry(document, where)
        _check_statistics(document, shape, where)
        _check_lesions(document, shape, where)
        _check_points(document, where)
    except StoreError as error:
        raise StoreError(f"{error.reason} Ingest the case again with --overwrite.", where=error.where) from error
    return CaseInfo(
        case_id=document.case_id,
        patient_id=document.patient_id,
        shape=shape,
        labels=labels,
        spacing_mm=document.spacing_mm,
        affine_lps=np.array(document.affine_lps, dtype=np.float64),
        source_axcodes=document.source_axcodes,
        image=document.source.image,
        mask=document.source.mask,
        params_sha256=document.params_sha256,
        slice_stats=document.slice_stats,
        lesions=document.lesions,
        max_rounding_error_hu=document.max_rounding_error_hu,
        warnings=document.warnings,
        fingerprint=document.fingerprint,
        points=document.points,
        points_sha256=document.points_sha256,
        points_left_out=document.points_left_out,
        format=document.format,
    )


def _check_geometry(document: CaseDocument, where: str) -> None:
    affine = np.array(document.affine_lps)
    if not np.isfinite(affine).all() or affine[3].tolist() != [0, 0, 0, 1] or not voxel_ml(affine) > 0:
        raise StoreError(f"affine_lps must be finite and invertible; it is {affine.tolist()}.", where=where)
    if not all(0 < step < math.inf for step in document.spacing_mm):
        raise StoreError(f"spacing_mm must be above 0; it is {list(document.spacing_mm)}.", where=where)


def _check_statistics(document: CaseDocument, shape: tuple[int, int, int], where: str) -> None:
    stats, (nz, ny, nx) = document.slice_stats, shape
    lengths = {len(stats.hu_min), len(stats.hu_max), *map(len, stats.voxels.values())}
    if lengths != {nz}:
        raise StoreError(f"has {nz} slices, but statistics of {sorted(lengths)} slices.", where=where)
    names = set(document.labels or ())
    if set(stats.voxels) != names:
        raise StoreError(f"has the labels {sorted(names)}, but statistics of {sorted(stats.voxels)}.", where=where)
    if any(not 0 <= count <= ny * nx for counts in stats.voxels.values() for count in counts):
        raise StoreError(f"a slice has {ny * nx} voxels, but statistics of fewer than 0 or of more.", where=where)


def _check_lesions(document: CaseDocument, shape: tuple[int, int, int], where: str) -> None:
    for lesion in document.lesions or ():
        low, high = lesion.bbox_zyx[:3], lesion.bbox_zyx[3:]
        inside = all(0 <= start < end <= size for start, end, size in zip(low, high, shape, strict=True))
        numbers = (lesion.volume_ml, lesion.max_axial_diameter_mm, *lesion.centroid_lps_mm)
        counts = 0 < lesion.voxels <= math.prod(shape) and 0 <= lesion.id <= math.prod(shape)
        if not (inside and counts and 0 <= lesion.key_z < shape[0] and all(map(math.isfinite, numbers))):
            raise StoreError(f"a number of lesion {lesion.id} is out of range.", where=where)


def _check_points(document: CaseDocument, where: str) -> None:
    points = document.points or ()
    for point in points:
        numbers = [*point.xyz_mm, *(n for n in (point.diameter_mm, point.malignancy, point.volume_ml) if n is not None)]
        if not all(map(math.isfinite, [*numbers, *point.further.values()])):
            raise StoreError(f"a number of point {point.id!r} is not finite.", where=where)
        if point.diameter_mm is not None and point.diameter_mm <= 0:
            raise StoreError(f"the diameter of point {point.id!r} is {point.diameter_mm:g} mm.", where=where)
    if len({point.id for point in points}) != len(points):
        raise StoreError("two of its points have one id.", where=where)


def _parse_labels(document: CaseDocument, where: str) -> Labels | None:
    if not document.labels:
        return None
    fields = {"labels": document.labels, "organ": document.organ, "tumor": document.tumor}
    try:
        return labels_from_json(fields)
    except LabelError as error:
        raise StoreError(str(error), where=where) from error
