"""A mask as a folder of PNG files, one for each slice of a DICOM series, as CHAOS ships: ``Ground/liver_GT_000.png``
beside ``DICOM_anon/i0000,0000b.dcm``.

A PNG says nothing of its place. In CHAOS, the number in its name is that of its slice's file: pairs made by position
along the patient put the liver into air and fat. So both folders must have names that differ in one number only, and
the numbers must have one distance; else the mask is refused. Row and column of a pixel are those of the slice.
"""

import io
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import GeometryError, LabelError, PairingError, ScanError
from slicemill.common.files import Location, read_file, sha256_of_file, sha256_of_json
from slicemill.common.names import natural_key
from slicemill.ct.formats.dicom.series import Series
from slicemill.ct.formats.nifti.make import make_header
from slicemill.ct.formats.source import RawPlanes, Scaling
from slicemill.ct.labels import Labels, format_labels

SUFFIX = ".png"
MODES = ("1", "L", "I;16", "I")
"""Pillow's gray modes."""
MAX_BYTES = 64 << 20
"""Largest PNG file that is read."""
WAY_OUT = "Convert the mask to NIfTI on the scan's grid."


def is_png_folder(location: Location) -> bool:
    """Return whether a location is a local folder with PNG files only (hidden files apart)."""
    if not isinstance(location, Path) or not location.is_dir():
        return False
    files = [path for path in location.iterdir() if not path.name.startswith(".")]
    return bool(files) and all(path.name.lower().endswith(SUFFIX) for path in files)


def find_png_folders(root: Path) -> list[Path]:
    """Return the folders of PNG files below a folder; hidden folders and links are left out."""
    found = []
    for directory, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".zarr"))
        found += [Path(directory, name) for name in folders if is_png_folder(Path(directory, name))]
    return found


def list_slices(folder: Path) -> list[Path]:
    """Return the PNG files of a folder in natural order."""
    files = [path for path in folder.iterdir() if path.name.lower().endswith(SUFFIX) and not path.name.startswith(".")]
    return sorted(files, key=lambda path: natural_key(path.name))


def mark_slices(folder: Path) -> tuple[int, int]:
    """Return the size of the PNG files of a folder in bytes, and a hash of their names, sizes and times."""
    states = [(path.name, path.stat()) for path in list_slices(folder)]
    text = json.dumps([(name, state.st_size, state.st_mtime_ns) for name, state in states])
    return sum(state.st_size for _, state in states), int(sha256(text.encode()).hexdigest()[:15], 16)


def hash_slices(folder: Path) -> str:
    """Return the SHA-256 over the names and hashes of the PNG files in natural order: the names say where they lie."""
    return sha256_of_json([(path.name, sha256_of_file(path)) for path in list_slices(folder)])


class PngSlices:
    """An open folder of PNG files, on the grid of its series (`slicemill.ct.formats.source.ScanSource`)."""

    def __init__(self, folder: Path, series: Series, labels: Labels | None, *, hashed: bool = True) -> None:
        """Pair the files with the slices.

        Raises
        ------
        PairingError
            The files cannot be paired with the slices by their names.
        """
        self.format = "PNG slices"
        self.grid = series.grid
        self.dtype = np.dtype(np.uint8)
        self.scaling: tuple[Scaling, Scaling] = (1.0, 0.0)
        self.warnings: tuple[str, ...] = ()
        self.private_bytes = 0
        self.read_seconds = 0.0
        self.bytes_read = 0
        self._folder, self._labels, self._hashed = folder, labels, hashed
        self._files = _pair(folder, series)
        self._white: int | None = None

    def planes(self, depth: int, buffers: int) -> Iterator[RawPlanes]:
        """Yield all planes uint8[k, j, i] in order of position, `depth` at a time, cycling through `buffers` arrays."""
        ni, nj, nk = self.grid.shape
        arrays = [np.empty((min(depth, nk), nj, ni), dtype=np.uint8) for _ in range(buffers)]
        for turn, k in enumerate(range(0, nk, depth)):
            voxels = arrays[turn % buffers][: min(depth, nk - k)]
            for path, out in zip(self._files[k : k + depth], voxels, strict=True):
                out[...] = self._to_labels(_read_gray(path, (nj, ni)), path)
            yield RawPlanes(k=k, voxels=voxels, slope=1.0, inter=0.0)

    def _to_labels(self, pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
        """Return label values: those of the file, or with one label its value wherever the file is not black.

        Raises
        ------
        LabelError
            There is one label, and the files have two values besides 0; or a value is above 255.
        """
        values = [int(value) for value in np.unique(pixels) if value]
        if self._labels is None or len(self._labels.values) != 1:
            if values and values[-1] > np.iinfo(np.uint8).max:
                raise LabelError(f"a label value must be at most 255; a pixel has {values[-1]}.", where=path)
            return pixels
        for value in values:
            self._white = self._white or value
            if value != self._white:
                raise LabelError(
                    f"the files have the values {self._white} and {value}, but there is one label "
                    f"({format_labels(self._labels.values)}). Name both with --labels.",
                    where=path,
                )
        return np.where(pixels != 0, next(iter(self._labels.values.values())), 0)

    def finish(self) -> str:
        """Return the hash of `hash_slices` (empty if not requested)."""
        self.bytes_read = sum(path.stat().st_size for path in self._files)
        return hash_slices(self._folder) if self._hashed else ""

    def template_header(self, *, private: bool) -> bytes:  # noqa: ARG002 (nothing private is in it)
        """Return a NIfTI header of the grid."""
        return make_header(self.grid)

    def close(self) -> None:
        """Close the mask; no file is open between planes."""


def _pair(folder: Path, series: Series) -> list[Path]:
    """Return the PNG file of each plane."""
    pngs = list_slices(folder)
    files = [plane.header.file.path for plane in series.planes]
    if len(set(files)) != len(files):
        raise PairingError(f"the slices of the series are frames, which have no names. {WAY_OUT}", where=folder)
    if len(pngs) != len(files):
        raise PairingError(
            f"there must be one PNG file for each slice; there are {len(pngs)} for {len(files)} slices. {WAY_OUT}",
            where=folder,
        )
    if len(files) == 1:
        return pngs
    of_slices, of_pngs = _number([file.name for file in files]), _number([png.name for png in pngs])
    if of_slices is None or of_pngs is None:
        which = "slices" if of_slices is None else "PNG files"
        raise PairingError(
            f"the names of the {which} must differ in one number only, which says which PNG file belongs to which "
            f"slice; they are like {(files if of_slices is None else pngs)[0].name}. {WAY_OUT}",
            where=folder,
        )
    shift = min(of_pngs) - min(of_slices)
    png_of = {number - shift: png for number, png in zip(of_pngs, pngs, strict=True)}
    lacking = [number for number in of_slices if number not in png_of]
    if lacking:
        raise PairingError(
            "the numbers of PNG files and slices must run alike; the slice with the number "
            f"{lacking[0]} in its name has no PNG file {lacking[0] + shift}. {WAY_OUT}",
            where=folder,
        )
    return [png_of[number] for number in of_slices]


def _number(names: Sequence[str]) -> list[int] | None:
    """Return the number of each name: the only one in which the names differ. None if they differ in more.

    >>> _number(["i0000,0000b.dcm", "i0001,0000b.dcm"]), _number(["a1_1.png", "a2_2.png"]), _number(["a.png", "b.png"])
    ([0, 1], None, None)
    """
    parts = [re.split(r"(\d+)", name) for name in names]
    if len({len(one) for one in parts}) != 1:
        return None
    differing = [index for index, texts in enumerate(zip(*parts, strict=True)) if len(set(texts)) > 1]
    if len(differing) != 1 or differing[0] % 2 == 0:
        return None
    numbers = [int(one[differing[0]]) for one in parts]
    return numbers if len(set(numbers)) == len(numbers) else None


def _read_gray(path: Path, shape: tuple[int, int]) -> npt.NDArray[Any]:
    """Read a gray picture of `shape`, any[row, column].

    Raises
    ------
    ScanError
        The file is damaged or not gray.
    GeometryError
        It has another shape.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(read_file(path, MAX_BYTES)), formats=("PNG",)) as image:
                if image.mode not in MODES:
                    raise ScanError(f"must be gray; its mode is {image.mode}. {WAY_OUT}", where=path)
                if image.size != (shape[1], shape[0]):
                    sizes = f"{image.size[1]} x {image.size[0]} pixels, and its slice {shape[0]} x {shape[1]}"
                    raise GeometryError(f"has {sizes}. Is it a mask of this scan?", where=path)
                return np.asarray(image).astype(np.int32)
    except ScanError:
        raise
    except (UnidentifiedImageError, SyntaxError, ValueError, OSError, Image.DecompressionBombError) as error:
        raise ScanError(f"cannot be read as a picture ({error}).", where=path) from error
