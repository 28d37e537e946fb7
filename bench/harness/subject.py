"""The input of a benchmark: one CT with its mask (a phantom or a user's scan), and the files made from it.

A user's scan is rewritten as plain NIfTI in one axis order, so that every contender reads the same files.
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
from slicemill.common.names import natural_key
from slicemill.ct.formats.dicom.folders import forget_folders
from slicemill.ct.labels import LITS_LABELS, Labels, make_labels
from slicemill.ct.phantom import make_phantom, write_nifti
from slicemill.ct.phantom_canvas import PhantomSpec
from slicemill.ct.same_grid import require_same_grid
from slicemill.ct.scan import ScanReader
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles, discover
from slicemill.ingest.params import Params
from slicemill.store.layout import ProfileName
from slicemill.store.reader import Store, open_store
from slicemill.store.writer import prepare_store

SUFFIXES = (".nii.gz", ".nii")
SIZE = 512
"""Pixels along a side of a phantom's slice, as in nearly every CT."""
CASE_ID = "volume-1"


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A scan on disk, as a case: a file, or the folder of a DICOM series."""

    image: Path
    mask: Path | None = None

    def case(self, case_id: str = CASE_ID) -> CaseFiles:
        """Return the files as ingest takes them."""
        return CaseFiles(case_id=case_id, patient_id=case_id, image=self.image, mask=self.mask, root=self.image.parent)

    def convert(self, store: Path, params: Params, *, threads: int = 1) -> None:
        """Convert the case into a new store, without lock, ledger, tables and Dask, whose cost many cases share."""
        forget_folders()  # the headers of a DICOM series are read each time
        prepare_store(store)
        convert_case(self.case(), params, store, threads=threads)


@dataclass(frozen=True, kw_only=True)
class Files(Scan):
    """A scan and its mask on disk."""

    mask: Path

    @classmethod
    def in_folder(cls, folder: Path, suffix: str) -> "Files":
        """Return the paths of a case in a folder."""
        return cls(image=folder / f"volume-1{suffix}", mask=folder / f"segmentation-1{suffix}")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A CT with its mask, in memory."""

    name: str
    image: npt.NDArray[np.int16]
    """int16[z, y, x], HU."""
    label: npt.NDArray[np.uint8]
    """uint8[z, y, x], label values."""
    spacing_mm: tuple[float, float, float]
    """Distance of voxel centers along z, y, x."""
    labels: Labels = field(default_factory=lambda: LITS_LABELS)
    """Names of the label values."""

    def __str__(self) -> str:
        return f"{self.name}, {'x'.join(map(str, self.image.shape))}"

    def params(self, profile: ProfileName = "compact") -> Params:
        """Return the settings of its ingest."""
        return Params(labels=self.labels, profile=profile)

    def write(self, folder: Path, suffix: str) -> Files:
        """Write the scan and its mask as .nii, or as .nii.gz at level 6, as archives do."""
        folder.mkdir(parents=True, exist_ok=True)
        files = Files.in_folder(folder, suffix)
        volumes: tuple[tuple[Path, npt.NDArray[Any]], ...] = ((files.image, self.image), (files.mask, self.label))
        for path, volume in volumes:
            if suffix == ".nii.gz":
                gzip6_nifti(volume, path)
            else:
                write_nifti(path, volume, self.spacing_mm)
        return files

    def store(self, folder: Path, profile: ProfileName = "compact") -> Store:
        """Ingest the scan as the case CASE_ID of a new store in `folder`."""
        with tempfile.TemporaryDirectory(dir=folder.parent) as files:
            self.write(Path(files), ".nii").convert(folder, self.params(profile))
        return open_store(folder)


def phantom_subject(slices: int, *, seed: int = 1, size: int | None = None) -> Subject:
    """Return a phantom with `slices` slices of `size` x `size` pixels, by default SIZE."""
    side = size or SIZE
    phantom = make_phantom(PhantomSpec(seed=seed, shape=(slices, side, side)))
    return Subject(name="phantom", image=phantom.image, label=phantom.label, spacing_mm=phantom.spacing_mm)


def scan_subject(data: Path, slices: int) -> Subject:
    """Return the first scan with a mask of a collection; of a longer scan, the middle `slices`.

    Raises
    ------
    ConfigError
        No scan has a mask.
    GeometryError
        The mask has another grid.
    """
    cases = sorted(discover(data).cases, key=lambda case: natural_key(case.case_id))
    chosen = next((case for case in cases if case.mask is not None), None)
    if chosen is None or chosen.mask is None:
        raise ConfigError(f"--data {data}: none of its {len(cases)} scans has a mask, and a benchmark needs one.")
    with ScanReader(chosen.image, "image") as reader:
        image, grid = reader.read(), reader.grid
    with ScanReader(chosen.mask, "mask") as reader:
        reader.replace_grid(require_same_grid(reader.grid, grid, chosen.mask, f"its image {chosen.image}"))
        label = reader.read()
    first = max(0, (len(image) - slices) // 2)
    kept = slice(first, first + slices)
    values = [int(value) for value in np.unique(label) if value]
    known = set(values) <= set(LITS_LABELS.values.values())
    return Subject(
        name=f"{chosen.case_id}{f', {slices} of its {len(image)} slices' if len(image) > slices else ''}",
        image=np.ascontiguousarray(image[kept]),
        label=np.ascontiguousarray(label[kept]),
        spacing_mm=grid.spacing_mm,
        labels=LITS_LABELS if known else make_labels({f"label {value}": value for value in values}),
    )


def choose_subject(data: Path | None, slices: int) -> Subject:
    """Return a scan of the collection `data`, or a phantom if it is None."""
    return phantom_subject(slices) if data is None else scan_subject(data, slices)


def same_voxels(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> bool:
    """Return whether two volumes hold the same values, in any order of axes."""
    return np.array_equal(np.sort(one, axis=None), np.sort(other, axis=None))


@contextmanager
def work_folder(folder: Path | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder, in `folder` if that is not None; it is deleted afterwards."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="slicemill-bench-") as path:
        yield Path(path)
