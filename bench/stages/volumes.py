"""Reading MetaImage and NRRD: ours against SimpleITK and pynrrd, on the slices of one scan.

Bottleneck: inflating. Each contender reads the complete file into an array. "ours, as ingest" reads slab after slab and
hashes the file, as ingest does. The page cache is warm and rounds are interleaved. SimpleITK has one thread; peers that
are not installed are left out. Command: `slicemill bench volumes`.
"""

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.bench.harness.clock import Log, show_progress, time_on_both_clocks
from slicemill.bench.harness.cores import pin_to_one_core
from slicemill.bench.harness.headline import Record, check
from slicemill.bench.harness.subject import Subject
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.data import VolumeFormat, VolumesRecord
from slicemill.common.errors import ConfigError
from slicemill.ct.formats.open import scan_files
from slicemill.ct.scan import ScanReader

OURS, INGEST, SIMPLEITK, PYNRRD = "ours", "ours, as ingest", "SimpleITK", "pynrrd"
Volume = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file of one format."""

    name: str
    """Its suffix, and whether it is compressed."""
    file: str
    compressed: bool


CASES = (
    Case(name=".mhd with .zraw", file="packed.mhd", compressed=True),
    Case(name=".mhd with .raw", file="plain.mhd", compressed=False),
    Case(name=".nrrd, gzip", file="packed.nrrd", compressed=True),
    Case(name=".nii.gz", file="packed.nii.gz", compressed=True),
)


def run(folder: Path, subject: Subject, *, rounds: int) -> Record:
    """Time all readers on one scan and return the record.

    Raises
    ------
    ConfigError
        SimpleITK, which writes the files, is not installed.
    """
    if not find_spec("SimpleITK"):
        raise ConfigError("this benchmark writes its files with SimpleITK: pip install SimpleITK.")
    with show_progress("volumes", 3 * len(CASES), rounds) as log, pin_to_one_core():
        formats = {case.name: compare(folder, case, subject, rounds, log) for case in CASES}
    return VolumesRecord(
        **origin(), subject=str(subject), slices=len(subject.image), rounds=rounds, formats=formats
    ).as_json()


def compare(folder: Path, case: Case, subject: Subject, rounds: int, log: Log) -> VolumeFormat:
    """Write the scan in a format and time its readers."""
    path = folder / case.file
    write(path, subject, compressed=case.compressed)
    readers: dict[str, partial[Volume]] = {
        OURS: partial(read_ours, path),
        INGEST: partial(read_as_ingest, path),
        SIMPLEITK: partial(read_simpleitk, path),
    }
    if path.suffix == ".nrrd" and find_spec("nrrd"):
        readers[PYNRRD] = partial(read_pynrrd, path)
    for name, read in readers.items():
        if name != INGEST:
            check(f"{name} reads the voxels of {case.name}", holds=np.array_equal(read(), subject.image))
    times = time_on_both_clocks(readers, rounds, log)
    slices = len(subject.image)
    peers = {name: times.speedup(OURS, name) for name in readers if name not in (OURS, INGEST)}
    return VolumeFormat(
        megabytes=round(sum(file.stat().st_size for file in scan_files(path)) / 1e6, 2),
        cpu_milliseconds={name: round(1000 * timing.median / slices, 3) for name, timing in times.cpu.items()},
        ours_over=peers,
    )


def write(path: Path, subject: Subject, *, compressed: bool) -> None:
    """Write a scan with SimpleITK."""
    SimpleITK: Any = import_module("SimpleITK")  # noqa: N806 (its own name)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    image = SimpleITK.GetImageFromArray(subject.image)
    image.SetSpacing(tuple(float(mm) for mm in subject.spacing_mm[::-1]))
    SimpleITK.WriteImage(image, str(path), useCompression=compressed)


def read_ours(path: Path) -> Volume:
    """Return the voxels int16[z, y, x]."""
    with ScanReader(path, "image", hashed=False) as reader:
        volume = reader.read()
        reader.finish()
    return volume


def read_as_ingest(path: Path) -> Volume:
    """Read slab after slab and return the last one."""
    with ScanReader(path, "image") as reader:
        for slab in reader.slabs():
            last = slab.voxels
        reader.finish()
    return last


def read_simpleitk(path: Path) -> Volume:
    """Return the voxels int16[z, y, x]."""
    SimpleITK: Any = import_module("SimpleITK")  # noqa: N806 (its own name)
    return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))


def read_pynrrd(path: Path) -> Volume:
    """Return the voxels int16[z, y, x]."""
    nrrd: Any = import_module("nrrd")
    return np.asarray(nrrd.read(str(path), index_order="C")[0])
