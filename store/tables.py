"""The tables of a store, built from its groups: one row per case, per slice and per lesion."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slicemill.common.documents import to_document
from slicemill.common.errors import StoreError
from slicemill.common.failures import raise_system_limit
from slicemill.common.files import (
    Location,
    atomic_write,
    parse_location,
    read_file,
    sha256_of_file,
    sha256_of_json,
    write_csv,
    write_json,
)
from slicemill.common.locks import wait_for_claim
from slicemill.common.remote import RemotePath
from slicemill.store.case import CaseInfo
from slicemill.store.layout import (
    ARRAY_PATHS,
    CANDIDATES,
    CHECKSUMS,
    DOCUMENT,
    FORMAT,
    GROUP,
    IMAGE,
    LABEL,
    LABELS_GROUP,
    LESIONS,
    MANIFEST,
    POINTS,
    SEGMENTATION_GROUP,
    SLICES,
    TABLES,
)
from slicemill.store.point_tables import make_point_rows, write_candidate_tables, write_points
from slicemill.store.reader import Store, open_case, open_store

Row = dict[str, Any]
"""A table row for pyarrow and csv: column name to value. Each label has a column ``voxels_<name>``."""
REMOTE_READERS = 16
"""Cases read in parallel from an object store, where the latency of requests dominates."""

MAIN_COLUMNS = ("case_id", "nz", "ny", "nx", "spacing_z_mm", "spacing_x_mm", "orientation", "has_tumor", "n_lesions",
                "tumor_volume_ml", "tumor_percent_organ", "organ_volume_ml", "max_axial_diameter_mm", "hu_min",
                "hu_max")  # fmt: skip
"""Columns of the manifest shown on screen; manifest.csv has all."""


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """A case's row of the manifest, its fields in the order of the columns.

    Without a mask, values about labels are None, not 0; without an organ label, values about the organ are None.
    """

    case_id: str
    patient_id: str
    image_path: str
    image_name: str
    mask_path: str | None
    mask_name: str | None
    nz: int
    ny: int
    nx: int
    spacing_z_mm: float
    spacing_y_mm: float
    spacing_x_mm: float
    orientation: str
    voxels: dict[str, int]
    """Label name to voxels; each has a column ``voxels_<name>``."""
    has_tumor: bool | None
    tumor_percent_scan: float | None
    tumor_percent_organ: float | None
    """Tumor in percent of the organ with its tumors."""
    tumor_volume_ml: float | None
    organ_volume_ml: float | None
    """Volume of the organ with its tumors, ml."""
    n_lesions: int | None
    max_axial_diameter_mm: float | None
    hu_min: int | None
    hu_max: int | None
    source_sha256: str
    warnings: str
    fingerprint: str | None

    def columns(self) -> Row:
        """Return the row as column name to value."""
        row: Row = {}
        for column in fields(self):
            value = getattr(self, column.name)
            row |= _voxel_columns(value) if column.name == "voxels" else {column.name: value}
        return row


def make_manifest_row(info: CaseInfo) -> ManifestRow:
    """Return a case's row of the manifest."""
    labels, lesions, stats, mask = info.labels, info.lesions, info.slice_stats, info.mask
    nz, ny, nx = info.shape
    spacing_z, spacing_y, spacing_x = info.spacing_mm
    voxels = {name: sum(counts) for name, counts in stats.voxels.items()}
    tumor = voxels[labels.tumor] if labels and labels.tumor else None
    organ = sum(voxels[name] for name in (labels.organ, labels.tumor) if name) if labels and labels.organ else None
    diameters = None if lesions is None else [lesion.max_axial_diameter_mm for lesion in lesions]
    return ManifestRow(
        case_id=info.case_id,
        patient_id=info.patient_id,
        image_path=info.image.name,
        image_name=PurePosixPath(info.image.name).name,
        mask_path=mask.name if mask else None,
        mask_name=PurePosixPath(mask.name).name if mask else None,
        nz=nz,
        ny=ny,
        nx=nx,
        spacing_z_mm=spacing_z,
        spacing_y_mm=spacing_y,
        spacing_x_mm=spacing_x,
        orientation=info.source_axcodes,
        voxels=voxels,
        has_tumor=None if tumor is None else tumor > 0,
        tumor_percent_scan=None if tumor is None else 100 * tumor / (nz * ny * nx),
        tumor_percent_organ=100 * tumor / organ if organ and tumor is not None else None,
        tumor_volume_ml=None if tumor is None else tumor * info.voxel_ml,
        organ_volume_ml=None if organ is None else organ * info.voxel_ml,
        n_lesions=None if diameters is None else len(diameters),
        max_axial_diameter_mm=None if diameters is None else max(diameters, default=0.0),
        hu_min=min((low for low in stats.hu_min if low is not None), default=None),
        hu_max=max((high for high in stats.hu_max if high is not None), default=None),
        source_sha256=info.image.sha256,
        warnings="; ".join(info.warnings),
        fingerprint=info.fingerprint,
    )


def points_sha256(store: Store) -> str:
    """Return one hash of a store's images and of their points."""
    return sha256_of_json([(case.case_id, case.info.image.sha256, case.info.points_sha256) for case in store.values()])


def make_slice_rows(info: CaseInfo) -> list[Row]:
    """Return a case's rows of the slice table."""
    stats = info.slice_stats
    return [
        {
            "case_id": info.case_id,
            "z": z,
            **_voxel_columns({name: counts[z] for name, counts in stats.voxels.items()}),
            "hu_min": stats.hu_min[z],
            "hu_max": stats.hu_max[z],
            "has_tumor": info.has_tumor(z),
        }
        for z in range(info.shape[0])
    ]


def make_lesion_rows(info: CaseInfo) -> list[Row]:
    """Return a case's rows of the lesion table."""
    return [{"case_id": info.case_id, **_number_axes(lesion.as_json())} for lesion in info.lesions or ()]


def _voxel_columns(voxels: dict[str, int]) -> Row:
    return {f"voxels_{name}": count for name, count in voxels.items()}


def _number_axes(record: Row) -> Row:
    """Replace the lists of numbers in a lesion's record by one column per axis."""
    axes = {"centroid_lps_mm": ("x", "y", "z"), "bbox_zyx": ("z0", "y0", "x0", "z1", "y1", "x1")}
    row: Row = {}
    for key, value in record.items():
        if key in axes:
            row |= {f"{key.removesuffix('_zyx')}_{axis}": item for axis, item in zip(axes[key], value, strict=True)}
        else:
            row[key] = value
    return row


@dataclass(frozen=True, kw_only=True)
class Checksums:
    """The document ``checksums.json``: SHA-256 values at the time when the tables were built."""

    tables: dict[str, str]
    """File name of each table to its hash."""
    group: str
    """Hash of the store's group document."""
    cases: dict[str, str]
    """Case id to the hash of its documents (`hash_documents`)."""


def reindex(url: str | Location) -> list[Row]:
    """Build the three tables and the checksums of a store from its groups, and return the rows of the manifest.

    Concurrent runs wait for each other. Unreadable cases are left out of the tables, which are still written.

    Raises
    ------
    StoreError
        A case cannot be read.
    """
    root = open_store(url).root
    with wait_for_claim(root, TABLES):
        store = open_store(root)
        cases = [case for case in _read_cases(store) if case is not None]
        manifest = _fill_columns([case.manifest.columns() for case in cases])
        _write_table(root, MANIFEST, [pa.Table.from_pylist(manifest)] if manifest else [])
        write_csv(root / f"{MANIFEST}.csv", manifest, ("case_id",))
        _write_table(root, SLICES, [case.slices for case in cases])
        _write_table(root, LESIONS, [case.lesions for case in cases if case.lesions is not None])
        has_points = _write_point_tables(store, cases)
        checksums = Checksums(
            tables={name: sha256_of_file(root / name) for name in list_tables(with_points=has_points)},
            group=sha256_of_file(root / GROUP / DOCUMENT),
            cases={case.manifest.case_id: case.documents_sha256 for case in cases},
        )
        write_json(root / CHECKSUMS, to_document(checksums))
    unread = sorted(set(store.case_ids) - set(checksums.cases))
    if unread:
        raise StoreError(
            f"the tables were built without {len(unread)} unreadable cases: {', '.join(unread[:5])}. "
            "Ingest their collection again with --rehash to replace them; "
            "`slicemill store verify` reports the problems.",
            where=root,
        )
    return manifest


@dataclass(frozen=True, slots=True)
class _CaseRows:
    """A case's rows of the tables."""

    manifest: ManifestRow
    slices: pa.Table
    lesions: pa.Table | None
    points: list[Row] | None
    """None if the case was ingested without points."""
    documents_sha256: str


def _write_point_tables(store: Store, cases: list[_CaseRows]) -> bool:
    """Write the tables of points and candidates, or remove them if no case has points; return whether one has."""
    with_points = [case for case in cases if case.points is not None]
    if not with_points:
        for name in (POINTS, CANDIDATES):
            (store.root / f"{name}.parquet").unlink(missing_ok=True)
        return False
    write_points(store.root, [row for case in with_points for row in case.points or ()])
    write_candidate_tables(store.root, (open_case(store.root, case.manifest.case_id) for case in with_points))
    return True


def _read_cases(store: Store) -> Iterator[_CaseRows | None]:
    """Yield the rows of each case, or None for an unreadable case. Only the rows are kept in memory."""
    with ThreadPoolExecutor(REMOTE_READERS if isinstance(store.root, RemotePath) else 1) as pool:
        yield from pool.map(lambda case_id: _read_case(store.root, case_id), store.case_ids)


def _read_case(root: Location, case_id: str) -> _CaseRows | None:
    try:
        try:
            case = open_case(root, case_id)
        except StoreError:
            with wait_for_claim(root, case_id):  # another run may be replacing the case
                case = open_case(root, case_id)
        info = case.info
        _ = case.candidates  # a damaged array makes the case unreadable
        lesions = make_lesion_rows(info)
        return _CaseRows(
            manifest=make_manifest_row(info),
            slices=pa.Table.from_pylist(make_slice_rows(info)),
            lesions=pa.Table.from_pylist(lesions) if lesions else None,
            points=None if info.points is None else make_point_rows(info),
            documents_sha256=hash_documents(root, info),
        )
    except Exception as error:  # noqa: BLE001 (one case does not stop the tables; `verify` reports its problem)
        raise_system_limit(error)
        return None


def list_tables(*, with_points: bool) -> tuple[str, ...]:
    """Return the file names of the tables of a store, with points or without."""
    of_points = (f"{POINTS}.parquet", f"{CANDIDATES}.parquet") if with_points else ()
    return (f"{MANIFEST}.parquet", f"{MANIFEST}.csv", f"{SLICES}.parquet", f"{LESIONS}.parquet", *of_points)


def hash_documents(root: Location, info: CaseInfo) -> str:
    """Return one hash of a case's Zarr documents: groups and arrays."""
    paths = ARRAY_PATHS[info.format]
    groups = (LABELS_GROUP, SEGMENTATION_GROUP) if info.format == FORMAT else ()
    names = (
        paths[IMAGE],
        *((paths[LABEL], *groups) if info.mask else ()),
        *(() if info.points is None else (CANDIDATES,)),
    )
    hashes = []
    for name in (DOCUMENT, *(f"{name}/{DOCUMENT}" for name in names)):
        try:
            hashes.append((name, sha256_of_file(root / GROUP / info.case_id / name)))
        except FileNotFoundError:
            continue
    return sha256_of_json(hashes)


def read_table(url: str | Location, name: str) -> list[Row]:
    """Return the rows of a table: manifest, slices or lesions.

    Raises
    ------
    StoreError
        The table does not exist or cannot be read.
    """
    rows: list[Row] = read_arrow(url, name).to_pylist()
    return rows


def read_arrow(url: str | Location, name: str) -> pa.Table:
    """Return a table as it is stored: manifest, slices or lesions.

    Raises
    ------
    StoreError
        The table does not exist or cannot be read.
    """
    path = parse_location(url) / f"{name}.parquet"
    try:
        # read_table starts threads, with which a process that ends soon is now and then aborted (pyarrow 26)
        return pq.ParquetFile(pa.BufferReader(read_file(path))).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise_system_limit(error)
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        raise StoreError(
            f"cannot be read ({cause.rstrip('.')}); `slicemill store reindex {url}` rebuilds it.", where=path
        ) from error


def store_sha256(store: Store) -> str:
    """Return one hash of a store's contents: case ids, source files and parameters."""
    infos = (case.info for case in store.values())
    return sha256_of_json(
        [(info.case_id, info.image.sha256, info.mask and info.mask.sha256, info.params_sha256) for info in infos]
    )


def _fill_columns(rows: list[Row]) -> list[Row]:
    """Return the rows with the same columns; missing values are None."""
    columns = _join_columns(rows)
    return [{column: row.get(column) for column in columns} for row in rows]


def _write_table(root: Location, name: str, parts: list[pa.Table]) -> None:
    """Write parts with different columns as one table; missing values are null."""
    table = pa.table({"case_id": pa.array([], pa.string())})
    if parts:
        table = pa.concat_tables(parts, promote_options="default").combine_chunks()
        table = table.select(_join_columns([dict.fromkeys(part.column_names) for part in parts]))
    with atomic_write(root / f"{name}.parquet") as aside:
        pq.write_table(table, aside)


def _join_columns(rows: Iterable[Row]) -> list[str]:
    """Return the union of the rows' columns. The columns of labels are kept together."""
    names = dict.fromkeys(column for row in rows for column in row)
    labels = [name for name in names if name.startswith("voxels_")]
    fixed = [name for name in names if not name.startswith("voxels_")]
    start = min((fixed.index(name) for name in ("has_tumor", "hu_min") if name in fixed), default=len(fixed))
    return [*fixed[:start], *labels, *fixed[start:]]
