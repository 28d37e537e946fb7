"""Stamps: where the files of a case are, their sizes and times. The ledgers record them.

A case is skipped without reading its files only if its stamp is in the ledger. Paths are recorded as hashes: a folder
may be named after a person, and the tables already have the path relative to the collection.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import ScanError
from slicemill.common.files import Location, sha256_of_json
from slicemill.ct.formats.open import mark_files
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params

HASH_DIGITS = 32


@dataclass(frozen=True, kw_only=True)
class Place:
    """Hashes of the absolute paths of a case's files."""

    image: str
    mask: str | None
    """Of all files of the mask; None without a mask."""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """Version tag of a case: its files' places, sizes and times, its patient, and the parameters."""

    image: tuple[int, ...] | None
    """Size in bytes and modification time in ns of each file of the image; -1, -1 if a file cannot be found. Of a DICOM
    series, the size of its folder's files and a hash of their sizes and times (`mark_files`)."""
    mask: tuple[int, ...] | None
    """The same for the mask; None without a mask."""
    patient_id: str
    params_sha256: str
    points_sha256: str | None = None
    """Hash of its rows of the tables of points; None without tables."""
    place: Place | None = None
    """None in ledgers of earlier versions."""

    @property
    def megabytes(self) -> float:
        """Return the size of the first file of image and mask, MB."""
        return sum(max(0, marks[0]) for marks in (self.image, self.mask) if marks) / 1e6


def locate(case: CaseFiles) -> Place:
    """Return the place of a case's files. Links to folders are resolved, because they may later lead elsewhere."""
    return Place(image=_hash_paths([case.image]), mask=_hash_paths(case.mask_files) if case.mask_files else None)


def _hash_paths(paths: Iterable[Location]) -> str:
    return sha256_of_json([_resolve_folder(path) for path in paths])[:HASH_DIGITS]


def _resolve_folder(path: Location) -> str:
    if isinstance(path, Path):
        return os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118 (a text, not a path)
    return str(path)


def stamp_case(case: CaseFiles, params: Params, place: Place) -> Stamp:
    """Return the current stamp of a case's files, which are at `place`."""
    return Stamp(
        image=_mark_files(case.image),
        mask=tuple(mark for file in case.mask_files for mark in _mark_files(file)) or None,
        patient_id=case.patient_id,
        params_sha256=params.sha256(),
        points_sha256=case.points.sha256 if case.points else None,
        place=place,
    )


def _mark_files(path: Location) -> tuple[int, ...]:
    try:
        return mark_files(path)
    except (OSError, ScanError):
        return (-1, -1)
