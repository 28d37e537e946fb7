"""Converts one case: NIfTI files into a case of the store. Does not use Dask.

Image and mask are read in step, one slab at a time. Each slab is checked, counted, encoded and appended before the
next is read.
"""

import base64
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from slicemill.common.errors import ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.names import is_nrrd_name
from slicemill.ct.formats.nrrd.header import list_segments
from slicemill.ct.formats.nrrd.segments import check_names
from slicemill.ct.mask_files import ScanGrid, open_mask_file
from slicemill.ct.placed_mask import PlacedMask
from slicemill.ct.scan import ScanReader, Slab, slab_depth
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.ingest.structures import StructureReader
from slicemill.store.case import CaseInfo, DicomFields, DicomUids, SourceFile
from slicemill.store.statistics import UNDECLARED, Counts
from slicemill.store.writer import SLABS_IN_FLIGHT, CaseWriter

Item = TypeVar("Item")
MaskReader = ScanReader | StructureReader
MAX_DEPTH = 8
"""Most slices of a slab that several threads share: together with the slabs in flight, they keep all threads busy."""


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
        image = stack.enter_context(ScanReader(case.image, "image", uneven=params.uneven))
        mask = None
        if case.mask is not None:
            reader: MaskReader = _open_mask(case, case.mask, image, params)
            stack.enter_context(reader)
            mask = PlacedMask(reader, image.grid, params.geometry)
        pool = stack.enter_context(ThreadPoolExecutor(threads)) if threads > 1 else None
        return _convert(case, params, store, OpenFiles(image, mask, pool, threads), check_files, holds_claim)


def _open_mask(case: CaseFiles, mask: Location, image: ScanReader, params: Params) -> MaskReader:
    if case.structures:
        return StructureReader(mask, case.structures, params.overlap)
    if params.labels is not None and is_nrrd_name(mask.name):
        check_names(list_segments(mask), params.labels, mask)
    scan = ScanGrid(grid=image.grid, series=image.series)
    return open_mask_file(mask, scan, params.labels, overlap=params.overlap, uneven=params.uneven)


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """The open files of a case, and the threads for it."""

    image: ScanReader
    mask: PlacedMask[MaskReader] | None
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
    labels = None if mask is None else params.labels or UNDECLARED
    shape = image.grid.stored_shape
    counts = Counts(shape[0], labels)
    _check_strict(case, header_warnings(image, mask), params)
    with CaseWriter(
        store, case.case_id, shape, has_mask=mask is not None, profile=params.profile, pool=files.pool
    ) as writer:
        for slab, other in files.slabs(writer.folder):
            counts.add_image(slab.z, slab.voxels)
            writer.write("image", slab.z, slab.voxels, downwards=image.grid.z_is_flipped)
            if mask is not None and other is not None:
                counts.add_mask(other.z, other.voxels, str(case.mask))
                writer.write("label", other.z, other.voxels, downwards=mask.downwards)
        counts.values.check_is_scan(case.image)
        warnings = [*header_warnings(image, mask), *voxel_warnings(counts, image, mask)]
        _check_strict(case, warnings, params)
        info = CaseInfo(
            case_id=case.case_id,
            patient_id=case.patient_id,
            shape=shape,
            labels=labels,
            spacing_mm=image.grid.spacing_mm,
            affine_lps=image.grid.affine_lps,
            source_axcodes=image.grid.axcodes,
            image=_describe_image(image, case, params),
            mask=_describe_mask(mask, image, case, keep_text=params.keep_text) if mask else None,
            params_sha256=params.sha256(),
            slice_stats=counts.stats(),
            lesions=counts.lesions(image.grid.affine_lps),
            max_rounding_error_hu=image.max_rounding_error,
            warnings=(*warnings, *make_notes(counts, image, mask, keep_text=params.keep_text)),
        )
        check_files()
        return writer.finish(info, holds_claim)


def header_warnings(image: ScanReader, mask: PlacedMask[MaskReader] | None) -> list[str]:
    """Return warnings about the headers of a case; mask warnings that the image also has are omitted."""
    of_mask = mask.reader.warnings if mask else ()
    return [*image.warnings, *(f"segmentation: {warning}" for warning in of_mask if warning not in image.warnings)]


def voxel_warnings(counts: Counts, image: ScanReader, mask: PlacedMask[MaskReader] | None) -> list[str]:
    """Return warnings about the values of a case, and about the position of its mask; after the last slab."""
    return [*counts.hu_range().warnings(), *image.value_warnings(), *(mask.warnings() if mask else ())]


def make_notes(counts: Counts, image: ScanReader, mask: PlacedMask[MaskReader] | None, *, keep_text: bool) -> list[str]:
    """Return what is recorded with the warnings and is no reason for doubt: `--strict` accepts it."""
    of_image = image.dropped_header_warnings(keep_text=keep_text)
    of_mask = mask.reader.dropped_header_warnings(keep_text=keep_text) if mask else []
    notes = [*of_image, *(f"segmentation: {note}" for note in of_mask if note not in of_image)]
    if mask is not None and not any(any(sections) for sections in counts.voxels.values()):
        notes.append("the segmentation is empty")
    return [*counts.hu_range().notes(), *notes]


def _check_strict(case: CaseFiles, warnings: list[str], params: Params) -> None:
    if params.strict and warnings:
        raise ScanError(f"--strict refuses a case with warnings: {'; '.join(warnings)}.", where=case.image)


def _describe_mask(mask: PlacedMask[MaskReader], image: ScanReader, case: CaseFiles, *, keep_text: bool) -> SourceFile:
    """Return the stored record of a mask; a resampled one is stored with the image's header, on whose grid it lies."""
    described = describe_source(mask.reader, case.name(mask.reader.path), keep_text=keep_text)
    if not mask.is_resampled:
        return described
    return replace(described, header_b64=base64.b64encode(image.stored_header(keep_text=keep_text)).decode())


def _describe_image(image: ScanReader, case: CaseFiles, params: Params) -> SourceFile:
    """Return the stored record of an image, with what is kept of a DICOM series."""
    described = describe_source(image, case.name(case.image), keep_text=params.keep_text)
    series = image.series
    if series is None:
        return described
    uids = DicomUids(
        study=series.study_uid,
        series=series.series_uid,
        frame_of_reference=series.frame_of_reference_uid,
        sop_class=series.sop_class,
        instances=tuple(plane.sop_instance_uid for plane in series.planes),
    )
    fields = DicomFields(**asdict(series.kept), uids=uids if params.keep_uids else None)
    return replace(described, dicom=fields)


def describe_source(reader: MaskReader, name: str, *, keep_text: bool) -> SourceFile:
    """Return the stored record of a source file; reads the file to its end."""
    header = base64.b64encode(reader.stored_header(keep_text=keep_text)).decode()
    sha256 = reader.finish()
    return SourceFile(name=name, bytes=reader.bytes_read, sha256=sha256, header_b64=header)
