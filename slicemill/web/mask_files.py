"""Opens masks in files of any format: voxels, or DICOM SEG and RTSTRUCT, which lie on the slices of their scan."""

from collections.abc import Iterator
from dataclasses import dataclass

from slicemill.common.errors import LabelError
from slicemill.common.files import Location
from slicemill.ct.formats.dicom_objects.open_mask import is_mask_object, read_part_names
from slicemill.ct.formats.dicom_objects.segments import WITHOUT_TUMORS
from slicemill.ct.formats.names import is_nrrd_name
from slicemill.ct.formats.nrrd.header import list_segments
from slicemill.ct.labels import Labels, make_labels
from slicemill.ct.mask_files import ScanGrid, open_mask_file
from slicemill.ct.placed_mask import PlacedMask
from slicemill.ct.scan import Slab, slab_depth

OVERLAP_NOTE = "where parts of this mask overlap, the one with the higher value is shown"


@dataclass(frozen=True, kw_only=True)
class MaskFile:
    """A mask in a file."""

    path: Location
    labels: Labels | None = None
    """Names of the label values; None takes those of the file."""


def find_labels(mask: MaskFile) -> Labels | None:
    """Return the names of the label values: those that were passed, or those in the file; None if there are none."""
    if mask.labels is not None:
        return mask.labels
    if is_mask_object(mask.path):
        named = [(_strip_remark(one.name), one.number) for one in read_part_names(mask.path)]
    elif is_nrrd_name(mask.path.name):
        named = [(one.name, one.value) for one in list_segments(mask.path)]
    else:
        return None
    values = {name: value for name, value in named if name.strip()}
    if not values or len(values) < len(named):  # without a name, or with the same one
        return None
    try:
        return make_labels(values)
    except LabelError:
        return None


def _strip_remark(name: str) -> str:
    """Return a name without the remark that slicemill adds, which would make an organ a tumor.

    >>> _strip_remark("Liver without tumors")
    'Liver'
    """
    return name[: -len(WITHOUT_TUMORS)] if name.lower().endswith(WITHOUT_TUMORS) else name


def read_mask(mask: MaskFile, scan: ScanGrid, warnings: list[str]) -> Iterator[Slab]:
    """Yield uint8[z, y, x] on the grid of the scan, and append warnings."""
    with open_mask_file(mask.path, scan, mask.labels, overlap="highest", hashed=False) as reader:
        placed = PlacedMask(reader, scan.grid, "error")
        yield from placed.slabs(slab_depth(scan.grid.stored_shape))
        reader.finish()
        overlap = (OVERLAP_NOTE,) if is_mask_object(mask.path) else ()
        warnings.extend((*reader.warnings, *placed.warnings(), *overlap))
