"""Opens a mask of any format, also DICOM SEG, RTSTRUCT and folders of PNG slices.

These have no grid of their own: they are drawn on that of their scan.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from slicemill.common.errors import LabelError, ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.dicom.series import Series
from slicemill.ct.formats.dicom_objects.drawn_source import Overlap
from slicemill.ct.formats.dicom_objects.mask_names import normalize
from slicemill.ct.formats.dicom_objects.open_mask import is_mask_object, open_mask, read_part_names
from slicemill.ct.formats.nrrd.header import check_segments
from slicemill.ct.formats.png_slices import PngSlices, is_png_folder
from slicemill.ct.geometry import Grid
from slicemill.ct.geometry_option import Uneven
from slicemill.ct.labels import TUMOR_WORDS, Labels, make_labels
from slicemill.ct.name_words import folder_role
from slicemill.ct.scan import ScanReader

NO_SCAN = (
    "a DICOM SEG or RTSTRUCT says where its pixels lie, but not the grid of its scan, and no scan here has the "
    "SeriesInstanceUID that it refers to, or its name. Pass the folder with its scan."
)
NO_SERIES = (
    "PNG slices are read as the mask of a DICOM series only, and there is none for this folder, or there are several. "
    "Put it beside the folder of its series, or convert the mask to NIfTI on the scan's grid."
)


@dataclass(frozen=True, kw_only=True)
class ScanGrid:
    """The grid of a scan."""

    grid: Grid
    series: Series | None = None
    """The DICOM series that the scan is; None for other formats."""


def read_scan_grid(path: Location) -> ScanGrid:
    """Read the header of a scan.

    Raises
    ------
    ScanError
        The scan cannot be read.
    """
    with ScanReader(path, "image", hashed=False) as reader:
        return ScanGrid(grid=reader.grid, series=reader.series)


def open_mask_file(
    path: Location,
    scan: ScanGrid | None,
    labels: Labels | None,
    *,
    overlap: Overlap = "error",
    uneven: Uneven = "refuse",
    hashed: bool = True,
) -> ScanReader:
    """Open a mask of any format.

    Parameters
    ----------
    scan
        The scan's grid, on which a SEG, an RTSTRUCT or a folder of PNG slices is drawn; other formats have their own
        grid, and don't need it.
    labels
        Names of the label values, which are the names of segments and structures. None compares no names.
    overlap
        What happens where two segments or structures share a voxel.
    uneven
        What happens to a DICOM series of label values whose steps differ.

    Raises
    ------
    InputError
        The mask cannot be read, names other labels, or needs its scan and does not fit it, or there is no scan for it.
    """
    if is_mask_object(path):
        if scan is None:
            raise ScanError(NO_SCAN, where=path)
        drawn = open_mask(path, scan.grid, scan.series, labels, overlap, hashed=hashed)
        return ScanReader(path, "mask", source=drawn)
    if isinstance(path, Path) and is_png_folder(path):
        if scan is None or scan.series is None:
            raise ScanError(NO_SERIES, where=path)
        return ScanReader(path, "mask", source=PngSlices(path, scan.series, labels, hashed=hashed))
    if labels is not None:
        check_segments(path, labels)
    return ScanReader(path, "mask", hashed=hashed, uneven=uneven)


def needs_scan(path: Location) -> bool:
    """Return whether a mask has no grid of its own: a DICOM SEG, an RTSTRUCT, or a folder of PNG slices."""
    return is_mask_object(path) or is_png_folder(path)


def find_png_masks(series: Iterable[Location], root: Location) -> dict[Path, list[Location]]:
    """Return the folders of PNG slices that are named like masks, beside the folder of a series or in it.

    Each has the locations of the series that it could belong to. Nothing outside of `root` is searched.
    """
    around: dict[Path, list[Location]] = defaultdict(list)
    for location in series:
        home = location if location.is_dir() else location.parent
        if isinstance(home, Path):
            around[home].append(location)
            if home != root:
                around[home.parent].append(location)
    return {folder: some for parent, some in around.items() for folder in _list_mask_folders(parent)}


def _list_mask_folders(parent: Path) -> list[Path]:
    """Return the folders of PNG files in a folder whose names say mask, like ``Ground``."""
    try:
        folders = [path for path in parent.iterdir() if folder_role(path.name) == "mask" and not path.is_symlink()]
    except OSError:  # `slicemill.ct.naming.find_unsearched_folders` names it
        return []
    return sorted(path for path in folders if is_png_folder(path))


def turn_series(reader: ScanReader) -> Series | None:
    """Return the DICOM series of an open scan with the reader's axes; None for other formats."""
    return None if reader.series is None else replace(reader.series, grid=reader.grid)


def name_labels(masks: Iterable[Location]) -> Labels | None:
    """Return labels with the names of the segments and structures of SEG and RTSTRUCT files, numbered from 1.

    Parts that are numbered tumors, ``tumor 1`` and ``tumor 2``, are one label. None if any mask is of another format.

    Raises
    ------
    LabelError
        A part has no name.
    """
    names: dict[str, None] = {}
    for path in masks:
        if not is_mask_object(path):
            return None
        for part in read_part_names(path):
            plain = _name_part(part.name)
            if not plain:
                raise LabelError("a segment or structure has no name; pass --labels.", where=path)
            names[plain] = None
    return make_labels({name: value for value, name in enumerate(names, 1)}) if names else None


def _name_part(name: str) -> str:
    """Return the label of a segment or structure.

    >>> _name_part("Tumor 2"), _name_part("Segment_2"), _name_part("Liver without tumors")
    ('tumor', 'segment 2', 'liver')
    """
    plain = normalize(name)
    base = re.sub(r" \d+$", "", plain)
    return base if base in TUMOR_WORDS else plain
