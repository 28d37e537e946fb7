"""What a benchmark measures on: one CT with its mask, a phantom or a scan of the user's, and the files it is put into.

A user's scan is written again, as plain NIfTI in one axis order, so that every contender reads the same files.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.bench.harness.conversions import gzip6_nifti
from slicemill.common.errors import ConfigError
from slicemill.ct.labels import LITS_LABELS, Labels, make_labels
from slicemill.ct.naming import natural_key
from slicemill.ct.phantom import PhantomSpec, make_phantom, write_nifti
from slicemill.ct.scan import ScanReader
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles, discover
from slicemill.ingest.params import Params
from slicemill.store.layout import ProfileName
from slicemill.store.reader import Store, open_store
from slicemill.store.writer import prepare_store

SUFFIXES = (".nii.gz", ".nii")

SIZE = 512
"""Pixels along a phantom slice's side: that of nearly every CT."""
CASE_ID = "volume-1"


@dataclass(frozen=True, kw_only=True)
class Files:
    """A case on disk."""

    image: Path
    mask: Path

    def case(self) -> CaseFiles:
        """Return it as ingest takes it."""
        return CaseFiles(case_id=CASE_ID, patient_id=CASE_ID, image=self.image, mask=self.mask, root=self.image.parent)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A CT with its mask, in memory."""

    name: str
    """What it is, in words, for the record."""
    image: npt.NDArray[np.int16]
    """int16[z, y, x], HU."""
    label: npt.NDArray[np.uint8]
    """uint8[z, y, x], label values."""
    spacing_mm: tuple[float, float, float]
    """z, y, x."""
    labels: Labels = field(default_factory=lambda: LITS_LABELS)

    def __str__(self) -> str:
        return f"{self.name}, {'x'.join(map(str, self.image.shape))}"

    def params(self, profile: ProfileName = "compact") -> Params:
        """Return how it is ingested."""
        return Params(labels=self.labels, profile=profile)

    def write(self, folder: Path, suffix: str) -> Files:
        """Write it as a case: .nii, or .nii.gz at level 6, as archives do."""
        folder.mkdir(parents=True, exist_ok=True)
        files = Files(image=folder / f"volume-1{suffix}", mask=folder / f"segmentation-1{suffix}")
        volumes: tuple[tuple[Path, npt.NDArray[Any]], ...] = ((files.image, self.image), (files.mask, self.label))
        for path, volume in volumes:
            if suffix == ".nii.gz":
                gzip6_nifti(volume, path)
            else:
                write_nifti(path, volume, self.spacing_mm)
        return files

    def store(self, folder: Path, profile: ProfileName = "compact") -> Store:
        """Ingest it into a fresh store in `folder`, which holds the case CASE_ID."""
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            prepare_store(folder)
            convert_case(self.write(Path(place), ".nii").case(), self.params(profile), folder)
        return open_store(folder)


def phantom_subject(slices: int, *, seed: int = 1, size: int | None = None) -> Subject:
    """Return a phantom of so many slices of SIZE x SIZE."""
    side = size or SIZE
    phantom = make_phantom(PhantomSpec(seed=seed, shape=(slices, side, side)))
    return Subject(name="phantom", image=phantom.image, label=phantom.label, spacing_mm=phantom.spacing_mm)


def scan_subject(data: Path, slices: int) -> Subject:
    """Return the first scan of a collection that has a mask, its middle `slices` if it has more.

    Raises
    ------
    ConfigError
        No scan there has a mask.
    """
    cases = sorted(discover(data).cases, key=lambda case: natural_key(case.case_id))
    chosen = next((case for case in cases if case.mask is not None), None)
    if chosen is None or chosen.mask is None:
        raise ConfigError(f"--data {data}: none of its {len(cases)} scans has a mask, which a benchmark needs.")
    with ScanReader(chosen.image, "image") as reader:
        image, spacing_mm = reader.read(), reader.grid.spacing_mm
    with ScanReader(chosen.mask, "mask") as reader:
        label = reader.read()
    if label.shape != image.shape:
        raise ConfigError(f"{chosen.mask}: has the shape {label.shape}, its image {image.shape}; name another --data.")
    first = max(0, (len(image) - slices) // 2)
    kept = slice(first, first + slices)
    values = [int(value) for value in np.unique(label) if value]
    known = set(values) <= set(LITS_LABELS.values.values())
    return Subject(
        name=f"{chosen.case_id}{f', {slices} of its {len(image)} slices' if len(image) > slices else ''}",
        image=np.ascontiguousarray(image[kept]),
        label=np.ascontiguousarray(label[kept]),
        spacing_mm=spacing_mm,
        labels=LITS_LABELS if known else make_labels({f"label {value}": value for value in values}),
    )


def subject_of(data: Path | None, slices: int) -> Subject:
    """Return the user's scan where there is one, else a phantom."""
    return phantom_subject(slices) if data is None else scan_subject(data, slices)


@contextmanager
def work_folder(folder: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder that is gone afterwards, below `folder` where that is given."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="slicemill-bench-") as place:
        yield Path(place)
