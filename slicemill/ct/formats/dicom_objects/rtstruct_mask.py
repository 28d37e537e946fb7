"""Reads DICOM RTSTRUCT as masks: contours are filled on the slices of the scan.

A pixel is inside if its center is. A contour inside another of the same structure and slice is a hole, as in XOR
contours; contours that cross are refused. Structures of the labels only are read.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import GeometryError, LabelError, ScanError
from slicemill.ct.formats.dicom.files import DicomFile, OpenFile
from slicemill.ct.formats.dicom.pydicom_files import read_dataset
from slicemill.ct.formats.dicom_objects.drawn_source import Overlap, Plane, paint
from slicemill.ct.formats.dicom_objects.mask_names import NamedPart, match_labels
from slicemill.ct.formats.dicom_objects.outlines import Polygon, fill_outlines
from slicemill.ct.geometry import RAS_TO_LPS, SAME_GRID_MM, Grid
from slicemill.ct.labels import Labels

RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
CONTOUR_DATA = 0x30060050
CLOSED, XOR = "CLOSED_PLANAR", "CLOSEDPLANAR_XOR"
NESTED = "a contour lies inside another of its structure; it was read as a hole"


class StructureDrawing:
    """The structures of an RTSTRUCT with the labels, on the planes of a scan."""

    def __init__(self, file: DicomFile, grid: Grid, labels: Labels | None, overlap: Overlap) -> None:
        """Read the file.

        Raises
        ------
        ScanError
            The file is damaged.
        GeometryError
            A contour lies on no slice of the scan.
        LabelError
            The structures and the labels do not fit.
        """
        self.file, self._grid, self._overlap = file, grid, overlap
        self.format = "DICOM RTSTRUCT"
        with OpenFile(file) as opened:
            dataset = read_dataset(opened, file, pixels=False)
        parts = [
            NamedPart(int(one.ROINumber), str(one.get("ROIName") or ""))
            for one in dataset.get("StructureSetROISequence") or []
        ]
        values = match_labels(parts, labels, file)
        self._names, self._values = {part.number: part.name for part in parts}, values.value_of
        self.warnings = values.warnings
        self._contours: dict[int, dict[int, list[tuple[str, Polygon]]]] = defaultdict(lambda: defaultdict(list))
        for roi in dataset.get("ROIContourSequence") or []:
            if int(roi.ReferencedROINumber) in self._values:
                self._add(int(roi.ReferencedROINumber), roi)

    def _add(self, number: int, roi: Any) -> None:
        """Sort the contours of a structure by plane."""
        inverse = np.linalg.inv(RAS_TO_LPS @ self._grid.affine)
        left_out = set()
        for contour in roi.get("ContourSequence") or []:
            kind = str(contour.get("ContourGeometricType") or "")
            if kind not in (CLOSED, XOR):
                left_out.add(kind[:16])
                continue
            points = self._read_points(contour)
            voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
            k = round(float(voxels[:, 2].mean()))
            distance = float(np.abs(voxels[:, 2] - k).max()) * self._step_mm
            if distance > SAME_GRID_MM or not 0 <= k < self._grid.shape[2]:
                raise GeometryError(
                    f"each contour must lie on a slice of the scan (within {SAME_GRID_MM} mm); one of "
                    f"{self._names[number]} is {self._describe_distance(voxels[:, 2], distance)}. Export the "
                    "structures for this series.",
                    where=self.file,
                )
            self._contours[k][number].append((kind, voxels[:, :2]))
        if left_out:
            self.warnings += (f"contours that enclose no area were left out: {', '.join(sorted(left_out))}",)

    @property
    def _step_mm(self) -> float:
        """Return the distance of neighboring planes along their normal, mm."""
        i, j, k = self._grid.affine[:3, :3].T
        normal = np.cross(i, j)
        return float(abs(normal @ k) / np.linalg.norm(normal))

    def _describe_distance(self, ks: npt.NDArray[np.float64], distance: float) -> str:
        outside = max(-float(ks.min()), float(ks.max()) - (self._grid.shape[2] - 1))
        if outside * self._step_mm > SAME_GRID_MM:
            return f"{outside * self._step_mm:.3g} mm outside the scan"
        return f"{distance:.3g} mm away from the nearest"

    def _read_points(self, contour: Any) -> npt.NDArray[np.float64]:
        """Return the points of a contour, float64[n, 3], LPS mm."""
        element = contour.get_item(CONTOUR_DATA)
        value = b"" if element is None or element.value is None else element.value
        texts = value.split(b"\\") if isinstance(value, bytes) else list(value)
        try:
            numbers = np.array(texts, dtype=np.float64)
        except ValueError:
            numbers = np.array([np.nan])
        if len(numbers) % 3 or len(numbers) < 9 or not np.isfinite(numbers).all():
            raise ScanError(
                "ContourData (3006,0050) must have three numbers for each of at least three points; that of a contour "
                f"has {len(numbers)} values.",
                where=self.file,
            )
        return numbers.reshape(-1, 3)

    def draw(self, k: int, plane: Plane) -> None:
        """Draw the structures of plane `k`."""
        for number, contours in self._contours.get(k, {}).items():
            name = f"the structure {self._names[number]}"
            inside = self._fill(contours, plane.shape[0], plane.shape[1], name)
            paint(plane, inside, self._values[number], self._overlap, str(self.file), name)

    def _fill(self, contours: list[tuple[str, Polygon]], nj: int, ni: int, name: str) -> npt.NDArray[np.bool_]:
        """Return the pixels of a structure on a plane, bool[j, i]."""
        inside = fill_outlines([polygon for kind, polygon in contours if kind == XOR], (nj, ni))
        for part in self._fill_closed([polygon for kind, polygon in contours if kind == CLOSED], (nj, ni), name):
            both = inside & part
            if not both.any():
                inside |= part
            elif np.array_equal(both, part):
                inside ^= part
                if NESTED not in self.warnings:
                    self.warnings += (NESTED,)
            else:
                raise LabelError(
                    f"contours of one structure must not cross; two of {name} do on one slice, with "
                    f"{int(both.sum())} pixels in both.",
                    where=self.file,
                )
        return inside

    def _fill_closed(
        self, polygons: list[Polygon], shape: tuple[int, int], name: str
    ) -> Iterator[npt.NDArray[np.bool_]]:
        """Yield the pixels of each contour, the largest first, so that a hole follows what it is in."""
        filled = sorted((fill_outlines([polygon], shape) for polygon in polygons), key=lambda one: -int(one.sum()))
        if any(one.any() and np.array_equal(one, other) for one, other in pairwise(filled)):
            raise LabelError(f"two contours of {name} on one slice are the same.", where=self.file)
        yield from filled
