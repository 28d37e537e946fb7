"""Reads a whole store and says what is not as it was written: every byte is under some checksum.

1. Slices and the index of a shard: crc32c, and no byte between them.
2. The documents of a case, the tables: SHA-256, written with the tables (``checksums.json``).
3. The statistics of a case: counted again from its voxels.
4. With the collection at hand: the hash of each source file, and its voxels one by one.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from slicemill.common.errors import InputError
from slicemill.common.files import Location, read_json, relative_path, sha256_of_file
from slicemill.common.progress import Advance
from slicemill.ct.naming import find_files
from slicemill.ct.scan import ScanReader, slab_depth
from slicemill.store.case import CaseInfo, SourceFile
from slicemill.store.layout import CHECKSUMS, DOCUMENT, GROUP, IMAGE, LABEL
from slicemill.store.reader import Case, SliceArray, Store
from slicemill.store.statistics import Counts
from slicemill.store.tables import case_documents_sha256, table_names


def verify(store: Store, source: Location | None, *, workers: int, advance: Advance) -> list[str]:
    """Return a line for everything that is wrong; none when nothing is.

    Parameters
    ----------
    source
        The collection that the store was made from, to compare it voxel for voxel; None to leave it.
    """
    problems, written = about_tables(store)
    files = None if source is None else {relative_path(path, source): path for path in find_files(source)}

    def check(case_id: str) -> list[str]:
        return [f"{case_id}: {problem}" for problem in about_case(store, case_id, written, files)]

    with ThreadPoolExecutor(workers) as pool:
        for found in pool.map(check, store.case_ids):
            problems += found
            advance(1, f"{len(problems)} problems" if problems else "")
    return problems


def about_tables(store: Store) -> tuple[list[str], dict[str, str]]:
    """Return what is wrong with the tables, and the written checksums of the cases' documents."""
    try:
        checksums = read_json(store.root / CHECKSUMS)
        tables, cases = dict(checksums["tables"]), dict(checksums["cases"])
        group = checksums["group"]
    except (InputError, KeyError, TypeError, ValueError) as error:
        return [f"{CHECKSUMS}: cannot be read ({error}); `slicemill store reindex` writes it, with the tables."], {}
    problems = []
    if sha256_of_file(store.root / GROUP / DOCUMENT) != group:
        problems.append(
            f"{GROUP}/{DOCUMENT}: is not as it was written; if `slicemill ingest` runs, so does `slicemill store reindex`."
        )
    for name in table_names():
        try:
            found = sha256_of_file(store.root / name)
        except OSError as error:
            problems.append(f"{name}: cannot be read: {error.strerror}; `slicemill store reindex` builds it.")
            continue
        if found != tables.get(name):
            problems.append(f"{name}: is not as it was written; `slicemill store reindex` builds it again.")
    problems += [
        f"{case_id}: stands in the tables but is not in the store; ingest its collection again."
        for case_id in sorted(set(cases) - set(store.case_ids))
    ]
    return problems, cases


def about_case(store: Store, case_id: str, written: dict[str, str], files: dict[str, Location] | None) -> Iterator[str]:
    """Yield what is wrong with one case."""
    try:
        case = Case(store.root / GROUP / case_id)
        if case_id not in written:
            yield "is not in the tables yet; `slicemill store reindex` adds it."
        elif case_documents_sha256(store.root, case_id) != written[case_id]:
            yield (
                "its documents are not as they were when the tables were built; run `slicemill store reindex` if it was "
                "ingested since, else ingest it again with --overwrite."
            )
        for array in (case.image, case.label):
            if array is not None:
                array.check_bytes()
        yield from about_statistics(case)
        if files is not None:
            yield from about_source(case, files)
    except (InputError, OSError) as error:
        yield str(error)


def about_statistics(case: Case) -> Iterator[str]:
    """Yield which statistics are not those of the voxels; reading them checks every slice."""
    info = case.info
    counts = Counts(info.shape[0], info.labels)
    depth = slab_depth(info.shape)
    for z in range(0, info.shape[0], depth):
        wanted = range(z, min(z + depth, info.shape[0]))
        counts.add_image(z, case.image.read_many(wanted))
        if case.label is not None:
            counts.add_mask(z, case.label.read_many(wanted), f"{case.info.case_id}/{LABEL}")
    if counts.stats() != info.slice_stats:
        yield "its slice statistics are not those of its voxels; ingest it again with --overwrite."
    lesions = None if case.label is None else counts.lesions(info.affine_lps)
    stored = None if info.lesions is None else [lesion.as_json() for lesion in info.lesions]
    if (None if lesions is None else [lesion.as_json() for lesion in lesions]) != stored:
        yield "its lesions are not those of its voxels; ingest it again with --overwrite."


def about_source(case: Case, files: dict[str, Location]) -> Iterator[str]:
    """Yield what differs between a case and the files it was made from."""
    info = case.info
    image = _found(info.image, files)
    if isinstance(image, str):
        yield image
        return
    yield from compared(case.image, image, info, "image")
    if info.mask is not None and case.label is not None:
        mask = _found(info.mask, files)
        if isinstance(mask, str):
            yield mask
        else:
            yield from compared(case.label, mask, info, "mask")


def _found(source: SourceFile, files: dict[str, Location]) -> Location | str:
    """Return the file of that name among those that were found, or why there is none; no path from the store is followed."""
    return files.get(source.name) or f"{source.name}: is not in the collection; is this the --source of the store?"


def compared(array: SliceArray, path: Location, info: CaseInfo, kind: Any) -> Iterator[str]:
    """Yield how a file differs from an array of the store."""
    source = info.image if kind == IMAGE else info.mask
    with ScanReader(path, kind) as reader:
        if reader.grid.stored_shape != array.shape:
            yield f"{path}: has the shape {reader.grid.stored_shape} (z, y, x), the store {array.shape}."
            return
        differing, first = 0, -1
        for slab in reader.slabs(slab_depth(array.shape)):
            stored = array.read_many(range(slab.z, slab.z + len(slab.voxels)))
            if not np.array_equal(stored, slab.voxels):
                rows = np.flatnonzero((stored != slab.voxels).any(axis=(1, 2)))
                differing += int((stored != slab.voxels).sum())
                first = slab.z + int(rows[0]) if first < 0 else min(first, slab.z + int(rows[0]))
        if differing:
            yield f"{path}: {differing:,} voxels differ from the store, the first at slice {first}."
        if source is not None and reader.finish() != source.sha256:
            yield f"{path}: is not the file that was ingested (its SHA-256 differs); run ingest again with --rehash."
