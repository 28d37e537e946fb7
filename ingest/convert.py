"""Converts one case: NIfTI files into a case of the store. Does not use Dask.

Image and mask are read in step, one slab at a time. Each slab is checked, counted, encoded and appended before the
next is read.
"""

import base64
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from slicemill.common.errors import GeometryError
from slicemill.common.files import Location
from slicemill.ct.geometry import SAME_GRID_MM
from slicemill.ct.grid_checks import explain_lost_header
from slicemill.ct.scan import ScanReader, Slab, slab_depth
from slicemill.ct.window import AIR_HU
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Geometry, Params
from slicemill.ingest.structures import StructureReader
from slicemill.store.case import CaseInfo, SourceFile
from slicemill.store.statistics import UNDECLARED, Counts
from slicemill.store.writer import SLABS_IN_FLIGHT, CaseWriter

Item = TypeVar("Item")
MaskReader = ScanReader | StructureReader
MAX_DEPTH = 8
"""Most slices of a slab that several threads share: together with the slabs in flight, they keep all threads busy."""
UNSIGNED_WATER_HU = 900
"""A CT stored without its intercept of -1024 has soft tissue near 1024, and no negative value."""


def convert_case(
    case: CaseFiles,
    params: Params,
    store: str | Location,
    *,
    threads: int = 1,
    holds_claim: Callable[[], bool] = lambda: True,
    check_files: Callable[[], None] = lambda: None,
) -> CaseInfo:
    """Read a case's files, write the case into the store, and return its description.

    Parameters
    ----------
    threads
        With more than one, image and mask are decoded ahead while the slices of a slab are encoded in parallel.
    holds_claim
        Whether this run still holds the case's claim; checked before anything is published in an object store.
    check_files
        Called when the files have been read and nothing is published yet; raises if they changed meanwhile.

    Raises
    ------
    InputError
        A file breaks a rule; nothing of the case remains in the store.
    """
    with ExitStack() as stack:
        image = stack.enter_context(ScanReader(case.image, "image"))
        mask = None if case.mask is None else _open_mask(case, case.mask, params)
        if mask is not None:
            stack.enter_context(mask)
        pool = stack.enter_context(ThreadPoolExecutor(threads)) if threads > 1 else None
        return _convert(case, params, store, OpenFiles(image, mask, pool, threads), check_files, holds_claim)


def _open_mask(case: CaseFiles, mask: Location, params: Params) -> MaskReader:
    if case.structures:
        return StructureReader(mask, case.structures, params.overlap)
    return ScanReader(mask, "mask")


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """The open files of a case, and the threads for it."""

    image: ScanReader
    mask: MaskReader | None
    pool: ThreadPoolExecutor | None
    threads: int

    def slabs(self, temp_folder: Path) -> Iterator[tuple[Slab, Slab | None]]:
        """Yield the slabs of image and mask in step; temporary files go to `temp_folder`."""
        depth = slab_depth(self.image.grid.stored_shape)
        if self.pool:
            depth = max(depth, min(self.threads, MAX_DEPTH))
        # one slab is being decoded and one is in use, in addition to those being encoded
        buffers = SLABS_IN_FLIGHT + 2
        both = [
            read_ahead(reader.slabs(depth, buffers=buffers, temp_folder=temp_folder))
            if self.pool
            else reader.slabs(depth, temp_folder=temp_folder)
            for reader in (self.image, self.mask)
            if reader is not None
        ]
        for slabs in zip(*both, strict=True):
            yield slabs[0], slabs[1] if self.mask else None


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items of an iterable, while another thread computes the next one."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, iterator, end)
        while (item := upcoming.result()) is not end:
            upcoming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]


def _convert(
    case: CaseFiles,
    params: Params,
    store: str | Location,
    files: OpenFiles,
    check_files: Callable[[], None],
    holds_claim: Callable[[], bool],
) -> CaseInfo:
    image, mask = files.image, files.mask
    warnings = check_headers(image, mask, keep_text=params.keep_text)
    labels = None
    if mask is not None:
        labels = params.labels or UNDECLARED
        warnings += check_geometry(image, mask, params.geometry)
        mask.replace_grid(image.grid)  # small differences between the two headers must not reorient the mask otherwise
    shape = image.grid.stored_shape
    counts = Counts(shape[0], labels)
    downwards = image.grid.z_is_flipped
    with CaseWriter(
        store, case.case_id, shape, has_mask=mask is not None, profile=params.profile, pool=files.pool
    ) as writer:
        for slab, other in files.slabs(writer.folder):
            counts.add_image(slab.z, slab.voxels)
            writer.write("image", slab.z, slab.voxels, downwards=downwards)
            if other is not None:
                counts.add_mask(other.z, other.voxels, str(case.mask))
                writer.write("label", other.z, other.voxels, downwards=downwards)
        warnings += check_voxels(counts, has_mask=mask is not None)
        if image.max_rounding_error:
            warnings.append(f"HU were rounded to integers, by at most {image.max_rounding_error:.3g}")
        info = CaseInfo(
            case_id=case.case_id,
            patient_id=case.patient_id,
            shape=shape,
            labels=labels,
            spacing_mm=image.grid.spacing_mm,
            affine_lps=image.grid.affine_lps,
            source_axcodes=image.grid.axcodes,
            image=describe_source(image, case.name(case.image), keep_text=params.keep_text),
            mask=describe_source(mask, case.name(mask.path), keep_text=params.keep_text) if mask else None,
            params_sha256=params.sha256(),
            slice_stats=counts.stats(),
            lesions=counts.lesions(image.grid.affine_lps),
            max_rounding_error_hu=image.max_rounding_error,
            warnings=tuple(warnings),
        )
        check_files()
        return writer.finish(info, holds_claim)


def check_headers(image: ScanReader, mask: MaskReader | None, *, keep_text: bool) -> list[str]:
    """Return warnings about the headers of a case; mask warnings that the image also has are omitted."""
    warnings = [*image.warnings, *image.dropped_header_warnings(keep_text=keep_text)]
    of_mask = [*mask.warnings, *mask.dropped_header_warnings(keep_text=keep_text)] if mask else []
    return warnings + [f"segmentation: {warning}" for warning in of_mask if warning not in warnings]


def check_geometry(image: ScanReader, mask: MaskReader, geometry: Geometry) -> list[str]:
    """Check that image and mask share one grid, and return warnings.

    Raises
    ------
    GeometryError
        Image and mask have different shapes, or their affines differ and `geometry` is ``error``.
    """
    if image.grid.shape != mask.grid.shape:
        raise GeometryError(
            f"{mask.path}: image and segmentation must have the same shape; the image has {image.grid.shape}, "
            f"the segmentation has {mask.grid.shape}. Export the segmentation on the image's grid."
        )
    apart = image.grid.distance_mm(mask.grid)
    if apart <= SAME_GRID_MM:
        return []
    if geometry == "error":
        raise GeometryError(
            f"{mask.path}: image and segmentation must share one grid (within {SAME_GRID_MM} mm); "
            f"their affines differ by {apart:.3g} mm. {_suggest_fix(image, mask)}"
        )
    return [f"image and segmentation lie {apart:.3g} mm apart by their headers; the image's was trusted"]


def _suggest_fix(image: ScanReader, mask: MaskReader) -> str:
    """Return a fix for an image and a mask on different grids, depending on which header looks lost."""
    lost_image, lost_mask = explain_lost_header(image.grid), explain_lost_header(mask.grid)
    if lost_mask and not lost_image:
        return f"The segmentation's header looks lost ({lost_mask}): correct it, or pass --geometry trust-image."
    if lost_image and not lost_mask:
        return f"The image's header looks lost ({lost_image}): correct it; --geometry trust-image would use it."
    return "Correct the segmentation's header, or pass --geometry trust-image."


def describe_source(reader: MaskReader, name: str, *, keep_text: bool) -> SourceFile:
    """Return the stored record of a source file; reads the file to its end."""
    header = base64.b64encode(reader.stored_header(keep_text=keep_text)).decode()
    sha256 = reader.finish()
    return SourceFile(name=name, bytes=reader.bytes_read, sha256=sha256, header_b64=header)


def check_voxels(counts: Counts, *, has_mask: bool) -> list[str]:
    """Return warnings about voxels that do not look like a CT or its segmentation."""
    warnings = []
    low = min((low for low in counts.hu_min if low is not None), default=0)
    high = max((high for high in counts.hu_max if high is not None), default=0)
    if counts.padding:
        warnings.append(
            f"{counts.padding:,} voxels below {AIR_HU} HU are taken as padding and left out of HU statistics"
        )
    if low >= 0 and high > UNSIGNED_WATER_HU:
        warnings.append(f"no HU below 0 (range {low}..{high}): the values may lack the intercept of -1024")
    elif low >= 0 or high - low < 100:
        warnings.append(f"HU range {low}..{high} does not look like a CT")
    if has_mask and not any(any(sections) for sections in counts.voxels.values()):
        warnings.append("the segmentation is empty")
    return warnings
