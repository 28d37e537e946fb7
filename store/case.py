"""What a store knows of one case: the group attribute ``slicemill``, as a value."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import StoreError
from slicemill.ct.geometry import voxel_ml
from slicemill.ct.labels import Labels, labels_from_json
from slicemill.ct.lesions import Lesion
from slicemill.store.layout import FORMAT


@dataclass(frozen=True, kw_only=True)
class SliceStats:
    """Per slice, in stored order: HU range without the scanner's padding, voxels of each label."""

    hu_min: list[int | None]
    hu_max: list[int | None]
    """None where a slice is all padding."""
    voxels: dict[str, list[int]]
    """Label name -> voxels in each slice; empty without a mask."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that a case was made from, without its absolute path or time."""

    name: str
    """Path relative to the collection, with forward slashes."""
    bytes: int
    sha256: str
    header_b64: str
    """The NIfTI header, base64; free text blanked unless it was to be kept."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields as they stand in the attribute."""
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256, "header_b64": self.header_b64}


@dataclass(frozen=True, kw_only=True)
class CaseInfo:
    """Everything but the voxels."""

    case_id: str
    patient_id: str
    shape: tuple[int, int, int]
    """z, y, x; stands in the array documents, not in the attribute."""
    labels: Labels | None
    """None where there is no mask."""
    spacing_mm: tuple[float, float, float]
    """z, y, x."""
    affine_lps: npt.NDArray[np.float64]
    source_axcodes: str
    image: SourceFile
    mask: SourceFile | None
    params_sha256: str
    slice_stats: SliceStats
    lesions: tuple[Lesion, ...] | None
    """None where no tumor label is named or there is no mask."""
    max_rounding_error_hu: float
    warnings: tuple[str, ...]
    fingerprint: str | None = None
    """SHA-256 of the checksums of the image's slices, in order of z: equal for equal voxels, whatever file
    they came in (in stores of one profile)."""

    @property
    def voxel_ml(self) -> float:
        """Return the volume of a voxel in ml."""
        return voxel_ml(self.affine_lps)

    def as_json(self) -> dict[str, Any]:
        """Return the attribute ``slicemill``."""
        none = {"labels": None, "organ": None, "tumor": None}
        return {
            "format": FORMAT,
            "case_id": self.case_id,
            "patient_id": self.patient_id,
            **(self.labels.as_json() if self.labels else none),
            "spacing_mm": list(self.spacing_mm),
            "affine_lps": self.affine_lps.tolist(),
            "source_axcodes": self.source_axcodes,
            "source": {"image": self.image.as_json(), "mask": self.mask.as_json() if self.mask else None},
            "params_sha256": self.params_sha256,
            "slice_stats": {
                "hu_min": self.slice_stats.hu_min,
                "hu_max": self.slice_stats.hu_max,
                "voxels": self.slice_stats.voxels,
            },
            "lesions": None if self.lesions is None else [lesion.as_json() for lesion in self.lesions],
            "max_rounding_error_hu": self.max_rounding_error_hu,
            "warnings": list(self.warnings),
            "fingerprint": self.fingerprint,
        }


def case_from_json(document: dict[str, Any], shape: tuple[int, int, int]) -> CaseInfo:
    """Rebuild a CaseInfo from the attribute.

    Raises
    ------
    StoreError
        The attribute is of another format or a field is missing.
    """
    if not isinstance(document, dict):
        raise StoreError(f"the attribute must be a JSON object; found {type(document).__name__}.")
    if document.get("format") != FORMAT:
        raise StoreError(
            f"store format {document.get('format')!r}: this version reads format {FORMAT}; ingest the collection again."
        )
    try:
        source = document["source"]
        lesions = document["lesions"]
        affine = np.array(document["affine_lps"], dtype=np.float64)
        stats = _stats(document["slice_stats"])
        lengths = {len(stats.hu_min), len(stats.hu_max), *map(len, stats.voxels.values())}
        if affine.shape != (4, 4) or len(document["spacing_mm"]) != 3 or lengths != {shape[0]}:
            raise ValueError("affine, spacing or statistics do not fit the shape")
        return CaseInfo(
            case_id=_text(document["case_id"]),
            patient_id=_text(document["patient_id"]),
            shape=shape,
            labels=labels_from_json(document) if document["labels"] else None,
            spacing_mm=_spacing(document["spacing_mm"]),
            affine_lps=affine,
            source_axcodes=_text(document["source_axcodes"]),
            image=_source(source["image"]),
            mask=_source(source["mask"]) if source["mask"] else None,
            params_sha256=_text(document["params_sha256"]),
            slice_stats=stats,
            lesions=None if lesions is None else tuple(_lesion(row) for row in lesions),
            max_rounding_error_hu=float(document["max_rounding_error_hu"]),
            warnings=tuple(_text(warning) for warning in document["warnings"]),
            fingerprint=None if document.get("fingerprint") is None else _text(document["fingerprint"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise StoreError(
            f"the case's attributes are incomplete ({error}); ingest it again with --overwrite."
        ) from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r:.40}")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        raise TypeError(f"expected a whole number, found {value!r:.40}")
    return value


def _spacing(values: list[Any]) -> tuple[float, float, float]:
    z, y, x = (float(value) for value in values)
    return z, y, x


def _stats(document: dict[str, Any]) -> SliceStats:
    def hu(values: list[Any]) -> list[int | None]:
        return [None if value is None else _count(value) for value in values]

    voxels = {_text(name): [_count(value) for value in counts] for name, counts in document["voxels"].items()}
    return SliceStats(hu_min=hu(document["hu_min"]), hu_max=hu(document["hu_max"]), voxels=voxels)


def _source(document: dict[str, Any]) -> SourceFile:
    return SourceFile(
        name=_text(document["name"]),
        bytes=_count(document["bytes"]),
        sha256=_text(document["sha256"]),
        header_b64=_text(document["header_b64"]),
    )


def _lesion(row: dict[str, Any]) -> Lesion:
    x, y, z = (float(value) for value in row["centroid_lps_mm"])
    z0, y0, x0, z1, y1, x1 = (_count(value) for value in row["bbox_zyx"])
    return Lesion(
        id=_count(row["id"]),
        voxels=_count(row["voxels"]),
        volume_ml=float(row["volume_ml"]),
        centroid_lps_mm=(x, y, z),
        bbox_zyx=(z0, y0, x0, z1, y1, x1),
        key_z=_count(row["key_z"]),
        max_axial_diameter_mm=float(row["max_axial_diameter_mm"]),
    )
