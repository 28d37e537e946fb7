"""Reads DICOM SEG as masks: each frame is put where its own position says, on a plane of the scan.

Frames may be cropped, and their rows and columns may run in other directions than the scan's; each of their pixels must
be a voxel of the scan. Bits of one frame are in memory at a time.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import GeometryError, LabelError, ScanError
from slicemill.ct.formats.dicom.codecs import decode_frame
from slicemill.ct.formats.dicom.files import DicomFile, OpenFile
from slicemill.ct.formats.dicom.fragments import find_frames
from slicemill.ct.formats.dicom.header import FileHeader
from slicemill.ct.formats.dicom.planes import MAX_FRAMES, MAX_SIDE
from slicemill.ct.formats.dicom.pydicom_files import read_dataset
from slicemill.ct.formats.dicom.uids import BIG_ENDIAN, DEFLATED, UNCOMPRESSED
from slicemill.ct.formats.dicom_objects.drawn_source import Overlap, Plane, paint
from slicemill.ct.formats.dicom_objects.mask_names import NamedPart, PartValues, match_labels
from slicemill.ct.formats.dicom_objects.source_series import make_plane_axes
from slicemill.ct.geometry import RAS_TO_LPS, SAME_GRID_MM, Grid
from slicemill.ct.labels import Labels

SEG_CLASS, LABELMAP_CLASS = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
MAX_FRAME_BYTES = 64 << 20
"""Most bytes of a compressed frame."""


@dataclass(frozen=True, slots=True)
class FramePlace:
    """Where a frame lies in its scan."""

    frame: int
    segment: int
    """Number of its segment; 0 in a label map, whose pixels are the numbers."""
    columns_along_i: bool
    """Whether i of the scan runs along a row of the frame, not along a column."""
    signs: tuple[int, int]
    """Direction of the frame along i and j, +1 or -1."""
    corner: tuple[int, int]
    """Lowest i and j of the frame's pixels in the scan."""


class SegDrawing:
    """The segments of a SEG with the labels, on the planes of a scan."""

    def __init__(self, header: FileHeader, grid: Grid, labels: Labels | None, overlap: Overlap) -> None:
        """Read the header.

        Raises
        ------
        ScanError
            The file is damaged, fractional, or in a syntax that is not read.
        GeometryError
            A frame does not lie on the scan's voxels.
        LabelError
            The segments and the labels do not fit.
        """
        self.file: DicomFile = header.file
        self.format = "DICOM SEG"
        self._header, self._grid, self._overlap = header, grid, overlap
        with OpenFile(self.file) as opened:
            dataset = read_dataset(opened, self.file, pixels=False)
        self._is_labelmap = header.identity.sop_class == LABELMAP_CLASS
        _check_pixels(header, dataset)
        parts = [
            NamedPart(int(one.SegmentNumber), str(one.get("SegmentLabel") or ""))
            for one in dataset.SegmentSequence
            if int(one.SegmentNumber) != 0  # the background of a label map
        ]
        self._names = {part.number: part.name for part in parts}
        values: PartValues = match_labels(parts, labels, self.file)
        self._values = values.value_of
        self.warnings = values.warnings
        self._places = _place_frames(dataset, header, grid, is_labelmap=self._is_labelmap)
        self._ranges: list[list[tuple[int, int]]] | None = None

    def draw(self, k: int, plane: Plane) -> None:
        """Draw the frames of plane `k`."""
        for place in self._places.get(k, ()):
            if not self._is_labelmap and place.segment not in self._values:
                continue
            pixels = self._read(place.frame)
            numbers = [place.segment] if not self._is_labelmap else [int(one) for one in np.unique(pixels) if one]
            for number in numbers:
                if number not in self._names:
                    raise LabelError(f"pixels have the number {number}, which is no segment's.", where=self.file)
                value = self._values.get(number)
                if value is None:
                    continue
                inside = pixels == (number if self._is_labelmap else 1)
                name = f"segment {number} ({self._names[number]})"
                paint(plane, self._turn(inside, place, name), value, self._overlap, str(self.file), name)

    def _turn(self, inside: npt.NDArray[np.bool_], place: FramePlace, name: str) -> npt.NDArray[np.bool_]:
        """Return the pixels of a frame, bool[row, column], as bool[j, i] of the scan's plane."""
        turned = inside if place.columns_along_i else inside.T
        turned = turned[:: place.signs[1], :: place.signs[0]]
        (i0, j0), (ni, nj) = place.corner, self._grid.shape[:2]
        low_i, low_j = max(0, -i0), max(0, -j0)
        high_i, high_j = min(turned.shape[1], ni - i0), min(turned.shape[0], nj - j0)
        part = turned[low_j:high_j, low_i:high_i]
        if np.count_nonzero(part) != np.count_nonzero(turned):
            raise GeometryError(f"{name} has pixels outside the scan. Is it a mask of this scan?", where=self.file)
        plane = np.zeros((nj, ni), dtype=bool)
        plane[j0 + low_j : j0 + high_j, i0 + low_i : i0 + high_i] = part
        return plane

    def _read(self, frame: int) -> npt.NDArray[Any]:
        """Return the stored numbers of a frame, any[row, column]."""
        header, form = self._header, self._header.format
        count = form.rows * form.columns
        with OpenFile(self.file) as opened:
            if form.syntax not in UNCOMPRESSED:
                if self._ranges is None:
                    self._ranges = find_frames(opened.read, header.pixel_offset, self.file.size, header.frames)
                ranges = self._ranges[frame]
                if sum(length for _, length in ranges) > MAX_FRAME_BYTES:
                    raise ScanError(f"a frame has more than {MAX_FRAME_BYTES:,} bytes.", where=self.file)
                data = b"".join(opened.read(offset, length) for offset, length in ranges)
                return decode_frame(data, form, self.file)
            first = frame * count * form.bits_allocated
            last = first + count * form.bits_allocated
            data = opened.read(header.pixel_offset + first // 8, (last + 7) // 8 - first // 8)
        if len(data) < (last + 7) // 8 - first // 8:
            raise ScanError(f"ends early: pixels of frame {frame + 1} are missing. Copy it again.", where=self.file)
        if form.bits_allocated == 1:
            bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
            return bits[first % 8 : first % 8 + count].reshape(form.rows, form.columns)
        return np.frombuffer(data, np.dtype(f"<u{form.bits_allocated // 8}")).reshape(form.rows, form.columns)


def _check_pixels(header: FileHeader, dataset: Any) -> None:
    form, where = header.format, header.file
    kind = str(dataset.get("SegmentationType") or "")
    if header.identity.sop_class != LABELMAP_CLASS and kind != "BINARY":
        raise ScanError(
            f"SegmentationType (0062,0001) must be BINARY or LABELMAP; it is {kind[:16]}. A fractional segmentation "
            "has no labels: export it with a threshold.",
            where=where,
        )
    allowed = (8, 16) if header.identity.sop_class == LABELMAP_CLASS else (1,)
    if form.bits_allocated not in allowed or form.samples != 1:
        raise ScanError(
            f"BitsAllocated (0028,0100) must be {' or '.join(map(str, allowed))}; it is {form.bits_allocated}.",
            where=where,
        )
    if form.syntax in (BIG_ENDIAN, DEFLATED) or (form.bits_allocated == 1 and form.syntax not in UNCOMPRESSED):
        raise ScanError(
            f"a segmentation in the transfer syntax {form.syntax} is not read. Convert it to explicit VR "
            "little endian.",
            where=where,
        )
    if not (0 < form.rows <= MAX_SIDE and 0 < form.columns <= MAX_SIDE and 0 < header.frames <= MAX_FRAMES):
        raise ScanError(f"has {header.frames:,} frames of {form.rows} x {form.columns}; it is damaged.", where=where)


def _place_frames(dataset: Any, header: FileHeader, grid: Grid, *, is_labelmap: bool) -> dict[int, list[FramePlace]]:
    """Return the frames on each plane k of the grid."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) != header.frames:
        raise ScanError(
            f"PerFrameFunctionalGroupsSequence (5200,9230) must have an item per frame; it has {len(groups)} for "
            f"{header.frames}.",
            where=header.file,
        )
    places: dict[int, list[FramePlace]] = defaultdict(list)
    for frame, own in enumerate(groups):
        segment = 0
        if not is_labelmap:
            segment = int(_find(own, shared, "SegmentIdentificationSequence", header).ReferencedSegmentNumber)
        axes = make_plane_axes(
            _find(own, shared, "PlaneOrientationSequence", header).ImageOrientationPatient,
            _find(own, shared, "PixelMeasuresSequence", header).PixelSpacing,
            _find(own, shared, "PlanePositionSequence", header).ImagePositionPatient,
        )
        k, place = place_frame(axes, (header.format.rows, header.format.columns), grid, header.file)
        places[k].append(FramePlace(frame, segment, *place))
    return places


def _find(own: Any, shared: Any, name: str, header: FileHeader) -> Any:
    """Return the item of a functional group of a frame, which may be shared by all frames."""
    found = own.get(name) or shared.get(name)
    if not found:
        raise ScanError(f"a frame lacks {name}, so its place is unknown.", where=header.file)
    return found[0]


def place_frame(
    axes: npt.NDArray[np.float64], shape: tuple[int, int], grid: Grid, where: object
) -> tuple[int, tuple[bool, tuple[int, int], tuple[int, int]]]:
    """Return the plane k on which a frame lies, and the last three fields of its `FramePlace`.

    Parameters
    ----------
    axes
        float64[3, 3]: the steps along columns and rows of the frame, and its first pixel, LPS mm.
    shape
        Rows and columns of the frame.

    Raises
    ------
    GeometryError
        Pixels of the frame are not voxels of the grid.
    """
    lps = RAS_TO_LPS @ grid.affine
    inverse = np.linalg.inv(lps)
    steps = axes[:2] @ inverse[:3, :3].T
    first = inverse[:3, :3] @ axes[2] + inverse[:3, 3]
    near_steps, near_first = np.rint(steps).astype(int), np.rint(first).astype(int)
    corners = np.array([[0, 0], [shape[1] - 1, 0], [0, shape[0] - 1], [shape[1] - 1, shape[0] - 1]])
    apart = (corners @ (steps - near_steps) + (first - near_first)) @ lps[:3, :3].T
    distance = float(np.linalg.norm(apart, axis=1).max()) if np.isfinite(apart).all() else float("inf")
    along = np.abs(near_steps)
    fits = along.sum(axis=1).tolist() == [1, 1] and not along[:, 2].any() and along.max(axis=0)[:2].tolist() == [1, 1]
    if not fits or distance > SAME_GRID_MM or not 0 <= near_first[2] < grid.shape[2]:
        raise GeometryError(
            f"each frame of a segmentation must lie on the voxels of a slice of its scan (within {SAME_GRID_MM} mm); "
            f"one is {distance:.3g} mm away{'' if fits else ', and its axes are not those of the slices'}"
            f"{'' if 0 <= near_first[2] < grid.shape[2] else ', outside the scan'}. Export it on this scan's grid.",
            where=where,
        )
    columns_along_i = bool(along[0, 0])
    along_i, along_j = (0, 1) if columns_along_i else (1, 0)
    signs = int(near_steps[along_i, 0]), int(near_steps[along_j, 1])
    counts = (shape[1], shape[0]) if columns_along_i else (shape[0], shape[1])
    corner = tuple(
        int(near_first[axis]) if sign > 0 else int(near_first[axis]) - (count - 1)
        for axis, (sign, count) in enumerate(zip(signs, counts, strict=True))
    )
    return int(near_first[2]), (columns_along_i, signs, (corner[0], corner[1]))
