"""Other tools that read a DICOM series: each writes .nii, which slicemill then ingests, as people do today.

Each is also given the series of a tilted gantry: where its voxels lie is compared with the positions in the files.
"""

import resource
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from slicemill.bench.harness.clock import Work, ratio, show_progress, time_rounds
from slicemill.bench.harness.cores import pin_to_one_core
from slicemill.bench.harness.dicom_files import JPEG_LOSSLESS, PLAIN, Syntax, write_series
from slicemill.bench.harness.subject import Scan, phantom_subject
from slicemill.bench.schema.dicom import DicomPeer, DicomPeers
from slicemill.bench.stages.ingest import convert_with_slicemill, fresh_folder
from slicemill.ct.formats.dicom.lookup import open_series
from slicemill.ingest.params import Params

OURS = "ours"
COMPARED = (PLAIN, JPEG_LOSSLESS)
"""The syntaxes in which peers are timed."""
TILT_DEGREES, TILTED_SLICES, TILTED_SIDE = 14.0, 12, 128
PARAMS = Params(labels=None)
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHOWN_ERROR = 60
Corners = npt.NDArray[np.float64]
"""float64[slice, corner, 3]: centers of the four corner voxels of each slice, LPS mm."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A tool that converts a series into files .nii in an empty folder."""

    name: str
    needs: str
    """Module that must be installed."""
    convert: Callable[[Path, Path], None]


def by_dcm2niix(series: Path, out: Path) -> None:
    """Run the command dcm2niix, without compression, which is its fastest way."""
    command = [import_module("dcm2niix").bin, "-z", "n", "-b", "n", "-f", "out", "-o", str(out), str(series)]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 (an installed package)


def by_dicom2nifti(series: Path, out: Path) -> None:
    """Call dicom2nifti without reorientation."""
    convert = import_module("dicom2nifti").dicom_series_to_nifti
    convert(str(series), str(out / "out.nii"), reorient_nifti=False)


def by_simpleitk(series: Path, out: Path) -> None:
    """Read the series with SimpleITK's reader, as its documentation shows, in one thread."""
    sitk: Any = import_module("SimpleITK")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    sitk.WriteImage(reader.Execute(), str(out / "out.nii"))


PEERS = (
    Peer(name="dcm2niix", needs="dcm2niix", convert=by_dcm2niix),
    Peer(name="dicom2nifti", needs="dicom2nifti", convert=by_dicom2nifti),
    Peer(name="SimpleITK", needs="SimpleITK", convert=by_simpleitk),
)


def compare_peers(folder: Path, scans: Mapping[Syntax, Scan], tilted: Path | None, rounds: int) -> DicomPeers:
    """Time all installed peers on the syntaxes COMPARED, and describe what each makes of a tilted series."""
    installed = [peer for peer in PEERS if find_spec(peer.needs)]
    milliseconds: dict[str, dict[str, float]] = {peer.name: {} for peer in PEERS}
    times_ours: dict[str, dict[str, float]] = {peer.name: {} for peer in PEERS}
    for syntax in COMPARED:
        scan = scans[syntax]
        slices = len(list(scan.image.iterdir()))
        able = [peer for peer in installed if is_able(folder, scan.image, peer)]
        contenders: dict[str, Work] = {OURS: partial(convert_with_slicemill, folder, scan, PARAMS)}
        contenders |= {peer.name: partial(convert_twice, folder, scan.image, peer) for peer in able}
        with show_progress(f"peers, {syntax.name}", len(contenders), rounds) as log, pin_to_one_core():
            times = time_rounds(contenders, rounds=rounds, log=log, clock=cpu_seconds)
        for peer in able:
            milliseconds[peer.name][syntax.name] = round(1000 * times[peer.name].median / slices, 2)
            times_ours[peer.name][syntax.name] = round(ratio(times[peer.name], times[OURS]), 2)
    name, series = (tilted.name, tilted) if tilted else write_tilted(folder / "tilted")
    return DicomPeers(
        tilted=name,
        ours=describe_files([measure_ours(series)]),
        peers={
            peer.name: DicomPeer(
                milliseconds=milliseconds[peer.name],
                times_ours=times_ours[peer.name],
                tilted=describe_tilt(folder, series, peer) if peer in installed else "not installed",
            )
            for peer in PEERS
        },
    )


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def is_able(folder: Path, series: Path, peer: Peer) -> bool:
    """Return whether a peer writes one file of a series; the table has a dash where it does not."""
    with fresh_folder(folder) as path:
        try:
            peer.convert(series, path)
        except Exception:  # noqa: BLE001 (each tool has its own)
            return False
        return len(list(path.glob("*.nii"))) == 1


def convert_twice(folder: Path, series: Path, peer: Peer) -> None:
    """Convert a series to .nii with a peer, and that with slicemill into a store."""
    with fresh_folder(folder) as path:
        peer.convert(series, path)
        (nifti,) = path.glob("*.nii")
        convert_with_slicemill(folder, Scan(image=nifti), PARAMS)


def write_tilted(folder: Path) -> tuple[str, Path]:
    """Write a phantom of a tilted gantry, and return its name and folder."""
    subject = phantom_subject(TILTED_SLICES, size=TILTED_SIDE)
    write_series(folder, subject.image, subject.spacing_mm, PLAIN, tilt_degrees=TILT_DEGREES)
    return f"phantom, {TILT_DEGREES:g} degrees", folder


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where the slices of a file lie."""

    shape: tuple[int, ...]
    """Voxels along i, j, k."""
    of: tuple[int, ...]
    """Those of the series."""
    error_mm: float
    """Largest distance of a corner of a slice from where one lies by the series, or the reverse."""


def measure_ours(series: Path) -> Placed:
    """Return where slicemill places the slices of a series."""
    grid = open_series(series).grid
    return place(grid.affine_lps, grid.shape, series)


def describe_tilt(folder: Path, series: Path, peer: Peer) -> str:
    """Return what a peer makes of a tilted series: files and the distance of their slices, or its error."""
    with fresh_folder(folder) as path:
        try:
            peer.convert(series, path)
        except Exception as error:  # noqa: BLE001 (each tool has its own)
            return f"refused: {type(error).__name__} {str(error)[:SHOWN_ERROR]}".strip()
        files = [nib.load(one) for one in sorted(path.glob("*.nii"))]
        return describe_files([place(RAS_TO_LPS @ one.affine, one.shape, series) for one in files])


def describe_files(files: list[Placed]) -> str:
    """Return a phrase for the files that a tool wrote of one series.

    >>> same, other = (512, 512, 4), (512, 521, 4)
    >>> describe_files([Placed(shape=same, of=same, error_mm=0.0), Placed(shape=other, of=same, error_mm=3.8)])
    '2 files: slices within 0.0 mm; resampled to 512x521x4'
    """
    phrases = [
        f"slices within {one.error_mm:.1f} mm"
        if one.shape == one.of
        else f"resampled to {'x'.join(map(str, one.shape))}"
        for one in files
    ]
    return f"{len(files)} file{'s' if len(files) > 1 else ''}: {'; '.join(phrases)}" if files else "no file"


def corners_of_series(series: Path) -> tuple[Corners, tuple[int, int, int]]:
    """Return the corners of each slice by the headers of the files, and the voxels along i, j, k."""
    pydicom: Any = import_module("pydicom")
    corners = []
    for path in series.iterdir():
        one = pydicom.dcmread(path, stop_before_pixels=True)
        position, orientation = np.array(one.ImagePositionPatient, float), np.array(one.ImageOrientationPatient, float)
        right = orientation[:3] * float(one.PixelSpacing[1]) * (one.Columns - 1)
        down = orientation[3:] * float(one.PixelSpacing[0]) * (one.Rows - 1)
        corners.append([position, position + right, position + down, position + right + down])
    return np.array(corners), (int(one.Columns), int(one.Rows), len(corners))


def corners_of_grid(affine_lps: npt.NDArray[np.float64], shape: tuple[int, ...]) -> Corners:
    """Return the corners of each plane of a grid of `shape` [i, j, k]."""
    ends = [[i, j] for j in (0, shape[1] - 1) for i in (0, shape[0] - 1)]
    voxels = np.array([[[*end, k, 1] for end in ends] for k in range(shape[2])], float)
    return np.asarray((voxels @ affine_lps.T)[..., :3])


def place(affine_lps: npt.NDArray[np.float64], shape: tuple[int, ...], series: Path) -> Placed:
    """Return the distance of a grid's slices from those of a series: from each corner to the nearest of the other."""
    truth, of = corners_of_series(series)
    found = corners_of_grid(affine_lps, shape)
    apart = np.linalg.norm(found.reshape(-1, 1, 3) - truth.reshape(1, -1, 3), axis=2)
    error = max(float(apart.min(axis=0).max()), float(apart.min(axis=1).max()))
    return Placed(shape=tuple(shape), of=of, error_mm=round(error, 3))
