"""Scans that `slicemill.Model` takes: files, cases of a store, images of nibabel and SimpleITK, and arrays.

An array alone does not say in which order its axes are, nor what its affine leads to. `Axes` names the two conventions
in use, and every array states which one it has:

    xyz-ras   array[i, j, k], affine: (i, j, k, 1) to RAS mm. nibabel, TorchIO, MONAI.
    zyx-lps   array[k, j, i], affine: (i, j, k, 1) to LPS mm. SimpleITK's arrays, and slicemill's stores.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import nibabel as nib
import numpy as np
import numpy.typing as npt

from slicemill.common.errors import GeometryError, ScanError, UsageError
from slicemill.common.files import Location, parse_location
from slicemill.common.remote import RemotePath
from slicemill.ct.formats.nifti.header import blank_text, parse_grid, stored_warnings
from slicemill.ct.formats.nifti.make import make_header
from slicemill.ct.geometry import RAS_TO_LPS, Grid, make_contiguous
from slicemill.ct.scan import to_hu
from slicemill.infer.inputs.jobs import Job, LoadedScan, OpenScan, Voxels, load_scan
from slicemill.store.headers import read_grid, read_header
from slicemill.store.reader import Case
from slicemill.store.training_scans import TrainingScans

if TYPE_CHECKING:
    import SimpleITK

Axes = Literal["xyz-ras", "zyx-lps"]
"""Order of an array's axes, and the world that its affine leads to; see the module."""
Scan: TypeAlias = "str | Location | Case | nib.Nifti1Pair | SimpleITK.Image | npt.NDArray[Any]"
"""What can be segmented: a path or URL, a case of a store, an image of nibabel or SimpleITK, or an array."""


@dataclass(frozen=True, kw_only=True)
class ScanOrigin:
    """Where a scan comes from, and the order in which its user sees it; without its voxels."""

    axes: Axes
    view: Grid
    """Grid of the array that the user sees: the scan's grid, or that of the stored array for a case of a store."""
    grid: Grid
    """Grid of the scan's file."""
    header: bytes
    """NIfTI header for masks, without text."""
    name: str
    """Name for the report: the file's, the case's, or the kind of object."""
    path: Location | None = None
    """The scan's file; None if it is not a file."""


@dataclass(frozen=True, kw_only=True)
class ScanInput:
    """A scan in memory, and where it comes from."""

    scan: LoadedScan
    origin: ScanOrigin


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A scan that is no file, before its voxels are checked."""

    axes: Axes
    name: str
    voxels: Voxels
    grid: Grid
    header: bytes
    path: Location | None = None
    view: Grid | None = None


def read_input(
    scan: Scan,
    *,
    spacing: Sequence[float] | None = None,
    affine: npt.ArrayLike | None = None,
    axes: Axes | None = None,
    strict: bool = False,
    trained: TrainingScans | None = None,
) -> ScanInput:
    """Read a scan; see `slicemill.Model.segment` for the parameters, and `slicemill.Model` for `strict`.

    With `trained`, it has a warning if it differs from the scans that the model was trained on.

    Raises
    ------
    UsageError
        `spacing`, `affine` or `axes` is missing for an array, or was passed with something else.
    InputError
        The scan cannot be read as a CT.
    """
    if isinstance(scan, np.ndarray):
        return _load(read_array(scan, spacing, affine, axes), trained, strict=strict)
    if spacing is not None or affine is not None or axes is not None:
        raise UsageError("spacing, affine and axes belong to arrays; a file or an image has its own.")
    if isinstance(scan, str | Path | RemotePath):
        path = parse_location(scan)
        loaded = load_scan(Job(name=path.name, path=path), trained, strict=strict)
        return _describe(loaded, "xyz-ras", path.name, path)
    if isinstance(scan, Case):
        return _load(read_case(scan), trained, strict=strict)
    if isinstance(scan, nib.Nifti1Pair):
        return _load(read_nibabel(scan), trained, strict=strict)
    if type(scan).__module__.partition(".")[0] == "SimpleITK" and hasattr(scan, "GetDirection"):
        return _load(read_simpleitk(scan), trained, strict=strict)
    kind = f"{type(scan).__module__}.{type(scan).__qualname__}"
    raise ScanError(
        f"a scan must be a path, a case of a store, a NIfTI image of nibabel, an image of SimpleITK or a numpy array; "
        f"this is a {kind}. Convert it, for example with nibabel.Nifti1Image.from_image."
    )


def read_case(case: Case) -> _Opened:
    """Read a case of a store; results are saved on the grid of the file it came from."""
    return _Opened(
        axes="zyx-lps",
        name=case.case_id,
        voxels=Voxels(volume=np.asarray(case.image), max_rounding_error_hu=case.info.max_rounding_error_hu),
        grid=read_grid(case),
        header=read_header(case, case.info.image),
        view=make_grid(case.image.shape, case.affine, "zyx-lps"),
    )


def read_nibabel(image: "nib.Nifti1Pair") -> _Opened:
    """Read an image of nibabel like the file that nibabel would save of it."""
    file = image.get_filename()
    path = Path(file) if file else None
    name = path.name if path else "nibabel image"
    # a new image writes the affine, which may have been changed, into its header
    header = bytes(type(image)(image.dataobj, image.affine, image.header).header.binaryblock)
    grid = parse_grid(header)
    voxels = np.asanyarray(image.dataobj).reshape(grid.shape)
    return _Opened(
        axes="xyz-ras", name=name, path=path, voxels=_to_stored(voxels.T, grid, name), grid=grid, header=header
    )


def read_simpleitk(image: Any) -> _Opened:
    """Read a `SimpleITK.Image`: one volume of one number per voxel."""
    import SimpleITK

    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ScanError(
            f"a CT has 3 axes and one number per voxel; the SimpleITK image has {image.GetDimension()} axes and "
            f"{image.GetNumberOfComponentsPerPixel()} numbers per voxel. Extract one volume."
        )
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    # a copy: a view would outlive the image
    return _read_voxels(SimpleITK.GetArrayFromImage(image), affine, "zyx-lps", "SimpleITK image")


def read_array(
    array: npt.NDArray[Any], spacing: Sequence[float] | None, affine: npt.ArrayLike | None, axes: Axes | None
) -> _Opened:
    """Read an array any[...] of 3 axes; see `slicemill.Model.segment`."""
    return _read_voxels(array, make_affine(spacing, affine, axes), check_axes(axes), "array")


def check_axes(axes: Axes | None) -> Axes:
    """Return the axes of an array.

    Raises
    ------
    UsageError
        They are missing or unknown.
    """
    if axes is None or axes not in get_args(Axes):
        raise UsageError(
            f"axes = {axes!r}: an array needs the order of its axes. Pass axes='xyz-ras' for array[i, j, k] with an "
            "affine to RAS mm (nibabel, MONAI, TorchIO), or axes='zyx-lps' for array[k, j, i] with an affine to LPS "
            "mm (SimpleITK, slicemill)."
        )
    return axes


def make_affine(
    spacing: Sequence[float] | None, affine: npt.ArrayLike | None, axes: Axes | None
) -> npt.NDArray[np.float64]:
    """Return the affine of an array, float64[4, 4], voxel (i, j, k, 1) to mm in the world of its axes.

    Parameters
    ----------
    spacing
        Size of a voxel along the array's axes in their order, mm; the array is then not rotated.
    affine
        The affine itself, instead.

    Raises
    ------
    UsageError
        Both or none of `spacing` and `affine` were passed, or they are no lengths and no affine.

    >>> make_affine((5.0, 0.8, 0.7), None, "zyx-lps").diagonal().tolist()
    [0.7, 0.8, 5.0, 1.0]
    """
    order = check_axes(axes)
    if (spacing is None) == (affine is None):
        raise UsageError("an array needs spacing=, the size of a voxel in mm, or affine=; pass one of them.")
    if spacing is not None:
        steps = [float(step) for step in spacing]
        if len(steps) != 3 or not all(0 < step < math.inf for step in steps):
            raise UsageError(f"spacing = {steps}: must be three lengths in mm, in the order of the array's axes.")
        return np.diag([*(steps if order == "xyz-ras" else steps[::-1]), 1.0])
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise UsageError(f"affine = {matrix.tolist()}: must be a 4x4 matrix with the last row 0, 0, 0, 1.")
    return matrix


def make_grid(shape: tuple[int, ...], affine: npt.NDArray[np.float64], axes: Axes) -> Grid:
    """Return the grid of an array of `shape` with `affine`, both in the convention of its axes.

    Raises
    ------
    GeometryError
        The array does not have three axes, or the affine is not one of a scan.
    """
    if len(shape) != 3:
        raise GeometryError(f"an array must have 3 axes; it has the shape {shape}.")
    if axes == "xyz-ras":
        return Grid(shape=(shape[0], shape[1], shape[2]), affine=affine)
    return Grid(shape=(shape[2], shape[1], shape[0]), affine=RAS_TO_LPS @ affine)


def to_lps(array: npt.NDArray[Any], grid: Grid, axes: Axes) -> npt.NDArray[Any]:
    """View an array of a grid in the order of `axes` as any[z, y, x] in LPS+ order."""
    return grid.to_stored(array.T if axes == "xyz-ras" else array)


def to_own_order(stored: npt.NDArray[Any], grid: Grid, axes: Axes) -> npt.NDArray[Any]:
    """View any[z, y, x] in LPS+ order as an array of a grid in the order of `axes`; the inverse of `to_lps`."""
    in_file = grid.to_file(stored)
    return in_file.T if axes == "xyz-ras" else in_file


def own_affine(grid: Grid, axes: Axes) -> npt.NDArray[np.float64]:
    """Return the affine of a grid in the world of `axes`, float64[4, 4], voxel (i, j, k, 1) to mm."""
    return grid.affine.copy() if axes == "xyz-ras" else RAS_TO_LPS @ grid.affine


def _read_voxels(array: npt.NDArray[Any], affine: npt.NDArray[np.float64], axes: Axes, name: str) -> _Opened:
    grid = make_grid(array.shape, affine, axes)
    voxels = _to_stored(array.T if axes == "xyz-ras" else array, grid, name)
    return _Opened(axes=axes, name=name, voxels=voxels, grid=grid, header=make_header(grid))


def _to_stored(in_file: npt.NDArray[Any], grid: Grid, name: str) -> Voxels:
    """Return any[k, j, i], HU, of a grid as int16[z, y, x], HU, in LPS+ order."""
    if in_file.dtype.kind not in "iuf":
        raise ScanError(f"voxels must be integers or floats, HU; they are {in_file.dtype}.", where=name)
    volume, error = to_hu(in_file, 1.0, 0.0, Path(name))
    stored = np.asarray(make_contiguous(grid.to_stored(volume)), dtype=np.int16)
    return Voxels(volume=stored, max_rounding_error_hu=error)


def _load(opened: _Opened, trained: TrainingScans | None, *, strict: bool) -> ScanInput:
    """Check the voxels like those of a file.

    Raises
    ------
    ScanError
        `strict`, and the scan has a warning.
    """
    header = blank_text(opened.header)
    scan = OpenScan(
        path=opened.path or Path(opened.name),
        grid=opened.grid,
        header=header,
        warnings=stored_warnings(header),
        read=lambda _: opened.voxels,
    )
    loaded = scan.load(opened.voxels, trained, strict=strict)
    return _describe(loaded, opened.axes, opened.name, opened.path, opened.view)


def _describe(
    scan: LoadedScan, axes: Axes, name: str, path: Location | None = None, view: Grid | None = None
) -> ScanInput:
    origin = ScanOrigin(axes=axes, view=view or scan.grid, grid=scan.grid, header=scan.header, name=name, path=path)
    return ScanInput(scan=scan, origin=origin)
