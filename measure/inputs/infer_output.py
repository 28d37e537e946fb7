"""The files that `infer` writes next to a mask: the JSON report, probability maps, and masks of single labels."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import GeometryError, InputError, LabelError, PairingError
from slicemill.common.files import read_json
from slicemill.ct.formats.names import strip_suffix
from slicemill.ct.formats.nifti.header import read_header, read_signature
from slicemill.ct.formats.nifti.stream import open_voxels, read_exactly, skip_bytes, view_bytes
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import Labels, labels_from_json
from slicemill.ct.naming import find_files
from slicemill.ct.same_grid import describe_difference, match_grid

PROBABILITY = "_probability_"
"""Separates the mask's name from the label's in the names of probability maps (`infer --probability`)."""


@dataclass(frozen=True, kw_only=True)
class ModelUsed:
    """The model of a mask, according to its report. Values of a wrong type are None."""

    model: str | None
    model_sha256: str | None
    mean_tumor_probability: float | None = None
    """Mean probability of the tumor voxels; None where no tumor was found."""
    removed_tumor_score: float | None = None
    """Tumor score of a scan where no tumor was found; None where one was found."""


@dataclass(frozen=True, kw_only=True)
class InferReport:
    """Fields of an `infer` report that evaluation and measurement use."""

    label_fields: Mapping[str, object]
    """The report's fields labels, organ and tumor, unchecked."""
    model: ModelUsed
    tumor_score: float | None
    """Score of the scan, 0 to 1; None if the report has no finite number."""
    slice_tumor_scores: tuple[float, ...] | None
    """Score of each slice, 0 to 1; None if the report does not have finite numbers."""

    warnings: tuple[str, ...] = ()
    """Warnings about the scan; values of a wrong type are left out."""

    def read_labels(self) -> Labels:
        """Return the labels of the report.

        Raises
        ------
        LabelError
            The report does not map names to values.
        """
        return labels_from_json(self.label_fields)


def is_infer_report(document: Mapping[str, object]) -> bool:
    """Return whether a JSON document is a report of `infer`.

    Reports have no format name or version, and other JSON files may be stored next to a mask. So a report is recognized
    by two keys that every report has and that no other known tool writes.
    """
    return "model_sha256" in document and "slice_tumor_scores" in document


def read_report(mask: Path) -> InferReport | None:
    """Read the report of `infer` next to a mask; None if the file is missing, damaged or another JSON file."""
    path = mask.with_name(strip_suffix(mask.name) + ".json")
    if not path.exists():
        return None
    try:
        document = read_json(path)
    except InputError:
        return None
    if not is_infer_report(document):
        return None
    model, sha256 = document.get("model"), document.get("model_sha256")
    slice_scores, score = document["slice_tumor_scores"], document.get("tumor_score")
    without = document.get("tumor_found") is False
    mean = document.get("mean_tumor_probability", document.get("tumor_confidence"))  # the key of older reports
    return InferReport(
        label_fields={key: document.get(key) for key in ("labels", "organ", "tumor")},
        model=ModelUsed(
            model=model if isinstance(model, str) else None,
            model_sha256=sha256 if isinstance(sha256, str) else None,
            mean_tumor_probability=None if without else _finite_float(mean),
            removed_tumor_score=_finite_float(score) if without else None,
        ),
        tumor_score=_finite_float(score),
        slice_tumor_scores=_finite_floats(slice_scores) if isinstance(slice_scores, list) else None,
        warnings=_texts(document.get("warnings")),
    )


def read_own_report(mask: Path) -> InferReport | None:
    """Read the report next to a mask like `read_report`, and check that both are of one model.

    Raises
    ------
    PairingError
        The mask names another model than the report.
    """
    report, signature = read_report(mask), read_signature(mask)
    if report is not None and signature and report.model.model_sha256 != signature:
        raise PairingError(
            f"its report {strip_suffix(mask.name)}.json is of another model (mask {signature[:12]}, report "
            f"{str(report.model.model_sha256)[:12]}). Segment the scan again, or remove the report.",
            where=mask,
        )
    return report


def _check_model(mask: Path, probability: Path) -> None:
    """Check that a probability map is of its mask's model; masks of other tools and older versions name none.

    Raises
    ------
    PairingError
        The mask names a model, and the map names another one or none.
    """
    signature, other = read_signature(mask), read_signature(probability)
    if signature and other != signature:
        maker = other[:12] if other else "none, like files of older versions"
        raise PairingError(
            f"its probability map {probability.name} is of another model (mask {signature[:12]}, map {maker}). "
            "Write both again with `slicemill infer --probability --overwrite`, or remove the map.",
            where=mask,
        )


def _texts(values: object) -> tuple[str, ...]:
    return tuple(value for value in values if isinstance(value, str)) if isinstance(values, list) else ()


def _finite_float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _finite_floats(values: list[object]) -> tuple[float, ...] | None:
    numbers = [number for value in values if (number := _finite_float(value)) is not None]
    return tuple(numbers) if len(numbers) == len(values) else None


def find_masks(folder: Path) -> list[Path]:
    """Return the masks below a folder, without the probability maps and single labels that `infer` writes."""
    files = find_files(folder)
    stems = {file.parent / strip_suffix(file.name) for file in files}
    return [file for file in files if not any(stem in stems for stem in _possible_masks(file))]


def _possible_masks(file: Path) -> list[Path]:
    """Return the possible masks of a file, without suffix, if it is a probability map or a single label."""
    stem = strip_suffix(file.name)
    stems = [stem.partition(PROBABILITY)[0]] if PROBABILITY in stem else []
    splits = [(stem[:index], stem[index + 1 :]) for index, character in enumerate(stem) if character == "_"]
    stems += [start for start, end in splits if end in _label_file_names(file.with_name(f"{start}.nii"))]
    return [file.parent / name for name in stems]


def _label_file_names(mask: Path) -> Collection[str]:
    """Return the names of the labels in file names, from the report next to a mask; empty without a usable report."""
    report = read_report(mask)
    try:
        return report.read_labels().file_names().values() if report else ()
    except LabelError:
        return ()


def read_tumor_probability(mask: Path, labels: Labels, grid: Grid) -> npt.NDArray[np.uint8] | None:
    """Read the tumor's probability map next to a mask, uint8[z, y, x], 255 is certain; None if there is none.

    Raises
    ------
    GeometryError
        The map has other voxels than `grid`, or voxels that are not bytes.
    PairingError
        The map is of another model than the mask.
    """
    if labels.tumor is None:
        return None
    stem = strip_suffix(mask.name)
    path = mask.with_name(f"{stem}{PROBABILITY}{labels.file_names()[labels.tumor]}{mask.name[len(stem) :]}")
    if not path.exists():
        return None
    _check_model(mask, path)
    return read_probability(path, grid)


def read_probability(path: Path, grid: Grid) -> npt.NDArray[np.uint8]:
    """Read a probability map, stored as 0 to 255, on the grid of its mask, uint8[z, y, x].

    Raises
    ------
    GeometryError
        The map has other voxels than `grid`, or voxels that are not bytes.
    """
    header = read_header(path)
    turned = match_grid(header.grid, grid)
    if turned is None or header.dtype != np.uint8:
        difference = f"it has {header.dtype}" if turned else describe_difference(header.grid, grid)
        raise GeometryError(
            f"a probability map must have bytes on its mask's grid, {grid.shape}; {difference}. "
            "Write it again with `slicemill infer --probability`.",
            where=path,
        )
    ni, nj, nk = header.grid.shape
    voxels = np.empty((nk, nj, ni), dtype=np.uint8)
    stream, _ = open_voxels(path, hashed=False)
    try:
        skip_bytes(stream, header.data_offset, path)
        read_exactly(stream, view_bytes(voxels), path)
    finally:
        stream.close()
    return np.ascontiguousarray(turned.to_stored(voxels), dtype=np.uint8)
