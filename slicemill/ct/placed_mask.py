"""A segmentation file on the grid of its image: turned losslessly, on the trusted header of its image, or resampled."""

from collections.abc import Iterator
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from slicemill.common.files import Location
from slicemill.ct.geometry import Grid
from slicemill.ct.geometry_option import Geometry
from slicemill.ct.mask_resample import NearestMask
from slicemill.ct.same_grid import place_mask
from slicemill.ct.scan import Slab


class MaskFile(Protocol):
    """An open segmentation, as `slicemill.ct.scan.ScanReader` is one."""

    path: Location
    grid: Grid

    def replace_grid(self, grid: Grid) -> None:
        """Replace the grid before any slab is read."""

    def slabs(self, depth: int | None = None, *, buffers: int = 1, temp_folder: Path | None = None) -> Iterator[Slab]:
        """Yield every slice of the grid once, uint8[z, y, x]."""

    def value_warnings(self) -> list[str]:
        """Return warnings about label values, after the last slab."""


Reader = TypeVar("Reader", bound=MaskFile)


class PlacedMask(Generic[Reader]):
    """An open segmentation whose slabs are those of its image's grid."""

    def __init__(self, reader: Reader, image: Grid, geometry: Geometry) -> None:
        """Compare the grids.

        Raises
        ------
        GeometryError
            The grids differ, and `geometry` does not allow or cannot settle it.
        """
        placement = place_mask(reader.grid, image, geometry, reader.path)
        self.reader = reader
        self._warnings = placement.warnings
        self._resampled = NearestMask(reader.slabs, reader.grid, image, reader.path) if placement.resampled else None
        reader.replace_grid(placement.grid)

    @property
    def is_resampled(self) -> bool:
        """Return whether the voxels differ from those of the file."""
        return self._resampled is not None

    @property
    def downwards(self) -> bool:
        """Return whether `slabs` runs from superior to inferior."""
        return self._resampled is None and self.reader.grid.z_is_flipped

    def slabs(self, depth: int, *, buffers: int = 1, temp_folder: Path | None = None) -> Iterator[Slab]:
        """Yield every slice once, uint8[z, y, x]; see `ScanReader.slabs`."""
        if self._resampled is not None:
            return self._resampled.slabs(depth, temp_folder=temp_folder)
        return self.reader.slabs(depth, buffers=buffers, temp_folder=temp_folder)

    def warnings(self) -> list[str]:
        """Return warnings about position and label values; complete after the last slab."""
        resampled = [] if self._resampled is None else [self._resampled.warning()]
        return [*self._warnings, *resampled, *self.reader.value_warnings()]
