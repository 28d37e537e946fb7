"""Opens scans and masks from files and stores as `CaseSource`: headers are read and compared, voxels are not."""

from collections.abc import Iterator

import numpy as np

from slicemill.common.errors import InputError
from slicemill.common.files import Location
from slicemill.ct.mask_files import ScanGrid, open_mask_file
from slicemill.ct.placed_mask import PlacedMask
from slicemill.ct.scan import ScanReader, Slab, slab_depth
from slicemill.store.headers import read_grid
from slicemill.store.reader import Case, SliceArray
from slicemill.web.mask_files import MaskFile, find_labels, read_mask
from slicemill.web.opened import CaseSource, MaskSource
from slicemill.web.volumes import VolumeSource


def open_files(name: str, scan: Location, masks: tuple[MaskFile, ...]) -> CaseSource:
    """Open a scan and its masks in files. A mask that does not fit is reported in its place.

    Raises
    ------
    InputError
        The scan cannot be opened.
    """
    with ScanReader(scan, "image", hashed=False) as reader:
        on, warnings = ScanGrid(grid=reader.grid, series=reader.series), reader.warnings
    grid = on.grid
    return CaseSource(
        name=name,
        image=VolumeSource(
            name=scan.name,
            shape=grid.stored_shape,
            dtype=np.int16,
            slabs=lambda found: _read_scan(scan, found),
        ),
        masks=tuple(_open_mask(mask, on) for mask in masks),
        spacing_mm=grid.spacing_mm,
        affine_lps=grid.affine_lps,
        warnings=warnings,
    )


def open_stored(case: Case, masks: tuple[MaskFile, ...] = ()) -> CaseSource:
    """Open a case of a store with its own mask, and further masks in files.

    Raises
    ------
    StoreError
        The stored header does not fit the voxels, which matters if there are masks in files.
    """
    own: tuple[MaskSource, ...] = ()
    if case.label is not None:
        own = (MaskSource(name="reference", labels=case.info.labels, source=_stored_volume(case, case.label)),)
    on = ScanGrid(grid=read_grid(case)) if masks else None
    return CaseSource(
        name=case.case_id,
        image=_stored_volume(case, case.image),
        masks=(*(_open_mask(mask, on) for mask in masks if on is not None), *own),
        spacing_mm=case.spacing_mm,
        affine_lps=case.affine,
        warnings=case.info.warnings,
    )


def _open_mask(mask: MaskFile, scan: ScanGrid) -> MaskSource:
    """Compare a mask's header with its scan's; a mask that does not fit is not shown, and the reason is."""
    name = mask.path.name
    try:
        labels = find_labels(mask)
        with open_mask_file(mask.path, scan, mask.labels, overlap="highest", hashed=False) as reader:
            PlacedMask(reader, scan.grid, "error")
    except (InputError, OSError) as error:
        return MaskSource(name=name, labels=mask.labels, source=None, failure=str(error))
    source = VolumeSource(
        name=name,
        shape=scan.grid.stored_shape,
        dtype=np.uint8,
        slabs=lambda found: read_mask(mask, scan, found),
    )
    return MaskSource(name=name, labels=labels, source=source)


def _read_scan(path: Location, warnings: list[str]) -> Iterator[Slab]:
    with ScanReader(path, "image", hashed=False) as reader:
        yield from reader.slabs()
        reader.finish()
        warnings.extend(reader.value_warnings())


def _stored_volume(case: Case, array: SliceArray) -> VolumeSource:
    def read_slabs(_warnings: list[str]) -> Iterator[Slab]:
        step = slab_depth(array.shape)
        for z in range(0, len(array), step):
            yield Slab(z=z, voxels=array.read_many(range(z, min(z + step, len(array)))))

    return VolumeSource(
        name=f"{case.case_id} ({array.name})",
        shape=array.shape,
        dtype=array.dtype,
        slabs=read_slabs,
        read_slice=array.read,
    )
