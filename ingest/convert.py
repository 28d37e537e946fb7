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
from typing import Any, TypeVar

import numpy.typing as npt

from slicemill.common.errors import ScanError
from slicemill.common.files import Location
from slicemill.ct.mask_files import ScanGrid, open_mask_file
from slicemill.ct.placed_mask import PlacedMask
from slicemill.ct.scan import ScanReader, Slab, slab_depth
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.ingest.point_masks import NO_POINTS, PointBoxes, PointSegmentation, StoredPoints
from slicemill.ingest.point_tables import CasePoints
from slicemill.ingest.structures import StructureReader
from slicemill.store.case import CaseInfo, DicomFields, DicomUids, SourceFile
from slicemill.store.statistics import UNDECLARED, Counts
from slicemill.store.writer import SLABS_IN_FLIGHT, CaseWriter

Item = TypeVar("Item")
MaskReader = ScanReader | StructureReader
READERS = 2
"""Threads that decode ahead: image and mask."""
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
        if case.points is not None and params.points == "nodules and lungs" and case.mask is None:
            raise ScanError("has no segmentation in the folder of --lungs.", where=case.image)
        mask = None
        if case.mask is not None:
            reader: MaskReader = _open_mask(case, case.mask, image, params)
            stack.enter_context(reader)
            mask = PlacedMask(reader, image.grid, params.geometry)
        pool = stack.enter_context(ThreadPoolExecutor(threads)) if threads > 1 else None
        ahead = stack.enter_context(ThreadPoolExecutor(READERS)) if threads > 1 else None
        return _convert(case, params, store, OpenFiles(image, mask, pool, ahead, threads), check_files, holds_claim)


def _open_mask(case: CaseFiles, mask: Location, image: ScanReader, params: Params) -> MaskReader:
    if case.points is not None:
        return ScanReader(mask, "mask", uneven=params.uneven)
    if case.structures:
        return StructureReader(mask, case.structures, params.overlap)
    scan = ScanGrid(grid=image.grid, series=image.series)
    return open_mask_file(mask, scan, params.labels, overlap=params.overlap, uneven=params.uneven)


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """The open files of a case, and the threads for it."""

    image: ScanReader
    mask: PlacedMask[MaskReader] | None
    pool: ThreadPoolExecutor | None
    ahead: ThreadPoolExecutor | None
    """For what is decoded ahead. Its owner ends it, and no iterator: one that is left is closed by the garbage
    collector, at any time in any thread, where waiting for a thread may wait for ever."""
    threads: int

    def slabs(self, temp_folder: Path) -> Iterator[tuple[Slab, Slab | None]]:
        """Yield the slabs of image and mask in step; temporary files go to `temp_folder`."""
        both = [self.slabs_of(reader, temp_folder) for reader in (self.image, self.mask) if reader is not None]
        for slabs in zip(*both, strict=True):
            yield slabs[0], slabs[1] if self.mask else None

    def slabs_of(self, reader: ScanReader | PlacedMask[MaskReader], temp_folder: Path) -> Iterator[Slab]:
        """Yield the slabs of image or mask."""
        depth = slab_depth(self.image.grid.stored_shape)
        if not self.ahead:
            return reader.slabs(depth, temp_folder=temp_folder)
        depth = max(depth, min(self.threads, MAX_DEPTH))
        # one slab is being decoded and one is in use, in addition to those being encoded
        buffers = SLABS_IN_FLIGHT + 2
        return read_ahead(reader.slabs(depth, buffers=buffers, temp_folder=temp_folder), self.ahead)


def read_ahead(items: Iterable[Item], threads: ThreadPoolExecutor) -> Iterator[Item]:
    """Yield the items of an iterable, while another thread computes the next one."""
    iterator, end = iter(items), object()
    upcoming = threads.submit(next, iterator, end)
    while (item := upcoming.result()) is not end:
        upcoming = threads.submit(next, iterator, end)
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
    has_mask = mask is not None or case.points is not None
    labels = (params.labels or UNDECLARED) if has_mask else None
    shape = image.grid.stored_shape
    counts = Counts(shape[0], labels)
    _check_strict(case, header_warnings(image, mask), params)
    with CaseWriter(store, case.case_id, shape, has_mask=has_mask, profile=params.profile, pool=files.pool) as writer:
        points = NO_POINTS
        if case.points is None:
            _write_pairs(case, files, writer, counts)
        else:
            points = _write_points(case.points, files, writer, counts)
        counts.values.check_is_scan(case.image)
        warnings = [*header_warnings(image, mask), *voxel_warnings(counts, image, mask), *points.warnings]
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
            mask=_describe_mask(image, mask, case, keep_text=params.keep_text) if has_mask else None,
            params_sha256=params.sha256(),
            slice_stats=counts.stats(),
            lesions=counts.lesions(image.grid.affine_lps),
            max_rounding_error_hu=image.max_rounding_error,
            warnings=(*warnings, *make_notes(counts, image, mask, keep_text=params.keep_text)),
            points=points.points,
            points_sha256=case.points.sha256 if case.points else None,
            points_left_out=points.left_out,
        )
        check_files()
        return writer.finish(info, holds_claim, points.candidates)


def _write_pairs(case: CaseFiles, files: OpenFiles, writer: CaseWriter, counts: Counts) -> None:
    """Write image and mask in step."""
    for slab, other in files.slabs(writer.folder):
        counts.add_image(slab.z, slab.voxels)
        writer.write("image", slab.z, slab.voxels, downwards=files.image.grid.z_is_flipped)
        if files.mask is not None and other is not None:
            counts.add_mask(other.z, other.voxels, str(case.mask))
            writer.write("label", other.z, other.voxels, downwards=files.mask.downwards)


def _write_points(points: CasePoints, files: OpenFiles, writer: CaseWriter, counts: Counts) -> StoredPoints:
    """Write the image, then the segmentation that is made from points and lungs."""
    grid, lungs = files.image.grid, files.mask
    boxes = PointBoxes(points, grid)
    for slab in files.slabs_of(files.image, writer.folder):
        counts.add_image(slab.z, slab.voxels)
        boxes.add(slab.z, slab.voxels)
        writer.write("image", slab.z, slab.voxels, downwards=grid.z_is_flipped)
    found = boxes.finish()
    segmentation = PointSegmentation(found, points.candidates, grid)
    for z, slices, other in _mask_slabs(files, writer.folder):
        label = segmentation.draw(z, slices, other, None if lungs is None else lungs.reader.path)
        counts.add_mask(z, label, points.table)
        writer.write("label", z, label, downwards=lungs is not None and lungs.downwards)
    return segmentation.result(points)


def _mask_slabs(files: OpenFiles, temp_folder: Path) -> Iterator[tuple[int, int, npt.NDArray[Any] | None]]:
    """Yield first slice, number of slices and voxels of each slab of the mask; no voxels without a mask."""
    if files.mask is not None:
        for slab in files.slabs_of(files.mask, temp_folder):
            yield slab.z, len(slab.voxels), slab.voxels
        return
    shape = files.image.grid.stored_shape
    depth = slab_depth(shape)
    for z in range(0, shape[0], depth):
        yield z, min(depth, shape[0] - z), None


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


def _describe_mask(
    image: ScanReader, mask: PlacedMask[MaskReader] | None, case: CaseFiles, *, keep_text: bool
) -> SourceFile:
    """Return the stored record of a mask.

    One that has other voxels than its file, resampled or made from points, gets the image's header, on whose grid it
    lies. Without a file it gets the name of the table of points, and the hash of what that says about the case.
    """
    header = base64.b64encode(image.stored_header(keep_text=keep_text)).decode()
    if mask is None:
        table, sha256 = (case.points.table, case.points.sha256) if case.points else ("", "")
        return SourceFile(name=table, bytes=0, sha256=sha256, header_b64=header)
    described = describe_source(mask.reader, case.name(mask.reader.path), keep_text=keep_text)
    if not mask.is_resampled and case.points is None:
        return described
    return replace(described, header_b64=header)


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
