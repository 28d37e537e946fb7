"""A mask that is drawn plane by plane onto the grid of its scan (`slicemill.ct.formats.source.ScanSource`)."""

from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import LabelError
from slicemill.ct.formats.dicom.files import DicomFile
from slicemill.ct.formats.dicom.source import hash_file
from slicemill.ct.formats.nifti.make import make_header
from slicemill.ct.formats.source import RawPlanes, Scaling
from slicemill.ct.geometry import Grid

Overlap = Literal["error", "highest"]
"""What happens where two parts with different labels share a voxel."""
Plane = npt.NDArray[np.uint8]
"""uint8[j, i], values of the labels."""


class Drawing(Protocol):
    """The content of a mask file, with the positions of its scan's planes."""

    file: DicomFile
    format: str
    """Name of the format, for people."""
    warnings: tuple[str, ...]
    """Warnings; complete when all planes are drawn."""

    def draw(self, k: int, plane: Plane) -> None:
        """Draw the parts of plane `k` into `plane`, which is 0."""


class DrawnSource:
    """An open mask on the grid of its scan."""

    def __init__(self, drawing: Drawing, grid: Grid, *, hashed: bool = True) -> None:
        self.format = drawing.format
        self.grid = grid
        self.scaling: tuple[Scaling, Scaling] = (1.0, 0.0)
        self.dtype = np.dtype(np.uint8)
        self.private_bytes = 0
        self.read_seconds = 0.0
        self.bytes_read = drawing.file.size
        self.warnings = drawing.warnings
        self._drawing = drawing
        self._hashed = hashed

    def planes(self, depth: int, buffers: int) -> Iterator[RawPlanes]:
        """Yield all planes uint8[k, j, i], `depth` at a time, cycling through `buffers` arrays."""
        ni, nj, nk = self.grid.shape
        arrays = [np.empty((min(depth, nk), nj, ni), dtype=np.uint8) for _ in range(buffers)]
        for turn, k in enumerate(range(0, nk, depth)):
            voxels = arrays[turn % buffers][: min(depth, nk - k)]
            voxels[...] = 0
            for offset, plane in enumerate(voxels):
                self._drawing.draw(k + offset, plane)
            self.warnings = self._drawing.warnings
            yield RawPlanes(k=k, voxels=voxels, slope=1.0, inter=0.0)

    def finish(self) -> str:
        """Return the SHA-256 of the file (empty if not requested)."""
        return hash_file(self._drawing.file) if self._hashed else ""

    def template_header(self, *, private: bool) -> bytes:  # noqa: ARG002 (nothing private is in it)
        """Return a NIfTI header of the grid."""
        return make_header(self.grid)

    def close(self) -> None:
        """Close the mask; no file is open between planes."""


def paint(plane: Plane, inside: npt.NDArray[np.bool_], value: int, overlap: Overlap, where: str, name: str) -> None:
    """Give the pixels `inside`, bool[j, i], the value of a label.

    Raises
    ------
    LabelError
        Pixels have another label already, and `overlap` is ``error``.
    """
    others = inside & (plane != 0) & (plane != value)
    if overlap == "error" and others.any():
        raise LabelError(
            f"{name} must not overlap another part with another label; {int(others.sum())} pixels of one slice are in "
            "both. Correct the file, or pass --overlap highest, which gives such voxels the highest value.",
            where=where,
        )
    np.maximum(plane, np.uint8(value), out=plane, where=inside)
