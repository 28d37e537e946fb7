"""Reads a complete store and reports damaged or changed data. A checksum covers every byte.

1. Slices and index of a shard: crc32c, without gaps between them.
2. Documents of a case, and tables: SHA-256 from the time when the tables were built (``checksums.json``).
3. Statistics of a case: recomputed from its voxels.
4. If the collection is available: hash and voxels of each source file.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slicemill.common.documents import read_document
from slicemill.common.errors import InputError, StoreError
from slicemill.common.failures import explain_failure, raise_system_limit
from slicemill.common.files import Location, relative_path, sha256_of_file
from slicemill.common.progress import Advance
from slicemill.ct.formats.dicom.discover import find_dicom
from slicemill.ct.formats.dicom.stack import UNEVEN_NOTE
from slicemill.ct.formats.dicom_objects.open_mask import is_mask_object
from slicemill.ct.formats.png_slices import find_png_folders
from slicemill.ct.mask_files import ScanGrid, open_mask_file
from slicemill.ct.naming import find_files
from slicemill.ct.placed_mask import PlacedMask
from slicemill.ct.scan import ScanReader, slab_depth
from slicemill.store.case import CaseInfo, SourceFile
from slicemill.store.headers import read_grid
from slicemill.store.layout import CHECKSUMS, DOCUMENT, GROUP, LABEL, POINTS
from slicemill.store.reader import Case, SliceArray, Store, open_case
from slicemill.store.statistics import Counts
from slicemill.store.tables import Checksums, hash_documents, list_tables

if TYPE_CHECKING:
    from slicemill.ct.geometry_option import Uneven


def verify(
    store: Store, source: Location | None, *, workers: int, advance: Advance, uncompared: list[str] | None = None
) -> list[str]:
    """Check a store and return one line per problem.

    Parameters
    ----------
    source
        The collection that the store was made from, for a voxel-by-voxel comparison; None to skip it.
    uncompared
        Gets the ids of the cases whose mask was made from points, or from a file for each structure; it is not
        compared.
    """
    try:
        checksums = read_document(Checksums, store.root / CHECKSUMS, error=StoreError)
        problems = list(check_tables(store, checksums))
    except InputError as error:
        checksums = Checksums(tables={}, group="", cases={})
        problems = [f"{CHECKSUMS}: cannot be read ({error}); `slicemill store reindex` rebuilds it and the tables."]
    files = None if source is None else _list_sources(source)

    def check(case_id: str) -> list[str]:
        checksum = checksums.cases.get(case_id)
        left = [] if uncompared is None else uncompared
        return [f"{case_id}: {problem}" for problem in check_case(store, case_id, checksum, files, left)]

    with ThreadPoolExecutor(workers) as pool:
        for case_problems in pool.map(check, store.case_ids):
            problems += case_problems
            advance(1, f"{len(problems)} problems" if problems else "")
    return problems


def _list_sources(source: Location) -> dict[str, Location]:
    """Return the scans and masks of a collection by the names that a store has for them."""
    files = {relative_path(path, source): path for path in find_files(source)}
    dicom = find_dicom(source)
    for one in dicom.series:
        name = relative_path(one.location, source)
        files[one.relative if name == "." else name] = one.location
    masks = [path for path, _ in dicom.left_out if is_mask_object(path)]
    masks += find_png_folders(source) if isinstance(source, Path) else []
    return files | {relative_path(path, source): path for path in masks}


def check_tables(store: Store, checksums: Checksums) -> Iterator[str]:
    """Yield the problems of the store's group document and of its tables."""
    if sha256_of_file(store.root / GROUP / DOCUMENT) != checksums.group:
        yield f"{GROUP}/{DOCUMENT}: changed since the tables were built; `slicemill store reindex` updates them."
    for name in list_tables(with_points=f"{POINTS}.parquet" in checksums.tables):
        try:
            sha256 = sha256_of_file(store.root / name)
        except OSError as error:
            raise_system_limit(error)
            yield f"{name}: cannot be read: {error.strerror}; `slicemill store reindex` rebuilds it."
            continue
        if sha256 != checksums.tables.get(name):
            yield f"{name}: changed since it was written; `slicemill store reindex` rebuilds it."
    for case_id in sorted(set(checksums.cases) - set(store.case_ids)):
        yield f"{case_id}: is in the tables but not in the store; ingest its collection again."


def check_case(
    store: Store, case_id: str, checksum: str | None, files: dict[str, Location] | None, uncompared: list[str]
) -> Iterator[str]:
    """Yield the problems of one case.

    Parameters
    ----------
    checksum
        Hash of the case's documents when the tables were built; None if it is not in the tables.
    files
        The source files by their path relative to the collection; None without the collection.
    """
    try:
        case = open_case(store.root, case_id)
        if checksum is None:
            yield "is not in the tables; `slicemill store reindex` adds it."
        elif hash_documents(store.root, case.info) != checksum:
            yield (
                "its documents changed since the tables were built. If it was ingested later, run "
                "`slicemill store reindex`; otherwise ingest it again with --overwrite."
            )
        for array in (case.image, case.label):
            if array is not None:
                array.check_bytes()
        _ = case.candidates  # checked by their checksum
        yield from check_statistics(case)
        if files is not None:
            yield from check_sources(case, files)
            if case.info.mask is not None and _is_made(case.info, files):
                uncompared.append(case_id)
    except Exception as error:  # noqa: BLE001 (any error is a problem of this case)
        raise_system_limit(error)
        yield explain_failure(error, store.root / GROUP / case_id).reason


def check_statistics(case: Case) -> Iterator[str]:
    """Yield the statistics that do not match the voxels. Reading the voxels checks every slice."""
    info = case.info
    counts = Counts(info.shape[0], info.labels)
    depth = slab_depth(info.shape)
    for z in range(0, info.shape[0], depth):
        slab = range(z, min(z + depth, info.shape[0]))
        counts.add_image(z, case.image.read_many(slab))
        if case.label is not None:
            counts.add_mask(z, case.label.read_many(slab), f"{case.info.case_id}/{LABEL}")
    if counts.stats() != info.slice_stats:
        yield "its slice statistics do not match its voxels; ingest it again with --overwrite."
    lesions = None if case.label is None else counts.lesions(info.affine_lps)
    stored = None if info.lesions is None else [lesion.as_json() for lesion in info.lesions]
    if (None if lesions is None else [lesion.as_json() for lesion in lesions]) != stored:
        yield "its lesions do not match its voxels; ingest it again with --overwrite."


def check_sources(case: Case, files: dict[str, Location]) -> Iterator[str]:
    """Yield the differences between a case and its source files."""
    uneven: Uneven = "longest" if any(UNEVEN_NOTE in warning for warning in case.info.warnings) else "refuse"
    image = yield from _find_source(case.info.image, files)
    if image is None:
        return
    with ScanReader(image, "image", uneven=uneven) as reader:
        scan = ScanGrid(grid=reader.grid, series=reader.series)
        yield from compare_voxels(case.image, reader, reader, case.info.image.sha256)
    if case.info.mask is not None and case.label is not None and not _is_made(case.info, files):
        mask = yield from _find_source(case.info.mask, files)
        if mask is not None:
            # ingest stores a resampled mask with the image's header; it trusted the image's if the two differ
            resampled = case.info.mask.header_b64 == case.info.image.header_b64
            # without overlap, "highest" is the same as "error"
            with open_mask_file(mask, scan, case.info.labels, overlap="highest", uneven=uneven) as reader:
                placed = PlacedMask(reader, read_grid(case), "resample" if resampled else "trust-image")
                yield from compare_voxels(case.label, reader, placed, case.info.mask.sha256)


def _is_made(info: CaseInfo, files: dict[str, Location]) -> bool:
    """Return whether a mask was made from points, or from a file for each structure in a folder."""
    name = info.mask.name if info.mask else ""
    return info.points is not None or (name not in files and any(file.startswith(f"{name}/") for file in files))


def _find_source(source: SourceFile, files: dict[str, Location]) -> Generator[str, None, Location | None]:
    """Return the file of that name, or yield a problem. Paths from the store are never opened."""
    if source.name not in files:
        yield f"{source.name}: is not in the collection; check that --source is the collection of this store."
    return files.get(source.name)


def compare_voxels(
    array: SliceArray, reader: ScanReader, file: ScanReader | PlacedMask[ScanReader], sha256: str
) -> Iterator[str]:
    """Yield the differences between an array of the store and its source file, which had this hash.

    `file` yields the voxels of `reader` in the order of the store.
    """
    if reader.kind == "image" and reader.grid.stored_shape != array.shape:
        yield f"{reader.path}: has the shape {reader.grid.stored_shape} (z, y, x), but the store has {array.shape}."
        return
    differing, first = 0, array.shape[0]
    for slab in file.slabs(slab_depth(array.shape)):
        unequal = array.read_many(range(slab.z, slab.z + len(slab.voxels))) != slab.voxels
        if unequal.any():
            differing += int(unequal.sum())
            first = min(first, slab.z + int(np.flatnonzero(unequal.any(axis=(1, 2)))[0]))
    if differing:
        yield f"{reader.path}: {differing:,} voxels differ from the store, the first at slice {first}."
    if reader.finish() != sha256:
        yield f"{reader.path}: changed since it was ingested (its SHA-256 differs); run ingest again with --rehash."
